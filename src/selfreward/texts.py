"""Foreign texts and values inside a message: on one line, and short."""

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
