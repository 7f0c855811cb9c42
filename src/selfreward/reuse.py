"""Whether a finished stage may be reused: its settings and inputs are the same, and its files are as it left them."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfreward.errors import CorruptArtifactError, DriftError
from selfreward.storage import TEMPORARY_PREFIX, hash_file

RECORD = "record.json"
PARTS = "parts"
WEIGHTS = ".safetensors"
"""Files of this kind are too large to be hashed at every reuse; loading them finds a cut file."""
_HASH = re.compile(r'"[0-9a-f]{64}"')
_OPTIMIZER_STATE = re.compile(r"(optimizer|scheduler|rng_state)[^/]*$")


def hash_outputs(path: Path) -> dict[str, str]:
    """{relative file: SHA-256} of what a stage made.

    Not counted: its record, its parts, optimizer states, and stages inside its folder.
    """
    inner = [record.parent for record in path.rglob(RECORD) if record.parent != path]
    files = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        skipped = (
            not file.is_file()
            or name == RECORD
            or name.startswith(f"{PARTS}/")
            or file.name.startswith(TEMPORARY_PREFIX)
            or _OPTIMIZER_STATE.match(file.name)
            or any(folder in file.parents for folder in inner)
        )
        if not skipped:
            files[name] = hash_file(file)
    return files


def check_finished(key: str, path: Path, fingerprint: str, identity: Mapping[str, Any], record: Any) -> None:
    """Compare a finished stage's record with what is wanted now. Raises DriftError and CorruptArtifactError."""
    if not isinstance(record, dict) or not {"fingerprint", "outputs", *identity} <= record.keys():
        raise CorruptArtifactError(f"{path / RECORD} is not a stage record; delete {path} to make it again")
    if record["fingerprint"] != fingerprint:
        old, new = (_flatten({name: tree[name] for name in identity}) for tree in (record, identity))
        changes = [
            _change(name, _show(old, name), _show(new, name))
            for name in sorted(old.keys() | new.keys())
            if _show(old, name) != _show(new, name)
        ]
        raise DriftError(
            f"stage {key!r} is finished in {path}, but with other settings: "
            f"{'; '.join(changes) or 'the fingerprint alone differs'}. "
            f"Set another `name`, or delete {path} and the stages that build on it to do them again"
        )
    missing = [name for name in record["outputs"] if not (path / name).is_file()]
    if missing:
        raise CorruptArtifactError(f"stage {key!r} is finished but lacks {', '.join(missing)}; delete {path} to make it again")
    changed = [
        name for name, known in record["outputs"].items() if not name.endswith(WEIGHTS) and hash_file(path / name) != known
    ]
    if changed:
        raise CorruptArtifactError(
            f"stage {key!r} is finished but {', '.join(changed)} changed since; "
            f"delete {path} and the stages that build on it to make them again"
        )


def clear_unfinished(path: Path) -> None:
    """Remove what an interrupted attempt left, but not its committed parts, nor finished stages inside the folder."""
    path.mkdir(parents=True, exist_ok=True)
    for child in path.iterdir():
        if child.name == PARTS or (child.is_dir() and any(child.rglob(RECORD))):
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def clear_parts(path: Path) -> None:
    """Remove a finished stage's parts: their rows are in its outputs."""
    if (path / PARTS).exists():
        shutil.rmtree(path / PARTS)


def clear_temporary(root: Path) -> None:
    """Remove the half-written files that a killed process left beside the stages (config, environment, summary, report).

    Call it with the run's lock held. Those inside a stage's folder go with `clear_unfinished`.
    """
    for file in root.glob(f"{TEMPORARY_PREFIX}*"):
        file.unlink(missing_ok=True)  # `selfreward report` needs no lock, and may just have put it in place


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _change(name: str, old: str, new: str) -> str:
    """What differs; a content hash says nothing to a person beyond that it is another one."""
    if _HASH.fullmatch(old) and _HASH.fullmatch(new):
        return f"the contents of {name} changed"
    return f"{name} was {old}, is {new}"


def _show(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name], ensure_ascii=False) if name in flat else "(absent)"
