"""Whether a finished stage may be reused: its settings and inputs are the same, and its files are as it left them."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfreward.drift import ACCEPTED, Change, compare, is_accepted
from selfreward.errors import CorruptArtifactError, DriftError
from selfreward.storage import TEMPORARY_PREFIX, hash_file, read_json, to_plain, write_json

RECORD = "record.json"
PARTS = "parts"
BEGUN = f"{PARTS}/begun.json"
WEIGHTS = ".safetensors"
"""Files of this kind are too large to be hashed at every reuse; a stage that reads them hashes them first (`intact`)."""
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


def identify(key: str, sections: Mapping[str, Any], inputs: Mapping[str, str], random_seed: int) -> dict[str, Any]:
    """What decides a stage's result, as its record stores it. `inputs` are fingerprints."""
    return {"stage": key, "sections": _plain(sections), "inputs": dict(inputs), "random_seed": random_seed}


def read_record(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a finished stage. Raises CorruptArtifactError for one that is not a record."""
    record: dict[str, Any] = read_json(path / RECORD)
    whole = isinstance(record, dict) and {"fingerprint", "outputs", *identity} <= record.keys()
    if not whole or not isinstance(record["outputs"], dict):
        raise CorruptArtifactError(f"{path / RECORD} is not a stage record; delete {path} to make it again")
    return record


def identity_changes(record: Mapping[str, Any], identity: Mapping[str, Any]) -> list[Change]:
    """In what a stage's identity differs from that of a record (or of what was begun), but for what somebody accepted."""
    changes = compare({name: record[name] for name in identity}, identity)
    return [change for change in changes if not is_accepted(change, record)]


def check_finished(path: Path, fingerprint: str, identity: Mapping[str, Any]) -> str:
    """Compare a finished stage with what is wanted now; returns the fingerprint that it goes on under: its own.

    Raises DriftError for other settings that nobody accepted, and CorruptArtifactError as `check_outputs`.
    """
    record, key = read_record(path, identity), identity["stage"]
    if record["fingerprint"] != fingerprint:
        changes = identity_changes(record, identity)
        if changes or not record.get(ACCEPTED):
            raise DriftError(
                f"stage {key!r} is finished in {path}, but with other settings: "
                f"{'; '.join(map(str, changes)) or 'the fingerprint alone differs'}. "
                f"Set another `name`, or delete {path} and the stages that build on it to do them again"
            )
    check_outputs(key, path, record)
    return str(record["fingerprint"])


def check_outputs(key: str, path: Path, record: Mapping[str, Any]) -> None:
    """Whether a finished stage's files are as it left them. Raises CorruptArtifactError."""
    missing = [name for name in record["outputs"] if not (path / name).is_file()]
    if missing:
        raise CorruptArtifactError(f"stage {key!r} is finished but lacks {', '.join(missing)}; delete {path} to make it again")
    sizes = record.get("sizes", {})
    changed = [name for name, known in record["outputs"].items() if not _is_as_left(path / name, known, sizes.get(name))]
    if changed:
        raise CorruptArtifactError(
            f"stage {key!r} is finished but {', '.join(changed)} changed since; "
            f"delete {path} and the stages that build on it to make them again"
        )


def begin(path: Path, fingerprint: str, identity: Mapping[str, Any], versions: Mapping[str, Any]) -> dict[str, Any]:
    """Note what a stage is begun with, beside its parts: later these tell whether the parts still fit. What was noted
    before with the same fingerprint stays: its parts go on. Returns the note."""
    noted = read_begun(path)
    if noted is None or noted["fingerprint"] != fingerprint:
        noted = {**identity, "fingerprint": fingerprint, "versions": dict(versions)}
        write_json(path / BEGUN, noted)
    return noted


def read_begun(path: Path) -> dict[str, Any] | None:
    """What `begin` noted; None for a stage that was never begun, or is finished, and for a note that is damaged: parts are
    known by their names, so that all it can lose is what somebody accepted."""
    if not (path / BEGUN).is_file():
        return None
    try:
        noted = read_json(path / BEGUN)
    except CorruptArtifactError:
        return None
    whole = (
        isinstance(noted, dict) and {"stage", "sections", "inputs", "random_seed", "fingerprint", "versions"} <= noted.keys()
    )
    return noted if whole else None


def committed_parts(path: Path) -> list[Path]:
    """The committed parts of a stage that is not finished."""
    return sorted((path / PARTS).glob("*.parquet"))


def _is_as_left(file: Path, known: str, size: int | None) -> bool:
    """By its content, or for weights by their size, where the record tells it: that costs nothing and finds a cut file."""
    if file.name.endswith(WEIGHTS):
        return size is None or file.stat().st_size == size
    return hash_file(file) == known


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
        owner = file.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        if not (owner.isdigit() and int(owner) != os.getpid() and _is_alive(int(owner))):  # `selfreward report` needs no lock
            file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _plain(value: Any) -> Any:
    """The value as JSON would read it back."""
    return json.loads(json.dumps(value, default=to_plain, allow_nan=False))
