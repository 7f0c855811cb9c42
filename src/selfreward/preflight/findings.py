"""What checks find: lines for people, and every problem instead of the first one."""

from collections.abc import Iterator
from contextlib import contextmanager

from selfreward.errors import ProblemsError, SelfRewardError

WARNING = "warning: "
"""Begins a line about something that works, but hardly as meant."""


class Findings:
    """Collects while checks run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.problems: list[SelfRewardError] = []

    def line(self, text: str) -> None:
        """Something that was found to be right."""
        self.lines.append(text)

    def warn(self, text: str) -> None:
        """Something to know before the run, which goes on."""
        if (line := f"{WARNING}{text}") not in self.lines:
            self.lines.append(line)

    def problem(self, error: SelfRewardError) -> None:
        """Something wrong; the same thing is told once."""
        known = {str(item) for item in self.problems}
        self.problems += [item for item in error.problems if str(item) not in known]

    @contextmanager
    def part(self) -> Iterator[None]:
        """One check: what it raises is kept, and the next one runs."""
        try:
            yield
        except SelfRewardError as error:
            self.problem(error)

    def result(self) -> list[str]:
        """All lines. Raises the one problem, or ProblemsError with all of several."""
        if self.problems:
            raise ProblemsError.of(self.problems)
        return self.lines
