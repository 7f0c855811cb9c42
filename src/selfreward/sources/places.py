"""Where a source lies -> its containers: a file, a folder of files, a folder saved by `datasets`, a hub id."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from selfreward.config import SourceConfig
from selfreward.errors import DataError
from selfreward.sources.compressed import reading
from selfreward.sources.containers import DATA_SUFFIXES, PARQUET, IsRow, data_suffix, text_rows
from selfreward.sources.rows import BadRow, Row, Rows
from selfreward.texts import one_line, shown

SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files that `datasets` writes into a folder: one data set, several splits."""
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<split>[\w.-]+))?")
_BATCH = 256
"""Parquet rows decoded at a time."""


@dataclass(frozen=True, slots=True)
class Container:
    """One file (or data set) of a source. `tag` sets its rows' ids apart from those of other files; empty: only one."""

    name: str
    tag: str
    rows: Rows


def data_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The folder's data files in name order, and the names of everything else in it that is not hidden."""
    inside = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    files = [path for path in inside if path.is_file() and data_suffix(path) in DATA_SUFFIXES]
    return files, [path.name for path in inside if path not in files]


def open_place(source: SourceConfig, is_row: IsRow) -> tuple[list[Container], list[str]]:
    """The source's containers, and the names of files that are no part of it.

    Raises DataError when there is nothing to read there.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        return [Container(str(path), "", file_rows(path, is_row))], []
    if path.is_dir():
        return _folder(path, is_row)
    if not source.allow_download:
        raise DataError(
            f"seed source {source.path!r} does not exist; set `path` to a file or a folder, "
            "or for a data set of the hub set allow_download=true"
        )
    return [Container(source.path, "", _hub_rows(source.path))], []


def file_rows(path: Path, is_row: IsRow) -> Rows:
    """How to read a file of any known kind; raises DataError where that can be told from its beginning."""
    with reading(path), path.open("rb") as file:
        head = file.read(len(PARQUET))
    return (lambda: _parquet(path)) if head == PARQUET else text_rows(path, is_row)


def _folder(folder: Path, is_row: IsRow) -> tuple[list[Container], list[str]]:
    if (folder / SAVED_SPLITS).is_file():
        splits = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        raise DataError(f"{folder} holds the splits {splits}; set the source's `path` to one of these folders")
    if (folder / SAVED_DATASET).is_file():
        return [Container(str(folder), "", lambda: _saved(folder))], []
    files, ignored = data_files(folder)
    if not files:
        raise DataError(
            f"folder {str(folder)!r} holds no data file ({', '.join(sorted(DATA_SUFFIXES))}); it has {shown(ignored)}"
        )
    stems = [path.name.split(".")[0] for path in files]
    tags = stems if len(set(stems)) == len(stems) else [path.name for path in files]
    if len(files) == 1:
        tags = [""]
    # Later files are opened when their turn comes.
    return [
        Container(str(path), tag, lambda path=path: file_rows(path, is_row)())  # type: ignore[misc]
        for path, tag in zip(files, tags, strict=True)
    ], ignored


def _parquet(path: Path) -> Iterator[Row | BadRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    with reading(path):
        try:
            with parquet.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    for value in batch.to_pylist():
                        number += 1
                        yield Row(str(path), number, value, unit="row")
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} cannot be read as Parquet after row {number}: {one_line(error)}") from error


def _saved(folder: Path) -> Iterator[Row | BadRow]:
    def load() -> Iterable[Mapping[str, Any]]:
        import datasets

        return cast(Iterable[Mapping[str, Any]], datasets.load_from_disk(str(folder)))

    yield from _numbered(str(folder), f"{folder} cannot be read as a saved data set", load)


def _hub_rows(path: str) -> Rows:
    found = _HUB_ID.fullmatch(path)
    if found is None:
        raise DataError(f"seed source {path!r} does not exist, and is no hub id (owner/name or owner/name:split)")
    name, split = found["name"], found["split"]

    def load() -> Iterable[Mapping[str, Any]]:
        import datasets

        return one_split(name, datasets.load_dataset(name, split=split, streaming=True))

    return lambda: _numbered(path, f"data set {name!r} cannot be read from the hub", load)


def one_split(name: str, data: Any) -> Iterable[Mapping[str, Any]]:
    """The data set itself, or the only split that it has. Raises DataError naming the splits when there are several."""
    if not isinstance(data, Mapping):
        return cast(Iterable[Mapping[str, Any]], data)
    if len(data) != 1:
        raise DataError(f"data set {name!r} has the splits {sorted(data)}; set the source's `path` to {name}:SPLIT")
    return cast(Iterable[Mapping[str, Any]], next(iter(data.values())))


def _numbered(name: str, problem: str, load: Callable[[], Iterable[Mapping[str, Any]]]) -> Iterator[Row | BadRow]:
    """Rows of a data set. Whatever the data set's library raises, and there are many kinds, becomes a DataError."""
    number = 0
    try:
        for number, value in enumerate(load(), start=1):
            yield Row(name, number, value, unit="row")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{problem} after row {number}: {one_line(error)}") from error
