"""Committed parts of an unfinished stage: rows of a chunk under a name that holds what they answer and what they are.

A part's name ends in the hash of its bytes, so that one which a failing disk or a copy changed is never taken for whole,
wherever in it the damage lies.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from selfreward.errors import CorruptArtifactError
from selfreward.storage import encode_rows, hash_bytes, hash_file, read_rows, read_rows_metadata, write_bytes

R = TypeVar("R")
T = TypeVar("T")

DAMAGED = ".damaged"
"""Ends the name of a part that was set aside."""
_DIGITS = 16


def write_part(folder: Path, stem: str, rows: Sequence[Any], cls: type[Any], metadata: Mapping[str, str]) -> Path:
    """Store rows, atomically, as the part `stem` of this folder; returns its file."""
    data = encode_rows(folder / stem, rows, cls, metadata)
    path = folder / f"{stem}-{hash_bytes(data)[:_DIGITS]}.parquet"
    write_bytes(path, data)
    return path


def find_parts(folder: Path, stem: str) -> list[Path]:
    """The files that are committed as the part `stem`: one, or none."""
    return sorted(folder.glob(f"{stem}-{'?' * _DIGITS}.parquet"))


def read_part(path: Path, cls: type[R]) -> tuple[list[R], dict[str, str]]:
    """Rows and metadata of a part. Raises CorruptArtifactError unless every byte is as it was written."""
    if not path.stem.endswith(f"-{hash_file(path)[:_DIGITS]}"):
        raise CorruptArtifactError(f"{path} is damaged: its bytes are not those that were written")
    return read_rows(path, cls), read_rows_metadata(path)


def set_aside(path: Path) -> Path:
    """Take a damaged part out of the way, and keep it until its stage is finished; returns where it lies now."""
    return path.rename(path.with_name(path.name + DAMAGED))


def pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    assert size >= 1, f"chunk size must be at least 1, got {size}"
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
