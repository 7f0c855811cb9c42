"""Progress of long work, shown to a person. Whoever works only calls `advance`; who looks decides what is shown."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

Advance = Callable[[int], None]
"""Call it with the number of items finished since the last call."""


class Progress(Protocol):
    """Something that shows how far a task is."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open a task of `total` items (None: nobody knows yet); the block gets the function that advances it."""
        ...

    def say(self, text: str) -> None:
        """Show a line of its own, beside whatever is open."""
        ...


class NullProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """A task that nobody sees."""
        yield lambda count: None

    def say(self, text: str) -> None:
        """Shows nothing."""


class RichProgress:
    """Bars with rate and remaining time on a terminal; elsewhere one plain line for each finished task.

    Writes to standard error by default, so that standard output stays free for results. Tasks may nest.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: Bars | None = None
        self._num_open = 0

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """A visible task; see `Progress.task`."""
        if not self._console.is_terminal:
            yield from self._plain(description, total)
            return
        if self._bars is None:
            self._bars = _make_bars(self._console)
            self._bars.start()
        bars = self._bars
        bar = bars.add_task(description, total=total)
        self._num_open += 1
        try:
            yield lambda count: bars.advance(bar, count)
        finally:
            self._num_open -= 1
            if self._num_open == 0:  # a terminal has room for one live display: end it with the outermost task
                bars.stop()
                self._bars = None

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def _plain(self, description: str, total: int | None) -> Iterator[Advance]:
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count

        yield advance
        seconds = time.perf_counter() - started
        items = str(done) if total is None else f"{done}/{total}"
        self._console.print(
            f"{description}: {items} in {seconds:.1f} s ({_rate(done, seconds)})", markup=False, highlight=False
        )


class _RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Bar) -> Text:
        return Text(_rate(task.completed, task.elapsed or 0.0), style="progress.data.speed")


def _make_bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _rate(done: float, seconds: float) -> str:
    return f"{done / seconds:.1f}/s" if seconds > 0 else "-/s"
