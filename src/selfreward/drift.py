"""What differs between the settings that made a stage and those of now, and what a person calls it.

Stages are compared field by field: `sections.*` and `random_seed` of their identity, `inputs.*`, and `versions.*` of the
packages. A field is named as the setting that decides it; one that only holds a hash of contents says that the contents
changed, unless the setting itself is another one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCEPTED = "accepted_drift"
"""Where a record lists the differences that somebody accepted."""
ABSENT = "(absent)"
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{16}")
"""What hashes of contents and fingerprints look like."""


@dataclass(frozen=True, slots=True)
class Change:
    """One field whose value is another one. `ABSENT` stands for a field that is not there."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """The field by its raw name."""
        return _say(self.field, self.old, self.new)


@dataclass(frozen=True, slots=True)
class NamedChange:
    """The same difference in one or more stages, named for people."""

    name: str
    old: Any
    new: Any
    stages: tuple[str, ...]

    def __str__(self) -> str:
        """What changed, without the stages."""
        return _say(self.name, self.old, self.new)


def compare(old: Any, new: Any, field: str = "") -> list[Change]:
    """The fields in which two plain trees differ, in the order of their names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            change
            for key in sorted(old.keys() | new.keys())
            for change in compare(old.get(key, ABSENT), new.get(key, ABSENT), f"{field}.{key}" if field else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _are_trees([*old, *new]):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for place, (was, now) in pairs for change in compare(was, now, f"{field}[{place}]")]
    for here, there, is_old in ((old, new, True), (new, old, False)):
        if isinstance(here, Mapping) and here and there == ABSENT:  # name its fields one by one
            inner = [change for key in sorted(here) for change in compare(here[key], ABSENT, f"{field}.{key}")]
            return inner if is_old else [Change(change.field, change.new, change.old) for change in inner]
    return [] if _plain(old) == _plain(new) else [Change(field, old, new)]


def compare_versions(record: Mapping[str, Any], versions: Mapping[str, str | None]) -> list[Change]:
    """Packages whose version is another one than when the record was written; a package that it does not know says nothing."""
    known = record.get("versions") or {}
    return [Change(f"versions.{name}", known[name], versions[name]) for name in sorted(known.keys() & versions.keys())
            if known[name] != versions[name]]  # fmt: skip


def is_accepted(change: Change, record: Mapping[str, Any]) -> bool:
    """Whether somebody accepted this very difference for a record before."""
    return any(
        (item["field"], _plain(item["old"]), _plain(item["new"])) == (change.field, _plain(change.old), _plain(change.new))
        for item in record.get(ACCEPTED, ())
    )


def name_changes(
    changes: Sequence[tuple[str, Change]], old_config: Mapping[str, Any], new_config: Mapping[str, Any]
) -> list[NamedChange]:
    """Each difference once, with all stages that it touches. `changes` are (stage key, difference); the configs are plain
    trees: the one that lies in the run's folder, and the one of now."""
    found: dict[str, tuple[str, Any, Any, list[str]]] = {}
    differing = {change.field: change for change in compare(old_config, new_config)}
    for key, change in changes:
        name, old, new = _name(key, change, differing, new_config)
        stages = found.setdefault(_plain([name, old, new]), (name, old, new, []))[3]
        if key not in stages:
            stages.append(key)
    return [NamedChange(name, old, new, tuple(stages)) for name, old, new, stages in found.values()]


def name_accepted(accepted: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[NamedChange]:
    """The same for what records list as accepted."""
    changes = [(item["stage"], Change(item["field"], item["old"], item["new"])) for item in accepted]
    return name_changes(changes, config, config)


def _name(key: str, change: Change, differing: Mapping[str, Change], config: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """(what a person calls the field, old, new)."""
    if change.field.startswith("versions."):
        return change.field.removeprefix("versions."), change.old, change.new
    names = list(_settings(key, change, config))
    for name in names:
        if name in differing:  # the setting itself says more than what follows from it
            return name, differing[name].old, differing[name].new
    return names[-1], change.old, change.new


def _settings(key: str, change: Change, config: Mapping[str, Any]) -> Iterator[str]:
    """The settings that may be why a field differs, the widest first; the last one is what the field is called."""
    field = change.field.removeprefix("sections.")
    came_or_went = ABSENT in (change.old, change.new) or None in (change.old, change.new)
    head, _, rest = field.partition(".")
    if head == "inputs":
        yield from {"eft": ("mode",), "replay": ("replay.num_items",), "model": ("judge.model",), "m1": ("judge.model",)}.get(
            rest, ()
        )
        yield f"the input {rest} of {key}"
        return
    if came_or_went and key == "m1":
        yield "mode"
    if came_or_went and re.fullmatch(r"round-\d+/model", key):
        yield from ("replay.num_items", "replay.method")
    judge = "judge"
    if head == "members":
        place, _, rest = rest.partition(".")
        judge = f"judge.panel[{place}]" if config.get("judge", {}).get("panel") else "judge"
        if came_or_went:
            yield "judge.panel"
        field, (head, _, rest) = rest, rest.partition(".")
        if field in ("num_votes", "weight"):
            yield from ("judge.num_votes", f"{judge}.{field}")
            return
    role = f"{judge}.model" if "/judgements" in key else "propose.model" if key.endswith("/prompts") else "model.path"
    if head == "player":
        if came_or_went:
            yield role
        field = rest
    yield from _plain_settings(field, judge, role, came_or_went)


def _plain_settings(field: str, judge: str, role: str, came_or_went: bool) -> Iterator[str]:
    """The same for a field that stands by itself; `judge` and `role` are the sections of who judges and who plays."""
    head, _, rest = field.partition(".")
    files = re.fullmatch(r"files\.(\d+)(?:/(.*))?", field)
    if files:
        if came_or_went or not files[2]:
            yield from ("seed.path", f"seed.sources[{files[1]}].path")
        if files[2]:
            yield f"the seed file {files[2]} (seed.sources[{files[1]}])"
    elif head == "endpoint":
        yield role
        yield f"{role}: endpoint {rest}"
    elif field == "engine.script":
        yield "engine.name"
        yield "engine.script"
    else:
        yield {
            "rubric": f"{judge}.rubric",
            "template": "propose.template",
            "pairwise_rubric": "eval.pairwise_rubric",
            "propose.unsafe_words": "propose.unsafe_words_file",
            "pool": "propose.path",
            "num_eft": "seed.num_eft",
            "chat_template": "model.chat_template",
            "dtype": "model.dtype",
            "weights": role,
            "script": role,
        }.get(field, field)


def _say(name: str, old: Any, new: Any) -> str:
    """A content hash says nothing to a person beyond that it is another one."""
    if all(isinstance(value, str) and _HASH.fullmatch(value) for value in (old, new)):
        return f"the contents of {name} changed"
    shown = [
        value if value == ABSENT else "a file's content" if _is_hash(value) else json.dumps(value, ensure_ascii=False)
        for value in (old, new)
    ]
    return f"{name} was {shown[0]}, is {shown[1]}"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _are_trees(items: Sequence[Any]) -> bool:
    return bool(items) and all(isinstance(item, Mapping) for item in items)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
