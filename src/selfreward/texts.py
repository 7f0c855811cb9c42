"""Foreign texts and values inside a message: on one line, and short; and numbers of things."""

from typing import Any

MAX_SHOWN = 60
"""Characters of a wrong value that a message shows."""


def one_line(text: object) -> str:
    """A text, or an error's, without line breaks."""
    return " ".join(str(text).split())


def shown(value: Any) -> str:
    """A value in a message: on one line, cut."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 round`, `2 rounds`, `3,200 replies` (with `plural="replies"`)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
