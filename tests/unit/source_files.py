"""Helpers for the tests of seed sources: writing files of every kind, and reading a source with its sums checked."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

from selfreward.config import SourceConfig
from selfreward.sources import Reading, Record, read_source
from selfreward.types import Drop

OASST = Path(__file__).parents[2].parent / "shared" / "data" / "oasst_en_trees.jsonl"
TASKS = OASST.parent / "self_instruct_seed_tasks.jsonl"
Rows = Sequence[Any]


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_table(path: Path, rows: Rows, delimiter: str = ",") -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows
    )
    path.write_bytes(text.getvalue().encode())


def write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def write_saved(path: Path, rows: Rows) -> None:
    import datasets

    datasets.Dataset.from_list(list(rows)).save_to_disk(str(path))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


WRITERS: dict[str, Callable[[Path, Rows], Any]] = {
    "a.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(zstd(lines(rows))),
    "a.json": lambda path, rows: path.write_text(json.dumps(list(rows), indent=1)),
    "a.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(list(rows)).encode())),
    "wrapped.json": lambda path, rows: path.write_text(json.dumps({"version": "1", "data": list(rows)}, indent=1)),
    "wrapped_on_a_line.json": lambda path, rows: path.write_text(json.dumps({"data": list(rows)})),
    "a.parquet": write_parquet,
    "saved": write_saved,
    "no_suffix": lambda path, rows: path.write_bytes(lines(rows)),
    "wrong.csv": lambda path, rows: path.write_bytes(lines(rows)),
}
TABLES: dict[str, Callable[[Path, Rows], Any]] = {
    "a.csv": write_table,
    "a.tsv": lambda path, rows: write_table(path, rows, "\t"),
    "table_without_suffix": write_table,
}


def read(path: Path, label: str = "s", on_bad_row: Any = "fail", **settings: Any) -> tuple[Reading, list[Record], list[Drop]]:
    """Read a source to its end; whatever it is, its counts add up and its ids differ."""
    reading, stream = read_source(SourceConfig(path=str(path), **settings), label, on_bad_row)
    items = list(stream)
    records = [item for item in items if isinstance(item, Record)]
    drops = [item for item in items if isinstance(item, Drop)]
    assert reading.num_rows == len(records) + len(drops)
    kept = sum(len(record.replies) or (record.response is not None) for record in records)
    assert reading.num_replies == kept + reading.replies_dropped.total()
    assert all(number > 0 for number in reading.replies_dropped.values())
    assert len({item.id for item in items}) == len(items)
    assert all(drop.reason for drop in drops)
    for drop in drops:
        json.loads(drop.item)
        drop.item.encode()
    for record in records:
        assert record.roles
        assert record.prompt.strip()
        assert record.response is None or not record.replies or record.response == record.replies[0]
        if reading.format != "seed-folder":  # whose replies keep the order of their file
            assert list(record.ranks) == sorted(record.ranks)
            assert set(record.ranks) == set(range(len(set(record.ranks))))
    return reading, records, drops
