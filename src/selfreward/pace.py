"""How fast a task goes and how long it still takes, as far as that is known. Pure: whoever asks gives the time.

A task advances in pieces: a chunk of requests, an optimizer step. Items do not end evenly inside a piece (engines take the
longest prompts first), but pieces are alike, so the remaining time comes from whole pieces, the recent ones. Until the first
one is done it is at best a bound. Items that an earlier attempt had finished say nothing about the pace.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS, WINDOW_PIECES = 30.0, 3
"""Recent are the last pieces: this many, and as many as fill this time."""
KNOWN_SECONDS, KNOWN_SHARE = 2.0, 0.05
"""Nothing is said before this time has passed, nor of a first piece before this share of it is there."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """Time that a task still takes; `is_bound`: it takes less, because what comes first is the longest."""

    seconds: float
    is_bound: bool


class Pace:
    """The pace of one task of `total` items (None: nobody knows how many), begun at the time `now`."""

    def __init__(self, total: int | None, now: float) -> None:
        self._total = total
        self._found = 0
        self._fresh = 0
        self._within = 0.0
        self._piece = 0
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        """When how many fresh items were there; the first mark is where the recent time begins."""

    @property
    def done(self) -> float:
        """Items that are there, of the open piece about."""
        return self._found + self._fresh + self._within

    def found(self, count: int, now: float) -> None:
        """Items that an earlier attempt finished; the time that it took to find them counts for no others."""
        self._found += count
        if not self._fresh:
            self._marks = deque([(now, 0)])

    def finish(self, count: int, now: float) -> None:
        """A piece is done."""
        self._fresh, self._piece, self._within = self._fresh + count, count, 0.0
        if count == 0:
            return
        self._marks.append((now, self._fresh))
        while len(self._marks) > WINDOW_PIECES + 1 and now - self._marks[1][0] >= WINDOW_SECONDS:
            self._marks.popleft()

    def within(self, count: float) -> None:
        """So many items of the open piece are there, about."""
        self._within = max(self._within, count)

    def rate(self, now: float) -> float | None:
        """Items a second, of the recent pieces or of the first one while it is open; None while nobody knows."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        if after > before:
            return (after - before) / (end - start) if end > start else None
        return self._within / (now - start) if self._within and now - start >= KNOWN_SECONDS else None

    def remaining(self, now: float) -> Remaining | None:
        """None while nobody knows, also when the last piece takes longer than those before it."""
        rate, (end, _) = self.rate(now), self._marks[-1]
        if self._total is None or rate is None or now - self._marks[0][0] < KNOWN_SECONDS:
            return None
        if not self._fresh:
            left = self._total - self.done
            return Remaining(left / rate, True) if self._within >= KNOWN_SHARE * self._total else None
        left = self._total - self._found - self._fresh
        # The open piece is not over before it is: with what follows it, the time stands still where it takes long.
        seconds = max(left / rate - (now - end), (left - self._piece) / rate)
        if left <= 0:
            return Remaining(0.0, False)
        return Remaining(seconds, False) if seconds > 0 else None
