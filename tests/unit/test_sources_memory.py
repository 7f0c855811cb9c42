"""Seed sources: streams are lazy, and large files need little memory."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from source_files import lines

from selfreward.config import SourceConfig
from selfreward.errors import DataError
from selfreward.sources import Record, read_source
from selfreward.sources.read import PEEK

MEASURE = """
import resource, sys
from selfreward.config import SourceConfig
from selfreward.sources import read_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
before = peak()
reading, stream = read_source(SourceConfig(path=sys.argv[1]), "s", "fail")
number = sum(1 for _ in stream)
print(number, reading.num_rows, peak() - before)
"""


def growth(path: Path, limit: int) -> tuple[int, int]:
    """(rows, MB by which the peak grew) of reading a file in a process of its own with `limit` MB of address space."""
    code = MEASURE.replace("MEGABYTES", str(limit))
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number, num_rows, grown = map(int, done.stdout.split())
    assert number == num_rows
    return number, grown


def test_nothing_is_read_ahead(tmp_path: Path) -> None:
    """What is wrong far down is not met before the stream gets there."""
    good = [{"prompt": f"p{i}", "completion": "c"} for i in range(3 * PEEK)]
    (tmp_path / "a.jsonl").write_bytes(lines(good) + b"oops\n" + lines(good))
    reading, stream = read_source(SourceConfig(path=str(tmp_path / "a.jsonl")), "s", "fail")
    assert (reading.format, reading.num_rows) == ("completion", 0)
    for number in range(1, len(good) + 1):
        assert isinstance(next(stream), Record)
        assert reading.num_rows == number
    with pytest.raises(DataError, match=f"line {len(good) + 1}: not JSON"):
        next(stream)


def test_later_files_of_a_folder_are_opened_in_turn(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(lines([{"prompt": "p"}]))
    reading, stream = read_source(SourceConfig(path=str(tmp_path)), "s", "fail")
    assert next(stream).id == "s-a-1"
    assert [Path(name).name for name in reading.files] == ["a.jsonl"]
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"b\.jsonl cannot be read"):
        next(stream)


def test_a_small_file_unpacks_a_little_at_a_time(tmp_path: Path) -> None:
    """60 MB of rows in a small .gz grow the process by far less."""
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(60):
            file.write(lines([{"prompt": "word " * 100, "completion": "word " * 100}]) * 1000)
    number, grown = growth(tmp_path / "a.jsonl.gz", 2000)
    assert number == 60_000
    assert grown < 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "csv"])
def test_300_mb_need_little_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    row = {"prompt": "why is this so? " * 20, "completion": "because it is. " * 40}
    num_rows = 300_000_000 // len(json.dumps(row))
    begin = {"json": "[", "csv": "prompt,completion\n"}.get(kind, "")
    text = json.dumps(row) + ("," if kind == "json" else "\n")
    if kind == "csv":
        text = ",".join(row.values()) + "\n"
    with gzip.open(path, "wt", compresslevel=1) if kind.endswith("gz") else path.open("w") as file:
        file.write(begin)
        for _ in range(num_rows - 1):
            file.write(text)
        file.write(text.rstrip(",") + ("]" if kind == "json" else ""))
    number, grown = growth(path, 2000)
    assert number == num_rows
    assert grown < 100


@pytest.mark.slow
def test_a_large_message_table_needs_memory_for_its_ids_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    num_trees = 60_000
    with path.open("w") as file:
        for tree in range(num_trees):
            names = [f"{tree:032x}-{number}" for number in range(5)]
            for number, name in enumerate(names):
                parent = None if number == 0 else names[0] if number < 4 else names[1]
                row = {
                    "message_id": name,
                    "parent_id": parent,
                    "text": "some words " * 90,
                    "rank": number - 1 if number else None,
                }
                file.write(json.dumps(row) + "\n")
    number, grown = growth(path, 2500)
    assert path.stat().st_size > 300_000_000
    assert number == num_trees
    assert grown < 200
