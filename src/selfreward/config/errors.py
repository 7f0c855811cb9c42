"""What is wrong with a configuration, in lines that name the setting, what it may be, and the nearest known one."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from selfreward.texts import one_line

SECRETIVE = ("endpoints",)
"""Sections whose wrong values are never shown: a key or a password may have been put there."""


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
    if item["loc"][0] in SECRETIVE:
        return f"{key}: {message}"
    return f"{key}={item['input']!r}: {message}"


def explain_override(override: str, error: Exception) -> str:
    """What is wrong with an override that cannot be put into the tree."""
    key = override.split("=", maxsplit=1)[0]
    if key.strip().startswith(SECRETIVE):
        return f"override of {key!r} does not fit: its value is no YAML, or the key is no section.key; see quotes and brackets"
    return f"override {override!r} does not fit: {one_line(error)}"


def _dotted(loc: Sequence[Any]) -> str:
    """`seed.sources[1].format`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc]
    return "".join(parts).removeprefix(".")


def _known_keys(loc: Sequence[Any], root: type[BaseModel]) -> list[str]:
    section: Any = root
    for part in loc:
        if isinstance(part, int):  # a place in a tuple of sections: all items are of one kind
            section = get_args(section)[0]
        elif get_args(section):  # a name of the user's in a mapping to sections
            section = get_args(section)[1]
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
