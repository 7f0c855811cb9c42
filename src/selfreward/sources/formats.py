"""The table of formats, and telling a format from the first rows.

| format | a row has | offers |
|---|---|---|
| oasst-trees | prompt: a message with replies | ift ranked prompts |
| oasst-messages | message_id, parent_id, text, role, rank | ift ranked prompts |
| alpaca | instruction, input, output | ift prompts |
| messages | messages: [{role, content}] | ift prompts |
| sharegpt | conversations: [{from, value}] | ift prompts |
| completion | prompt, completion or response | ift prompts |
| self-instruct | instruction, instances: [{input, output}] | ift prompts |
| ranked | prompt, responses: [{text, rank or score}]; see `ranked` for its other shapes | ift ranked prompts |
| preference | prompt, chosen, rejected | ift ranked prompts |
| eft | instruction, response, judgement, score | eft |
| prompts | prompt, instruction or text, and no reply | prompts |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfreward.errors import DataError
from selfreward.sources.found import Format, each
from selfreward.sources.nearest import nearest_format
from selfreward.sources.oasst import messages_reader, trees_reader
from selfreward.sources.plain import (
    PROMPT_KEYS,
    parse_alpaca,
    parse_completion,
    parse_eft,
    parse_messages,
    parse_prompt,
    parse_self_instruct,
    parse_sharegpt,
)
from selfreward.sources.ranked import LIST_KEYS, ORDER_KEYS, parse_preference, read_ranked
from selfreward.sources.records import Role
from selfreward.sources.rows import Row

Value = Mapping[str, Any]
_REPLY_KEYS = {
    "output", "response", "completion", "chosen", "rejected", "messages", "conversations", "instances", "judgement",
    "message_id", *LIST_KEYS,
}  # fmt: skip
"""Fields that hold more than a prompt."""
_DEMONSTRATIONS: frozenset[Role] = frozenset({"ift", "prompts"})
_COMPARISONS: frozenset[Role] = frozenset({"ift", "ranked", "prompts"})


def formats(lang: str | None) -> dict[str, Format]:
    """Name -> format, for a source that keeps one language, or all."""
    table = [
        Format("oasst-trees", _COMPARISONS, lambda v: isinstance(v.get("prompt"), Mapping), trees_reader(lang), "tree"),
        Format("oasst-messages", _COMPARISONS, _is_message, messages_reader(lang), "tree"),
        Format("alpaca", _DEMONSTRATIONS, _is_alpaca, each(parse_alpaca)),
        Format("messages", _DEMONSTRATIONS, _has("messages"), each(parse_messages)),
        Format("sharegpt", _DEMONSTRATIONS, _has("conversations"), each(parse_sharegpt)),
        Format("completion", _DEMONSTRATIONS, _is_completion, each(parse_completion)),
        Format("self-instruct", _DEMONSTRATIONS, _has("instruction", "instances"), each(parse_self_instruct)),
        Format("ranked", _COMPARISONS, _is_ranked, read_ranked),
        Format("preference", _COMPARISONS, _has("chosen", "rejected"), each(parse_preference)),
        Format("eft", frozenset({"eft"}), _has("instruction", "response", "judgement", "score"), each(parse_eft)),
        Format("prompts", frozenset({"prompts"}), _is_prompt, each(parse_prompt)),
    ]
    return {item.name: item for item in table}


def is_row(value: Value) -> bool:
    """Whether an object has the fields of some format."""
    return any(item.fits(value) for item in formats(None).values())


def detect(name: str, rows: Sequence[Row], table: Mapping[str, Format]) -> Format:
    """The one format that all rows fit; rows that fit none do not count. Raises DataError when there is not exactly one."""
    fitting = [(row, {item.name for item in table.values() if item.fits(row.value)}) for row in rows]
    # A row without its reply looks like a bare prompt: where others have one, it is a malformed row and no other format.
    weakest = {"prompts"} if any(names - {"prompts"} for _, names in fitting) else set()
    fitting = [(row, names) for row, names in fitting if names - weakest]
    if not fitting:
        keys = sorted({str(key) for row in rows for key in row.value})
        near = nearest_format([row.value for row in rows], table)
        raise DataError(f"{name} has an unknown format: its first rows have the fields {keys}; {near}; {_choices(table)}")
    first, names = fitting[0]
    for row, others in fitting[1:]:
        if not names & others:
            here, there = sorted(names), sorted(others)
            mixed = (
                f"{row.unit} {first.number} looks like {' or '.join(here)}, {row.unit} {row.number} like {' or '.join(there)}"
            )
            raise DataError(f"{name} mixes formats: {mixed}; {_choices(table)}")
        names = names & others
    if len(names) > 1:
        keys = sorted(map(str, first.value))
        raise DataError(f"{name} may be {' or '.join(sorted(names))}: its first rows have the fields {keys}; {_choices(table)}")
    return table[names.pop()]


def _choices(table: Mapping[str, Format]) -> str:
    return f"set the source's `format` to one of {', '.join(table)}"


def _has(*keys: str) -> Callable[[Value], bool]:
    return lambda value: all(value.get(key) is not None for key in keys)


def _is_message(value: Value) -> bool:
    return _has("message_id", "text")(value) and ("parent_id" in value or "role" in value)


def _is_alpaca(value: Value) -> bool:
    if {"judgement", "chosen", "helpfulness"} & value.keys():
        return False
    return _has("instruction", "output")(value) or _has("instruction", "response")(value)


def _is_completion(value: Value) -> bool:
    if isinstance(value.get("prompt"), Mapping) or "helpfulness" in value:
        return False
    return _has("prompt", "completion")(value) or _has("prompt", "response")(value)


def _is_ranked(value: Value) -> bool:
    if not (_has("prompt")(value) or _has("instruction")(value)):
        return False
    if any(value.get(key) is not None for key in LIST_KEYS):
        return True
    # One reply a row; a score beside a demonstration looks the same, so that `completion` or `alpaca` fits as well.
    return _has("response")(value) and bool(ORDER_KEYS.keys() & value.keys()) and "judgement" not in value


def _is_prompt(value: Value) -> bool:
    return any(isinstance(value.get(key), str) for key in PROMPT_KEYS) and not _REPLY_KEYS & value.keys()
