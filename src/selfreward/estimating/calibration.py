"""Ten seconds of the run's own work on this machine: how fast each kind goes and how much memory it takes."""

import importlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfreward.config import POLICY, Config, DpoConfig, OptimConfig, SftConfig
from selfreward.engines import open_engine, prepare
from selfreward.engines.loading import resolve_model_path
from selfreward.environment import num_threads
from selfreward.errors import ConfigError
from selfreward.estimating.rehearsal import Speed, rehearse_replies, rehearse_training
from selfreward.estimating.seed_texts import SeedTexts, Shapes
from selfreward.estimating.workload import Job, Kind, Planned, is_foreign
from selfreward.filters import RougePool
from selfreward.preflight.space import in_bytes
from selfreward.progress import Progress
from selfreward.spending import PeakMemory
from selfreward.statistics import bootstrap_mean
from selfreward.training.common import encode_rows
from selfreward.types import PreferencePair

SECONDS = 10.0
"""Of rehearsing, about: a single small piece of a slow model may take longer."""
REPLY_KINDS = frozenset(("answer", "judge", "compare", "propose"))
TRAINING_KINDS = frozenset(("sft", "sft-judging", "dpo"))
SMALL = 100_000_000
"""Parameters up to which a training is rehearsed with whole batches; above, a step is one micro-batch."""
BYTES_A_WEIGHT = 16
"""In training: a float32 weight, its gradient, and AdamW's two moments."""
Key = tuple[Kind, str]
"""A kind of work and who does it."""


@dataclass
class Calibration:
    """What was measured. `speeds` of replies and trainings; `seconds_each` of a row of the other kinds; `import_seconds`:
    libraries, once a run; peaks in bytes of the whole process (on a GPU: of its memory)."""

    num_parameters: int = 0
    seconds: float = 0.0
    reply_seconds: tuple[float, float] = (0.0, 0.0)
    """Of rehearsing replies: wall time, and time of processors. The second is less where other programs had them."""
    speeds: dict[Key, Speed] = field(default_factory=dict)
    seconds_each: dict[Key, float] = field(default_factory=dict)
    import_seconds: float = 0.0
    generating_peak: int = 0
    training_peak: int = 0
    on_gpu: bool = False
    kv_bytes: int = 0
    """Of one token in the cache of one reply."""


def calibrate(config: Config, texts: SeedTexts, stages: list[Planned], progress: Progress) -> tuple[Calibration, Shapes]:
    """Rehearse every kind of work that the stages have. Raises what loading the models raises, and ConfigError where a
    training cannot fit into this machine's memory."""
    jobs = [job for stage in stages for job in stage.jobs]
    found = Calibration()
    clock = time.perf_counter()
    for module in ("selfreward.engines.hf", "selfreward.training._trl"):
        importlib.import_module(module)  # torch, Transformers and TRL: a run waits for them once, too
    found.import_seconds = time.perf_counter() - clock
    prepare(config)  # what is compiled once on a machine is no part of a run
    kinds = _kinds(jobs)
    with progress.task("rehearsing", len(kinds) + 2) as steps:
        clock = time.perf_counter()
        shapes = _replies(config, texts, kinds, found)
        steps(sum(kind in REPLY_KINDS for kind, _ in kinds))
        start = Path(resolve_model_path(config.model.path))
        trainings = [kind for kind, _ in kinds if kind in TRAINING_KINDS]
        if trainings:
            need_memory(found.num_parameters, found)
        for kind in trainings:
            _training(start, kind, shapes, config, found)
            steps(1)
        _others(config, texts, found)
        steps(2)
        found.seconds = time.perf_counter() - clock
    return found, shapes


def processor_share(config: Config, found: Calibration) -> float | None:
    """The part that rehearsed replies got of the processor time that they could use; None on a GPU."""
    wall, used = found.reply_seconds
    if found.on_gpu or not wall:
        return None
    # A small model keeps two processors busy, hardly more.
    return round(used / (wall * min(num_threads(config.engine.threads), 2)), 2)


def _kinds(jobs: list[Job]) -> dict[Key, Job]:
    """Each kind of work with one of its jobs: the one whose rows share a prompt most, of equal ones that with most rows."""
    kinds: dict[Key, Job] = {}
    for job in sorted(jobs, key=lambda job: (-job.shared, -job.num_rows)):
        if job.kind in REPLY_KINDS | TRAINING_KINDS and not is_foreign(job.model):
            kinds.setdefault((job.kind, job.model), job)
    return kinds


