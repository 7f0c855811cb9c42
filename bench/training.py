"""How many optimizer steps a second DPO and SFT take, ours beside TRL's trainers, in one process and in turns.

    python bench/training.py [--quick] [--models demo,15M] [--cpu-time] [--results bench/results.json]

Data comes from the micro-world's generator: `short`, tasks with a right and a wrong answer (SFT: an answer) as the demo trains
on; `long`, rows of several hundred tokens, as judging trains on. Lengths are ragged in both. The models are the demo's and
random Llamas of about 15M and 90M parameters.

`ours` is what `train_dpo` and `train_sft` do: the pass over the reference, and every step with all that goes with it. The peer
is TRL's `DPOTrainer` and `SFTTrainer` with the same rows, batch size, learning rate and number of epochs in float32, everything
else as TRL sets it. What happens once before the first step (loading, tokenising) is counted for neither. `TRL, tuned` is for
information: no gradient checkpointing, the reference's log-probabilities taken once (counted), rows sorted by length. One
epoch is the worst case for ours: the pass over the reference is not yet paid back. Each round runs every contestant once; the
figures are medians of three rounds, and the ratio is the median of the rounds' ratios. Two threads and wall time; with
`--cpu-time` one thread and its CPU time, for a machine that does other work too.
"""

import argparse
import logging
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import torch
from _results import Row, update
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from selfreward.config import DpoConfig, SftConfig, parse_config
from selfreward.lab import model_dir
from selfreward.lab.corpus import training_task
from selfreward.lab.writers import BODY, REVIEWED, write_response, write_review
from selfreward.progress import Advance, NullProgress
from selfreward.training import SftExample, TrainContext, _trl
from selfreward.training.common import encode_rows
from selfreward.types import Message, PreferencePair

