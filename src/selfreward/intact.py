"""Whether the files that a stage is about to read are as the stage that made them left them.

Reusing a finished stage reads no weights: that would take minutes for a large model, and nothing may come of it. A stage that
works reads its inputs anyway, so each of their files is hashed first and compared with the record: nothing is trained or
sampled from damaged weights.
"""

from collections.abc import Mapping
from pathlib import Path

from selfreward.errors import CorruptArtifactError
from selfreward.reuse import RECORD
from selfreward.storage import hash_file, read_json


class Intact:
    """Files found as their records say. One is hashed again only where its size, time or place on the disk has changed."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, int, int]] = {}

    def add(self, folder: Path, outputs: Mapping[str, str]) -> None:
        """Take the files of a stage that has just been finished, and hashed, for whole."""
        for name in outputs:
            self._seen[folder / name] = _state(folder / name)

    def check(self, key: str, folder: Path) -> None:
        """Raise CorruptArtifactError naming the files of a finished stage that are missing or not as it left them.

        A folder without a record was made by no stage (the caller vouches for it), so there is nothing to compare with.
        """
        if not (folder / RECORD).exists():
            return
        record = read_json(folder / RECORD)
        if not isinstance(record, dict) or not isinstance(record.get("outputs"), dict):
            raise CorruptArtifactError(f"{folder / RECORD} is not a stage record; delete {folder} to make it again")
        outputs: Mapping[str, str] = record["outputs"]
        lost = [name for name in outputs if not (folder / name).is_file()]
        changed = [name for name, known in outputs.items() if name not in lost and not self._is_whole(folder / name, known)]
        if lost or changed:
            what = [*(f"{name} is missing" for name in lost), *(f"{name} is damaged or was changed" for name in changed)]
            raise CorruptArtifactError(
                f"stage {key!r} is finished, but in {folder} {', '.join(what)}: nothing was made from it. "
                f"Put the file back, or do the stage again with --from {key} (or delete {folder})"
            )

    def _is_whole(self, path: Path, known: str) -> bool:
        state = _state(path)
        if self._seen.get(path) == state:
            return True
        if hash_file(path) != known:
            return False
        self._seen[path] = state
        return True


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