def _replies(config: Config, texts: SeedTexts, kinds: Mapping[Key, Job], found: Calibration) -> Shapes:
    """Rehearse replies, with each model that gives some."""
    from selfreward.engines.hf import HfEngine

    shapes: Shapes | None = None
    wanted = {key: job for key, job in kinds.items() if key[0] in REPLY_KINDS}
    for model in dict.fromkeys([POLICY, *(model for _, model in wanted)]):
        memory, clock = PeakMemory(), time.perf_counter()
        path = config.model.path if model == POLICY else model
        with open_engine(resolve_model_path(path), config) as engine:
            found.seconds_each["open", model] = time.perf_counter() - clock
            assert isinstance(engine, HfEngine), "models of other engines are not rehearsed"
            if model == POLICY:
                found.num_parameters = engine.num_parameters
                found.kv_bytes = kv_bytes(engine.model.config, config.model.dtype)
            mine = Shapes(config, texts, engine.tokenizer)
            shapes = shapes or mine
            for key, job in [(key, job) for key, job in wanted.items() if key[1] == model]:
                rows = min(config.engine.batch_size, max(1, int(job.num_rows)))
                full = (rows, longest_reply(config, key[0]))
                begun = time.perf_counter(), time.process_time()
                speed = rehearse_replies(engine, mine, key[0], job.shared, full, SECONDS / 2 / len(wanted))
                took = time.perf_counter() - begun[0], time.process_time() - begun[1]
                found.reply_seconds = found.reply_seconds[0] + took[0], found.reply_seconds[1] + took[1]
                found.speeds[key] = replace(speed, shared=job.shared)
        peak = memory.peak()
        found.on_gpu = peak["peak_gpu_bytes"] is not None
        found.generating_peak = max(found.generating_peak, peak["peak_gpu_bytes"] or peak["peak_rss_bytes"])
    assert shapes is not None, "the policy always has one"
    return shapes


def _training(start: Path, kind: Kind, shapes: Shapes, config: Config, found: Calibration) -> None:
    """Rehearse one kind of training."""
    options: OptimConfig = config.dpo if kind == "dpo" else config.sft
    if isinstance(options, DpoConfig) and kind != "dpo":
        options = SftConfig(**options.model_dump(include=set(SftConfig.model_fields)))
    is_small = found.num_parameters <= SMALL
    if not is_small:
        options = options.model_copy(update={"batch_size": options.micro_batch_size})
    memory = PeakMemory()
    speed, setup = rehearse_training(start, shapes, kind, options, config, (16 if is_small else 3, SECONDS / 6))
    found.speeds[kind, POLICY] = replace(speed, row_tokens=_row_tokens(kind, shapes, options))
    found.seconds_each["setup", POLICY] = min(setup, found.seconds_each.get(("setup", POLICY), setup))
    peak = memory.peak()
    found.training_peak = max(found.training_peak, peak["peak_gpu_bytes"] or peak["peak_rss_bytes"])


def _row_tokens(kind: Kind, shapes: Shapes, options: OptimConfig) -> float:
    """Tokens of a training row on average; a pair counts its prompt twice."""
    examples: Any = shapes.examples(kind, 256)
    rows, _ = encode_rows(
        shapes.tokenizer,
        examples,
        lambda item: (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item.answer,),
        options.max_length,
    )
    return sum(row.num_tokens for row in rows) / max(1, len(rows))


def _others(config: Config, texts: SeedTexts, found: Calibration) -> None:
    """Time what works without a model: the filter of new prompts, bootstrapped figures."""
    known = [item.prompt for item in texts.ift]
    new = [reply for _, reply in texts.replies[:64]]
    pool, clock = RougePool(known), time.perf_counter()
    pool.admit(new, config.propose.max_rouge_l)
    found.seconds_each["filter", POLICY] = (time.perf_counter() - clock) / max(1, len(known) * len(new))
    numbers = random.Random(0)
    units = {str(unit): (numbers.random(), 1.0) for unit in range(texts.sizes.num_prompts)}
    clock = time.perf_counter()
    for seed in range(3):
        bootstrap_mean(units, seed, config.eval.bootstrap_samples)
    found.seconds_each["figures", POLICY] = (time.perf_counter() - clock) / 3


def longest_reply(config: Config, kind: Kind) -> int:
    """Most tokens of a reply of a kind."""
    return {"answer": config.sample.max_tokens, "propose": config.propose.max_tokens}.get(kind, config.judge.max_tokens)


def kv_bytes(model: Any, dtype: str) -> int:
    """Bytes that a model of this configuration keeps for one token of one reply."""
    text = model.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * (4 if dtype == "float32" else 2))


def training_bytes(num_parameters: int) -> int:
    """What weights, gradients and the optimizer's moments take, without activations."""
    return BYTES_A_WEIGHT * num_parameters


def need_memory(num_parameters: int, found: Calibration) -> None:
    """Raise ConfigError where a training cannot fit into RAM: trying it would end the process, not raise an error."""
    free = available_memory()
    needed = training_bytes(num_parameters)
    if not found.on_gpu and free is not None and needed > free:
        raise ConfigError(
            f"model.path has {num_parameters:,} parameters: training holds {in_bytes(needed)} of weights, gradients and "
            f"moments, {in_bytes(free)} of memory are available here; take a smaller model or a larger machine"
        )


def available_memory() -> int | None:
    """Bytes of RAM that are free for a program; None where the system does not say."""
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
