"""What both trainings share and that needs no torch: their nouns, encoding with counted drops, the order of the examples."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selfreward.chat import Tokenizer, describe_chat, encode_example, encode_prompt, shows_system
from selfreward.config import Config, OptimConfig
from selfreward.errors import TrainingError, UsageError
from selfreward.progress import Progress
from selfreward.stopping import Stop
from selfreward.storage import derive_seed
from selfreward.types import Drop, Message, PreferencePair


@dataclass(frozen=True, slots=True)
class SftExample:
    """One conversation and the answer to learn."""

    id: str
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class TrainContext:
    """What a training needs besides data and optimizer settings. `seed` decides the order of the examples and dropout."""

    config: Config
    seed: int
    progress: Progress
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished training reports.

    `num_tokens`: tokens of all examples over all epochs, prompts included, padding not; a pair counts its prompt twice.
    `history`: one mapping for each optimizer step: step, loss, lr, grad_norm; for DPO also dpo_loss (the sigmoid part),
    nll (per token of the chosen answers), rewards/margins, rewards/accuracies, rewards/chosen, rewards/rejected.
    `chat`: how conversations were written; see `describe_rows`.
    """

    num_examples: int
    dropped: tuple[Drop, ...]
    num_steps: int
    first_loss: float
    final_loss: float
    history: tuple[dict[str, float], ...]
    num_tokens: int
    chat: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded example: a prompt and its answers: (answer,) for SFT, (chosen, rejected) for DPO."""

    prompt_ids: list[int]
    answers: tuple[list[int], ...]

    @property
    def length(self) -> int:
        """Tokens of the longest prompt + answer."""
        return len(self.prompt_ids) + max(map(len, self.answers))

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompt + answer sequences."""
        return sum(len(self.prompt_ids) + len(answer) for answer in self.answers)


Example = TypeVar("Example", SftExample, PreferencePair)


def encode_rows(
    tokenizer: Tokenizer, examples: Sequence[Example], answers_of: Callable[[Example], tuple[str, ...]], limit: int
) -> tuple[list[Row], tuple[Drop, ...]]:
    """Encode examples; those that training cannot use leave with a reason.

    `too_long`: prompt + an answer has more than `limit` tokens (nothing is ever cut). `identical`: chosen and rejected
    are the same tokens. Rows come back sorted by length, which keeps padding small wherever they are read in order.
    Raises ModelError when the tokenizer has no chat template.
    """
    rows: list[Row] = []
    dropped: list[Drop] = []
    for example in examples:
        sampled_from = encode_prompt(tokenizer, example.messages)
        encoded = [encode_example(tokenizer, example.messages, answer) for answer in answers_of(example)]
        for prompt_ids, _ in encoded:
            assert prompt_ids == sampled_from, f"{example.id}: training would see another prompt than generation"
        row = Row(sampled_from, tuple(answer_ids for _, answer_ids in encoded))
        if row.length > limit:
            dropped.append(_drop(example, "too_long", num_tokens=row.length, limit=limit))
        elif len(row.answers) > 1 and row.answers[0] == row.answers[1]:
            dropped.append(_drop(example, "identical", num_tokens=row.length))
        else:
            rows.append(row)
    rows.sort(key=lambda row: row.length)
    return rows, tuple(dropped)


def describe_rows(tokenizer: Tokenizer, examples: Sequence[Example], added: Any) -> dict[str, Any]:
    """For records: the template (`own` or `default`), the token that ends an answer, where a system turn goes and how many
    were merged; for the default template also the tokens that it added and the rows of the embedding before and after."""
    merged = 0 if shows_system(tokenizer) else sum(example.messages[0].role == "system" for example in examples)
    changes = {} if added is None else asdict(added)
    return {"template": "own" if added is None else "default", **describe_chat(tokenizer), "system_merged": merged, **changes}


def _drop(example: Any, reason: str, **why: int) -> Drop:
    return Drop(example.id, reason, json.dumps({**why, **asdict(example)}, ensure_ascii=False))


def require_rows(rows: Sequence[Row], dropped: Sequence[Drop], limit: int) -> None:
    """Raise TrainingError when nothing is left to train on."""
    if rows:
        return
    reasons: dict[str, int] = {}
    for drop in dropped:
        reasons[drop.reason] = reasons.get(drop.reason, 0) + 1
    raise TrainingError(
        f"nothing to train on: {len(dropped)} examples given, all dropped: {reasons}; too_long means more than {limit} tokens "
        "(the smaller of max_length and the model's context)"
    )


def count_steps(num_rows: int, options: OptimConfig) -> int:
    """Optimizer steps of a whole training; the last batch of an epoch may be smaller."""
    return options.num_epochs * math.ceil(num_rows / options.batch_size)


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[int]:
    """Row indices of one epoch: shuffled, and within each batch of one optimizer step sorted by length.

    Sorting inside a batch does not change what a step learns from; it lets micro-batches hold rows of similar length,
    so that little is spent on padding. The same arguments give the same order on every machine.
    """
    order = list(range(len(lengths)))
    random.Random(derive_seed("epoch order", seed, epoch)).shuffle(order)
    batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return [index for batch in batches for index in sorted(batch, key=lambda row: lengths[row])]


def check_output(start: Path, output: Path) -> None:
    """Refuse an output folder that holds something else than an earlier model. Raises UsageError.

    An earlier model is replaced: a run that was killed after saving, but before its record was written, trains again.
    """
    if output.resolve() == start.resolve():
        raise UsageError(f"training would write over the model it starts from, {str(start)!r}; choose another output folder")
    is_model = (output / "config.json").is_file()
    if output.exists() and not (output.is_dir() and (is_model or not any(_entries(output)))):
        raise UsageError(f"output folder {str(output)!r} exists and is not a model folder; choose another one or move it away")


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def make_result(
    rows: Sequence[Row],
    dropped: tuple[Drop, ...],
    history: Sequence[dict[str, float]],
    options: OptimConfig,
    chat: dict[str, Any],
) -> TrainResult:
    """The result of a finished training; `chat` as `describe_rows` gives it."""
    return TrainResult(
        num_examples=len(rows),
        dropped=dropped,
        num_steps=len(history),
        first_loss=history[0]["loss"],
        final_loss=history[-1]["loss"],
        history=tuple(history),
        num_tokens=options.num_epochs * sum(row.num_tokens for row in rows),
        chat=chat,
    )
