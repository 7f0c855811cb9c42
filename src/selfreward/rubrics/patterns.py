"""A rubric's own verdict pattern: a regular expression from anywhere, run with a limit on its time.

Python's own `re` cannot be stopped: `(a|aa)+$` on sixty letters runs for hours. The package `regex` reads the same patterns,
and stops after so many seconds of processor time. What then happens is an error and no failed vote: whether a vote counts
must not depend on the machine.
"""

import re
from collections.abc import Iterator
from typing import Any

import regex

from selfreward.errors import ConfigError

MAX_SECONDS = 10.0
"""Processor time for one reply; a sound pattern needs milliseconds."""
MAX_PROBE_SECONDS, PROBE_LENGTH = 1.0, 500
"""The same for one of the texts that a pattern is tried on when its file is read."""
_CHEAP = "0 a\n"


class OwnPattern:
    """A pattern with a limit on its time. `origin` names its file or rubric in errors."""

    def __init__(self, pattern: str, origin: str) -> None:
        """Raises ConfigError for what is no regular expression."""
        self._origin = origin
        self._text = pattern
        try:
            re.compile(pattern)  # what both understand: `regex` alone allows more
            self._regex: Any = regex.compile(pattern)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{origin}: pattern {pattern!r} is no regular expression: {error}") from error

    @property
    def finds_a_verdict(self) -> bool:
        """Whether it has a group `verdict`, or one group alone."""
        return "verdict" in self._regex.groupindex or self._regex.groups == 1

    def finditer(self, text: str) -> Iterator[Any]:
        """All matches in the text. Raises ConfigError when that takes too long."""
        return iter(self._timed(text, MAX_SECONDS))

    def search(self, text: str) -> Any:
        """The first match, or None. Raises ConfigError when that takes too long."""
        try:
            return self._regex.search(text, timeout=MAX_SECONDS)
        except TimeoutError as error:
            raise self._slow(text, MAX_SECONDS) from error

    def probe(self, example: str) -> None:
        """Try it on runs of the characters that it and its example are about. Raises ConfigError when one takes too long."""
        for character in dict.fromkeys(_CHEAP + self._text + example):
            self._timed(character * PROBE_LENGTH + "\0", MAX_PROBE_SECONDS)

    def _timed(self, text: str, seconds: float) -> list[Any]:
        try:
            return list(self._regex.finditer(text, timeout=seconds))
        except TimeoutError as error:
            raise self._slow(text, seconds) from error

    def _slow(self, text: str, seconds: float) -> ConfigError:
        return ConfigError(
            f"{self._origin}: the pattern {self._text!r} ran for more than {seconds:g} s on a text of {len(text):,} characters "
            f"({text[:20]!r}...); write it without a repetition inside a repetition"
        )
