"""Which format rows come nearest to that fit none, and what they lack: for the message about an unknown format."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward.texts import shown

FIELDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "completion": (("prompt",), ("completion", "response")),
    "alpaca": (("instruction",), ("output", "response")),
    "prompts": (("prompt", "instruction", "text"),),
    "messages": (("messages",),),
    "sharegpt": (("conversations",),),
    "preference": (("chosen",), ("rejected",)),
    "ranked": (("prompt", "instruction"), ("responses", "completions", "replies")),
    "eft": (("instruction",), ("response",), ("judgement",), ("score",)),
    "self-instruct": (("instruction",), ("instances",)),
    "oasst-messages": (("message_id",), ("text",), ("parent_id", "role")),
    "oasst-trees": (("prompt",), ("message_tree_id",)),
}
"""Format -> what its rows need, each one of some fields. Of equally near formats the first one is named."""

_OTHER_NAMES: Mapping[str, frozenset[str]] = {
    "prompt": frozenset({"question", "query", "input", "user", "task", "request", "context"}),
    "instruction": frozenset({"question", "query", "task", "request"}),
    "completion": frozenset({"answer", "reply", "target", "output", "assistant", "solution"}),
    "response": frozenset({"answer", "reply", "target", "assistant", "solution"}),
    "output": frozenset({"answer", "reply", "target", "assistant", "solution"}),
    "responses": frozenset({"answers", "candidates", "outputs"}),
    "messages": frozenset({"conversation", "dialog", "dialogue", "turns", "chat"}),
    "judgement": frozenset({"judgment", "critique", "feedback", "evaluation"}),
    "chosen": frozenset({"preferred", "better", "winner", "accepted"}),
    "rejected": frozenset({"dispreferred", "worse", "loser", "refused"}),
}
"""What others call a field."""


def nearest_format(values: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> str:
    """The end of a sentence about rows of no known format: the nearest one, and the fields to add or to rename."""
    keys = sorted({str(key) for value in values for key, item in value.items() if item is not None})
    best, best_near = "", -1.0
    for name, needs in FIELDS.items():
        near = sum(1.0 if set(fields) & set(keys) else 0.5 * bool(_candidate(fields, keys)) for fields in needs) / len(needs)
        if near == 1:  # every field is there, and yet the rows do not fit: another format is meant, if one is half there
            near = 0.6
        if name in known and near > best_near:
            best, best_near = name, near
    if best_near <= 0:
        return f"they resemble no format (the plainest, {best}, needs {_listed(FIELDS[best], [])})"
    lacking = [fields for fields in FIELDS[best] if not set(fields) & set(keys)]
    if not lacking:
        return f"the nearest format is {best}, but its fields hold something else there"
    return f"the nearest format is {best}, which lacks {_listed(lacking, keys)}"


def _listed(needs: Sequence[tuple[str, ...]], keys: Sequence[str]) -> str:
    """`'prompt' (rename 'question'?) and 'completion' or 'response'`."""
    parts = []
    for fields in needs:
        own = _candidate(fields, keys)
        parts.append(" or ".join(map(repr, fields)) + (f" (rename {shown(own)}?)" if own else ""))
    return " and ".join(parts)


def _candidate(fields: Sequence[str], keys: Sequence[str]) -> str | None:
    """A field of the rows that may be one of these under another name."""
    for field in fields:
        for key in keys:
            if key.strip().lower() == field or key.strip().lower() in _OTHER_NAMES.get(field, ()):
                return key
    for field in fields:
        if near := difflib.get_close_matches(field, keys, n=1, cutoff=0.75):
            return near[0]
    return None