BATCH = 16
RATE = 1e-4
NUM_ROUNDS = 3
SHAPES = {
    "15M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6},
    "90M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
"""Random Llamas whose input and output embeddings are one."""
VOCABULARY = 8000
NUM_STEPS = {"demo": 6, "15M": 2, "90M": 1}


@dataclass
class Clock:
    """What is measured, and with how many threads."""

    now: Callable[[], float] = time.perf_counter
    threads: int = 2


CLOCK = Clock()
DEFAULTS, TUNED = "TRL, defaults", "TRL, tuned"


@dataclass(frozen=True)
class Item:
    """One row of data: a prompt, the answer to learn and one that is worse."""

    prompt: str
    good: str
    bad: str


# --- data ---------------------------------------------------------------------------------------------------------


def make_items(kind: str, number: int) -> list[Item]:
    """Rows of the micro-world; the same on every machine."""
    rng = random.Random(f"training bench {kind}")
    make = _short if kind == "short" else _long
    return [make(rng) for _ in range(number)]


def _short(rng: random.Random) -> Item:
    task = training_task(rng)
    good = " ".join(task.answer)
    while (bad := write_response(rng, task, REVIEWED)) == good:
        pass
    return Item(task.text, good, bad)


def _long(rng: random.Random) -> Item:
    """Several reviewed answers in the prompt, one or two reviews as the answer: 60 to 300 tokens."""
    tasks = [training_task(rng) for _ in range(rng.randint(2, 4))]
    shown = [(task, write_response(rng, task, REVIEWED)) for task in tasks]
    prompt = " . ".join(BODY.format(task=task.text, response=response) for task, response in shown)
    reviews = [write_review(response, task.answer) for task, response in shown]
    wrong = [write_review(response, task.misconceived or task.answer[::-1]) for task, response in shown]
    kept = rng.randint(1, 2)
    return Item(prompt, " . ".join(reviews[:kept]), " . ".join([*wrong[:kept], "none"]))


# --- models -------------------------------------------------------------------------------------------------------


def make_model(name: str, folder: Path) -> Path:
    """The folder of a model to start from."""
    demo = model_dir()
    if name == "demo":
        return demo
    tokenizer = AutoTokenizer.from_pretrained(demo)
    torch.manual_seed(0)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(**SHAPES[name], vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=True, **ids)
    LlamaForCausalLM(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


# --- contestants --------------------------------------------------------------------------------------------------


def ours(task: str, start: Path, items: Sequence[Item], scratch: Path) -> float:
    """Seconds that our training takes, from the encoded rows to the last step."""
    progress = _ReferenceTime()
    context = TrainContext(parse_config({"name": "bench", "engine": {"device": "cpu", "threads": CLOCK.threads}}), 0, progress)
    settings: dict[str, Any] = {"learning_rate": RATE, "batch_size": BATCH, "micro_batch_size": BATCH, "max_length": 512}
    if task == "dpo":
        options: Any = DpoConfig(**settings)
        examples: Any = [
            PreferencePair(str(i), (Message("user", it.prompt),), it.good, it.bad, 5.0, 1.0, "c", "r")
            for i, it in enumerate(items)
        ]
        answers: Callable[[Any], tuple[str, ...]] = lambda pair: (pair.chosen, pair.rejected)  # noqa: E731
    else:
        options = SftConfig(**settings)
        examples = [SftExample(str(i), (Message("user", it.prompt),), it.good) for i, it in enumerate(items)]
        answers = lambda example: (example.answer,)  # noqa: E731
    base = _trl.load_base(start, options, context)
    rows, dropped = encode_rows(base.tokenizer, examples, answers, 10_000)
    assert not dropped, dropped[0]
    with _trl.workspace(base) as folder:
        if task == "dpo":
            columns = {
                "prompt_ids": [row.prompt_ids for row in rows],
                "chosen_ids": [row.answers[0] for row in rows],
                "rejected_ids": [row.answers[1] for row in rows],
            }
            trainer: Any = _trl.dpo_trainer(base, columns, options, folder, context)
        else:
            columns = {
                "input_ids": [row.prompt_ids + row.answers[0] for row in rows],
                "labels": [[-100] * len(row.prompt_ids) + row.answers[0] for row in rows],
            }
            trainer = _trl.sft_trainer(base, columns, options, 0, folder)
        trainer.add_callback(steps := _Steps())
        _trl.fit(trainer, [row.length for row in rows], options, context)
        return steps.seconds + progress.seconds


class _Steps(TrainerCallback):  # type: ignore[misc]
    """The time from before a training's first step until after its last one."""

    seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seconds -= CLOCK.now()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += CLOCK.now()


class _ReferenceTime(NullProgress):
    """The time of our pass over the reference."""

    seconds = 0.0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        start = CLOCK.now()
        with super().task(description, total) as advance:
            yield advance
        if description.startswith("reference"):
            self.seconds += CLOCK.now() - start


class _Timed(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer that counts the time of its pass over the reference."""

    seconds = 0.0

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        start = CLOCK.now()
        result = super().compute_ref_log_probs(model, inputs)
        self.seconds += CLOCK.now() - start
        return result


def trls(task: str, start: Path, items: Sequence[Item], scratch: Path, *, tuned: bool) -> float:
    """Seconds that TRL's own trainer takes for all steps."""
    settings: dict[str, Any] = {
        "output_dir": str(scratch), "learning_rate": RATE, "num_train_epochs": 1, "per_device_train_batch_size": BATCH,
        "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    if tuned:
        settings |= {"gradient_checkpointing": False, "train_sampling_strategy": "sequential"}
        items = sorted(items, key=lambda item: len((item.prompt + item.good).split()))
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)

    def says(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    if task == "dpo":
        rows = [
            {"prompt": says("user", it.prompt), "chosen": says("assistant", it.good), "rejected": says("assistant", it.bad)}
            for it in items
        ]
        args: Any = DPOConfig(**settings, precompute_ref_log_probs=tuned)
        trainer: Any = _Timed(model, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)
    else:
        rows = [{"prompt": says("user", it.prompt), "completion": says("assistant", it.good)} for it in items]
        trainer = SFTTrainer(
            model, args=SFTConfig(**settings), train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(steps := _Steps())
    trainer.train()
    return steps.seconds + getattr(trainer, "seconds", 0.0)


# --- rows ---------------------------------------------------------------------------------------------------------


def measure(task: str, kind: str, model: str, start: Path, num_steps: int) -> list[Row]:
    """Steps a second of all contestants, in turns."""
    contestants: dict[str, Callable[[Sequence[Item], Path], float]] = {
        "ours": partial(ours, task, start),
        DEFAULTS: partial(trls, task, start, tuned=False),
        TUNED: partial(trls, task, start, tuned=True),
    }
    items = make_items(kind, BATCH * num_steps)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(NUM_ROUNDS + 1):
        for name, run in contestants.items():
            with tempfile.TemporaryDirectory() as scratch:
                seconds = run(items if turn else items[:BATCH], Path(scratch))  # the first turn warms up
            if turn:
                times[name].append(seconds)
    rate = {name: num_steps / statistics.median(values) for name, values in times.items()}
    return [
        Row(
            f"{task} step, {kind} rows" + ("" if peer == DEFAULTS else " (tuned)"),
            model,
            rate["ours"],
            rate[peer],
            peer,
            statistics.median(other / own for own, other in zip(times["ours"], times[peer], strict=True)),
        )
        for peer in (DEFAULTS, TUNED)
    ]


def rows(
    models: Sequence[str] = ("demo", "15M"), quick: bool = False, show: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """All rows; `quick` takes fewer steps and leaves the long rows out. `show` hears of each row when it is measured."""
    torch.set_num_threads(CLOCK.threads)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            start = make_model(model, Path(folder))
            num_steps = max(1, math.ceil(NUM_STEPS[model] / 2)) if quick else NUM_STEPS[model]
            for task in ("dpo", "sft"):
                for kind in ("short",) if quick else ("short", "long"):
                    for row in measure(task, kind, model, start, num_steps):
                        found.append(row)
                        show(row)
    return found


HEADER = f"{'workload':32} {'model':6} {'ours':>9} {'peer':>9}  {'peer is':16} ratio   (steps a second)"


def render(row: Row) -> str:
    """One line of the table."""
    return f"{row.workload:32} {row.model:6} {row.ours:9.2f} {row.peer:9.2f}  {row.peer_name:16} {row.ratio:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", default="demo,15M")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    if args.cpu_time:
        CLOCK.now, CLOCK.threads = time.process_time, 1
    print(HEADER, flush=True)
    found = rows(args.models.split(","), args.quick, lambda row: print(render(row), flush=True))
    if args.results:
        update(args.results, found)


if __name__ == "__main__":
    main()
