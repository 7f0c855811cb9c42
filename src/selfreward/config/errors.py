"""What is wrong with a configuration, in lines that name the setting, what it may be, and the nearest known one."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from selfreward.config.secrets import ADVICE, names_secret
from selfreward.texts import one_line, shown

SECRETIVE = ("endpoints",)
"""Sections whose wrong values are never shown: a key or a password may have been put there."""

_MUST: dict[str, str] = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number, and not that large",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must look like {pattern}",
    "model_type": "must be a mapping of settings",
    "dict_type": "must be a mapping of settings",
    "tuple_type": "must be a list, such as [a, b]",
}
"""Kinds of pydantic's errors -> what a value must be. Other kinds keep pydantic's words."""


def explain(item: Any, root: type[BaseModel], shell: bool = False) -> str:
    """One pydantic error about a tree of `root` as one line: key, value, what is allowed, the nearest known key.

    `shell`: the value was given on the command line, where quotes are the shell's.
    """
    loc = tuple(part for part in item["loc"] if part != "[key]")
    key, kind = dotted(loc), item["type"]
    if kind == "extra_forbidden":
        return _unknown(loc, root)
    if kind == "missing":
        return f"setting {key!r} is required"
    message = one_line(item["msg"].removeprefix("Value error, "))
    if not key or kind == "value_error":
        return f"{key + ': ' if key else ''}{message}"
    value = item["input"]
    if value is None and kind in ("model_type", "dict_type"):
        return f"{key} is empty; put settings below it, or remove it"
    got = f"{key} is empty and" if value is None else key if loc[0] in SECRETIVE else f"{key}={shown(value)}"
    if kind == "string_type":
        return f"{got} must be a text{_quoted(key, value, shell)}"
    if kind == "literal_error":
        return f"{got} must be one of {_one_of(item['ctx']['expected'], value)}"
    if kind in _MUST:
        return f"{got} {_MUST[kind].format(**{name: _plain(limit) for name, limit in item.get('ctx', {}).items()})}"
    return f"{got}: {message}"


def dotted(path: Sequence[str | int]) -> str:
    """`seed.sources[1].format`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _unknown(loc: Sequence[Any], root: type[BaseModel]) -> str:
    key, last = dotted(loc), str(loc[-1])
    known = _known_keys(loc[:-1], root)
    if names_secret(last):
        return f"unknown setting {key!r}: {ADVICE}"
    if near := difflib.get_close_matches(last, known, n=1):
        return f"unknown setting {key!r}; did you mean {near[0]!r}?"
    if elsewhere := [name for name in _all_keys(root) if name.rpartition(".")[2] == last]:
        return f"unknown setting {key!r}; did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"unknown setting {key!r}; known here: {', '.join(known)}"


def _plain(limit: Any) -> Any:
    """A bound as people write it: 0 and not 0.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _quoted(key: str, value: Any, shell: bool) -> str:
    if isinstance(value, bool | int | float):
        plain = str(value).lower() if isinstance(value, bool) else str(value)
        return f"""; in quotes it is one: {f"'{key}=" + f'"{plain}"' + "'" if shell else f'"{plain}"'}"""
    return ""


def _one_of(expected: str, value: Any) -> str:
    """The values that are allowed, and which of them is near."""
    allowed = [word.strip("'") for part in expected.split(", ") for word in part.split(" or ")]
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"{', '.join(allowed)}{f'; did you mean {near[0]!r}?' if near else ''}"


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


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of the tree that has one place, dotted."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
