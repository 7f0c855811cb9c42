"""Asking a run to stop: set by a signal, looked at wherever work can be left without losing any.

Work between two looks is one committed part: a chunk of requests, an optimizer step that is stored. Whoever looks and
finds that a stop is wanted commits first, then calls `check`.
"""

from selfreward.errors import StoppedError


class Stop:
    """Whether somebody wants the run to stop, and why."""

    def __init__(self) -> None:
        self.reason: str | None = None

    @property
    def is_wanted(self) -> bool:
        """True from the first `ask` on."""
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Want a stop at the next place where nothing is lost; the first reason is kept. Safe inside a signal handler."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise StoppedError when a stop is wanted."""
        if self.reason is not None:
            raise StoppedError(f"stopped ({self.reason}); the same command goes on from here")
