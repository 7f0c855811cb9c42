"""Progress of long work, shown to a person. Whoever works only tells what is done; who looks decides what is shown."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.table import Column
from rich.text import Text

from selfreward.pace import Pace

Advance = Callable[[int], None]
"""Call it with the number of items finished since the last call."""


class Steps(Protocol):
    """What a task's block gets, to tell how far it is."""

    def __call__(self, count: int) -> None:
        """So many items are finished since the last call."""
        ...

    def found(self, count: int) -> None:
        """So many items need no work: an earlier attempt finished them. They say nothing about the pace."""
        ...

    def warm(self, count: int) -> None:
        """So many items are finished, slower than the others will be: they say nothing about the pace either."""
        ...

    def within(self, count: float) -> None:
        """Of what the next call will tell, about so much is there."""
        ...


class Progress(Protocol):
    """Something that shows how far a task is."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Steps]:
        """Open a task of `total` items (None: nobody knows yet); the block gets what it tells its steps to."""
        ...

    def say(self, text: str) -> None:
        """Show a line of its own, beside whatever is open."""
        ...


class _NoSteps:
    """Nobody looks."""

    def __call__(self, count: int) -> None:
        """Nothing."""

    def found(self, count: int) -> None:
        """Nothing."""

    def warm(self, count: int) -> None:
        """Nothing."""

    def within(self, count: float) -> None:
        """Nothing."""


NO_STEPS: Steps = _NoSteps()


class NullProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Steps]:
        """A task that nobody sees."""
        yield NO_STEPS

    def say(self, text: str) -> None:
        """Shows nothing."""


class RichProgress:
    """Bars with rate and remaining time on a terminal; elsewhere one plain line for each finished task.

    Writes to standard error by default, so that standard output stays free for results. Tasks may nest.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._bars: Bars | None = None
        self._num_open = 0

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Steps]:
        """A visible task; see `Progress.task`."""
        pace = Pace(total, self._clock())
        if not self._console.is_terminal:
            yield from self._plain(description, total, pace)
            return
        if self._bars is None:
            self._bars = _make_bars(self._console, self._clock)
            self._bars.start()
        bars = self._bars
        bar = bars.add_task(description, total=total, pace=pace)
        self._num_open += 1
        try:
            yield _Shown(pace, self._clock, lambda: bars.update(bar, completed=pace.done))
        finally:
            self._num_open -= 1
            if self._num_open == 0:  # a terminal has room for one live display: end it with the outermost task
                bars.stop()
                self._bars = None

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def _plain(self, description: str, total: int | None, pace: Pace) -> Iterator[Steps]:
        started = self._clock()
        steps = _Shown(pace, self._clock, lambda: None)
        yield steps
        seconds, done = self._clock() - started, round(pace.done)
        items = str(done) if total is None else f"{done}/{total}"
        fresh = done - steps.num_found
        rate = rate_text(fresh / seconds if seconds > 0 else None)
        again = f", {steps.num_found} done before" if steps.num_found else ""
        self._console.print(f"{description}: {items} in {seconds:.1f} s ({rate}{again})", markup=False, highlight=False)


class Watched:
    """A progress that names the stage before each task and measures how long its tasks are open.

    For trainings, which know nothing of stages. A task's first step is slower than the others and not taken for its
    pace; nor is what an earlier attempt had done, which the training tells as found.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self.seconds = 0.0

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Steps]:
        """See `Progress.task`."""
        started = time.perf_counter()
        try:
            with self._progress.task(f"{self._name}: {description}", total) as steps:
                yield _FirstWarm(steps)
        finally:
            self.seconds += time.perf_counter() - started

    def say(self, text: str) -> None:
        """See `Progress.say`."""
        self._progress.say(f"{self._name}: {text}")


class _FirstWarm:
    """Steps whose first call warms up."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._is_first = steps, True
        self.found, self.warm, self.within = steps.found, steps.warm, steps.within

    def __call__(self, count: int) -> None:
        (self.warm if self._is_first else self._steps)(count)
        self._is_first = False


class _Shown:
    """Steps that move a pace and what shows it."""

    def __init__(self, pace: Pace, clock: Callable[[], float], show: Callable[[], None]) -> None:
        self._pace, self._clock, self._show = pace, clock, show
        self.num_found = 0

    def __call__(self, count: int) -> None:
        self._pace.finish(count, self._clock())
        self._show()

    def found(self, count: int) -> None:
        self.num_found += count
        self.warm(count)

    def warm(self, count: int) -> None:
        self._pace.found(count, self._clock())
        self._show()

    def within(self, count: float) -> None:
        self._pace.within(count)
        self._show()


class _CountColumn(ProgressColumn):
    """Items done and wanted."""

    def render(self, task: Bar) -> Text:
        done = int(task.completed)
        return Text(str(done) if task.total is None else f"{done}/{int(task.total)}", style="progress.download")


class _PaceColumn(ProgressColumn):
    """Items a second and the remaining time: nothing of either until it is known."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(Column(no_wrap=True))
        self._clock = clock

    def render(self, task: Bar) -> Text:
        pace, now = task.fields["pace"], self._clock()
        left = pace.remaining(now)
        shown = "" if left is None or task.finished else f" {'<' if left.is_bound else ''}{time_text(left.seconds)} left"
        return Text(f"{rate_text(pace.rate(now))}{shown}", style="progress.data.speed")


def _make_bars(console: Console, clock: Callable[[], float]) -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        _CountColumn(Column(no_wrap=True)),
        _PaceColumn(clock),
        console=console,
        expand=True,
    )


def rate_text(rate: float | None) -> str:
    """`12.3/s`; of slow work `4.2/min`."""
    if rate is None:
        return "-/s"
    return f"{rate:.1f}/s" if rate >= 1 or rate == 0 else f"{60 * rate:.1f}/min"


def time_text(seconds: float) -> str:
    """`0:42`, `12:03`, `3:10:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
