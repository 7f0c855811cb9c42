"""A rehearsal of the run: small pieces of its own kinds of work, done by its own engine and trainers, and timed.

Each kind begins with a few rows and short replies and grows until its share of the time is used or its rows are as many
as the engine takes at a time. The larger the last piece, the closer to the run; what was cut is told.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfreward.config import Config, DpoConfig, OptimConfig
from selfreward.engines import Engine
from selfreward.errors import EngineError, StoppedError
from selfreward.estimating.seed_texts import Shapes
from selfreward.estimating.workload import Kind
from selfreward.progress import NullProgress, Steps
from selfreward.stopping import Stop
from selfreward.training import TrainContext
from selfreward.types import Request

FIRST_ROWS, FIRST_TOKENS = 8, 16
GROWTH, SMALLEST_GROWTH, SUBLINEAR = 4.0, 1.5, 2.0
"""A piece is at most so many times larger than the one before, and not begun where it is not at least so many times; the time
of one that is twice as large is taken for the same."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one kind of work. For replies: mean `prompt_tokens` of a request, `read_share` of them that are read where
    `shared` rows have one prompt, seconds a token read and a token written. For trainings: tokens of a row, and seconds a
    row: `once` (a reference's log-probabilities) and in each epoch. `rows` and `tokens` (of a reply) say how much was
    rehearsed; `is_cut`: less than a batch; `num_too_long`: requests beside them whose prompts left no room for a reply."""

    seconds_read: float = 0.0
    seconds_written: float = 0.0
    prompt_tokens: float = 0.0
    read_share: float = 1.0
    shared: int = 1
    row_tokens: float = 0.0
    seconds_once: float = 0.0
    seconds_row: float = 0.0
    rows: int = 0
    is_cut: bool = False
    num_too_long: int = 0


def rehearse_replies(engine: Engine, shapes: Shapes, kind: Kind, shared: int, full: tuple[int, int], seconds: float) -> Speed:
    """Time replies of a kind; `full` are the rows and the longest reply that the run has at a time.

    Raises EngineError where a request fails for another reason than a prompt that is too long.
    """
    most_rows, most_tokens = full
    rows, tokens = min(FIRST_ROWS, most_rows), min(FIRST_TOKENS, most_tokens)
    spent, speed = 0.0, Speed()
    while True:
        requests = shapes.requests(kind, rows, shared, tokens)
        took, speed = _time_replies(engine, requests)
        spent += took
        is_full = rows >= most_rows and tokens >= most_tokens
        # A piece that is `grow` times larger takes hardly ever so much longer: more rows keep the machine better busy.
        grow = min(GROWTH, SUBLINEAR * (seconds - spent) / max(took, 1e-9))
        if is_full or grow < SMALLEST_GROWTH:
            return replace(speed, is_cut=not is_full)
        if tokens < most_tokens and (rows >= most_rows or tokens <= rows):
            tokens = min(most_tokens, int(tokens * grow) + 1)
        else:
            rows = min(most_rows, int(rows * grow) + 1)


def _time_replies(engine: Engine, requests: Sequence[Request]) -> tuple[float, Speed]:
    """Wall time of some requests and the speed that it means. Where an engine does not tell its two phases apart, another
    pass with replies of one token stands for reading. Prompts that are too long are left out, as the run goes on without."""
    engine.take_usage()
    clock = time.perf_counter()
    replies = list(engine.generate(requests))
    took = time.perf_counter() - clock
    usage = engine.take_usage()
    if failed := next((reply for reply in replies if reply.error not in (None, "too_long")), None):
        raise EngineError(f"the rehearsal's request {failed.request_id!r} failed: {failed.error}; see the engine.* settings")
    lengths = {reply.request_id: reply.num_prompt_tokens or 0 for reply in replies if not reply.error}
    fitting = [request for request in requests if request.id in lengths]
    if not fitting:
        return took, Speed(num_too_long=len(requests))
    asked, written = sum(lengths.values()), sum(reply.num_tokens or 0 for reply in replies)
    if usage is not None and usage.prefill_seconds > 0:
        read = usage.read_tokens
        share = usage.prefill_seconds / (usage.prefill_seconds + usage.decode_seconds)
        reading, spent = share * took, took
    else:
        read = sum({request.prompt: lengths[request.id] for request in fitting}.values())
        clock = time.perf_counter()
        for reply in engine.generate([_short(request) for request in fitting]):
            assert not reply.error, "the same prompts as before"
        again = time.perf_counter() - clock
        reading, spent = min(again, 0.9 * took), took + again
    speed = Speed(
        seconds_read=reading / max(read, 1),
        seconds_written=(took - reading) / max(written, 1),
        prompt_tokens=asked / len(fitting),
        read_share=read / max(asked, 1),
        rows=len(fitting),
        num_too_long=len(requests) - len(fitting),
    )
    return spent, speed


def _short(request: Request) -> Request:
    return replace(request, sampling=replace(request.sampling, max_tokens=1))


class _Stopwatch(NullProgress):
    """Notes when a training's tasks advance, and asks for a stop when the time is used."""

    def __init__(self, stop: Stop, seconds: float) -> None:
        self._stop, self._limit = stop, seconds
        self.tasks: dict[str, list[tuple[float, int]]] = {}
        self.open_seconds = 0.0

    def task(self, description: str, total: int | None) -> Any:
        """A task of a training: its first word is its name."""
        return _Timed(self, description.split()[0])

    def note(self, name: str, count: int) -> None:
        """The task advanced."""
        self.tasks[name].append((time.perf_counter(), count))
        first = self.tasks[name][0][0]
        if name != "reference" and self.tasks[name][-1][0] - first > self._limit:
            self._stop.ask("the rehearsal is over")


class _Timed:
    """One open task."""

    def __init__(self, watch: _Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> Steps:
        self._begun = time.perf_counter()
        self._watch.tasks[self._name] = [(self._begun, 0)]
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.open_seconds += time.perf_counter() - self._begun

    def __call__(self, count: int) -> None:
        self._watch.note(self._name, count)

    def found(self, count: int) -> None:
        """Nothing is found in a rehearsal."""

    def warm(self, count: int) -> None:
        """As any other step: whoever measures knows which is the first."""
        self(count)

    def within(self, count: float) -> None:
        """Nothing of interest."""


def rehearse_training(
    start: Path, shapes: Shapes, kind: Kind, options: OptimConfig, config: Config, limits: tuple[int, float]
) -> tuple[Speed, float]:
    """Time a training's steps on its own examples: at most (steps, seconds) of them, nothing is stored. Also returns what came
    on top: loading the model, encoding, the trainer's own start."""
    num_steps, seconds = limits
    examples = shapes.examples(kind, num_steps * options.batch_size)
    stop = Stop()
    watch = _Stopwatch(stop, seconds)
    context = TrainContext(config=config, seed=0, progress=watch, stop=stop)
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="selfreward-") as folder:
        with suppress(StoppedError):  # as asked by the watch
            _train(start, examples, Path(folder) / "model", options.model_copy(update={"num_epochs": 1}), context)
        setup = time.perf_counter() - clock - watch.open_seconds
    reference = watch.tasks.pop("reference", None)
    ((_, marks),) = watch.tasks.items()
    # The first step also warms up; where it is the only one, it is all there is to go by.
    first, rest = marks[1][0] - marks[0][0], marks[2:]
    step = (rest[-1][0] - marks[1][0]) / len(rest) if rest else first
    once = 0.0
    if reference:
        once = (reference[-1][0] - reference[0][0]) / max(1, sum(count for _, count in reference))
    rows = len(marks[1:]) * options.batch_size
    return Speed(seconds_once=once, seconds_row=step / options.batch_size, rows=rows, is_cut=not rest), setup


def _train(start: Path, examples: Any, output: Path, options: OptimConfig, context: TrainContext) -> None:
    from selfreward.training.dpo import train_dpo
    from selfreward.training.sft import train_sft

    if isinstance(options, DpoConfig):
        train_dpo(start, examples, output, options, context)
    else:
        train_sft(start, examples, output, options, context)
