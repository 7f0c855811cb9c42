"""What is wrong with a configuration, in lines that name the setting, what it may be, and the nearest known one."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel


def explain(item: Any, root: type[BaseModel]) -> str:
    """One pydantic error about a tree of `root` as one line: key, value, what is allowed, the nearest known key."""
    key = _dotted(item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1], root)
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        return f"unknown setting {key!r}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"setting {key!r} is required"
    if not key or item["type"] == "value_error":
        return f"{key + ': ' if key else ''}{message}"
    return f"{key}={item['input']!r}: {message}"


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())


def _dotted(loc: Sequence[Any]) -> str:
    """`seed.sources[1].format`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc]
    return "".join(parts).removeprefix(".")


def _known_keys(loc: Sequence[Any], root: type[BaseModel]) -> list[str]:
    section: Any = root
    for part in loc:
        # A place in a tuple of sections: all items are of one kind.
        section = get_args(section)[0] if isinstance(part, int) else section.model_fields[part].annotation
    return list(section.model_fields)
