"""Seed sources: damaged files are one clear error each, odd but whole ones are accepted."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from source_files import lines, read, write_parquet, zstd

from selfreward.errors import ConfigError, DataError
from selfreward.sources.places import one_split

GOOD = {"prompt": "p", "completion": "c"}
MANY = lines([GOOD | {"id": i, "completion": f"{i * 7919}" * 40} for i in range(2000)])
A = {"text": "a", "rank": 0}


def ranked(*responses: Any) -> bytes:
    return lines([{"prompt": "p", "responses": [A, {"text": "b", "rank": 1}]}, {"prompt": "p", "responses": list(responses)}])


def lines_as_they_are(row: Any) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode() * 2


def parquet_bytes(folder: Path) -> bytes:
    write_parquet(folder / "whole", [GOOD] * 1000)
    return (folder / "whole").read_bytes()


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("a.jsonl", b"", r"a\.jsonl is empty$"),
    "blank file": ("a.jsonl", b"\n  \n\r\n", r"holds blank lines only$"),
    "empty gz": ("a.jsonl.gz", gzip.compress(b""), r"is empty$"),
    "truncated gz": ("a.jsonl.gz", gzip.compress(MANY)[:-400], r"cannot be read: Compressed file ended .*cut off$"),
    "truncated gz head": ("a.jsonl.gz", gzip.compress(MANY)[:6], r"cannot be read: .*cut off$"),
    "damaged gz": ("a.jsonl.gz", gzip.compress(MANY)[:900] + b"x" * 900, r"cannot be read: .*damaged or cut off$"),
    "truncated zst": ("a.jsonl.zst", zstd(MANY)[:-40], r"cannot be read: the zstd stream is cut off; .*$"),
    "damaged zst": ("a.jsonl.zst", zstd(MANY)[:60] + b"\xff" * 900, r"cannot be read: .*damaged or cut off$"),
    "utf-16 with mark": (
        "a.jsonl",
        lines([GOOD]).decode().encode("utf-16"),
        r"in UTF-16 or UTF-32; convert the file to UTF-8$",
    ),
    "utf-16 without mark": ("a.jsonl", lines([GOOD]).decode().encode("utf-16-le"), r"in UTF-16 or UTF-32; convert"),
    "utf-32": ("a.json", lines([GOOD]).decode().encode("utf-32"), r"in UTF-16 or UTF-32; convert"),
    "latin-1": (
        "a.jsonl",
        '{"prompt": "é", "completion": "c"}'.encode("latin-1"),
        r"not text in UTF-8 \(byte 0xe9: .*\); convert",
    ),
    "latin-1 csv": ("a.csv", "prompt,completion\né,c\n".encode("latin-1"), r"not text in UTF-8 \(byte 0xe9"),
    "latin-1 array": ("a.json", '[{"prompt": "é"}]'.encode("latin-1"), r"not text in UTF-8 \(byte 0xe9"),
    "pickle": ("a.pkl", pickle.dumps([GOOD]), r"is a pickle or an archive, which is not read; give JSON lines"),
    "zip": ("a.zip", b"PK\x03\x04rest", r"is a pickle or an archive"),
    "some text": ("a.txt", b"Once upon a time\nthere was\n", r"is not JSON lines, .*; it begins with 'Once upon a time'$"),
    "truncated array": ("a.json", json.dumps([GOOD, GOOD]).encode()[:-5], r"row 2 of the JSON array is broken or cut off: "),
    "array cut between rows": ("a.json", b'[{"prompt": "p"},', r"row 2 of the JSON array is broken or cut off"),
    "array not closed": ("a.json", b'[{"prompt": "p"}', r"JSON array is broken: the file ends where ',' was expected$"),
    "array without comma": ("a.json", b'[{"prompt": "p"} {"prompt": "q"}]', r"JSON array is broken: expected ',', got '\{'$"),
    "array with a broken row": ("a.json", b'[{"prompt" 3}' + b" " * 200_000, r"row 1 of the JSON array is broken"),
    "two arrays": ("a.json", b'[{"prompt": "p"}]\n[{"prompt": "p"}]', r"something follows after the JSON array's end"),
    "deep array": ("a.json", b"[" + b'{"a":' * 100_000, r"row 1 of the JSON array is broken"),
    "empty array": ("a.json", b"[]", r"a\.json holds no row$"),
    "truncated object": ("a.json", b'{\n"data": [{"prompt": "p"}', r"is not JSON, nor JSON lines: Expecting"),
    "object without a list": ("a.json", b'{\n"version": 1}', r"with keys \['version'\]; it must hold one list of rows$"),
    "object with two lists": ("a.json", b'{"train": [{"prompt": "p"}],\n "test": [{}]}', r"it must hold one list of rows$"),
    "csv header only": ("a.csv", b"prompt,completion\n", r"holds no row$"),
    "csv without header": (
        "a.csv",
        b"why?,because\nhow?,so\n",
        r"unknown format: its first rows have the fields \['because', 'why\?'\]",
    ),
    "csv with a column twice": ("a.csv", b"prompt,prompt\na,b\n", r"must name each column, once; got \['prompt', 'prompt'\]$"),
    "csv with a nameless column": ("a.csv", b"prompt,\na,b\n", r"must name each column, once"),
    "csv with an open quote": ("a.csv", b'prompt,completion\n"a,b\n', r"line 2: broken CSV: unexpected end of data$"),
    "csv with a stray quote": ("a.csv", b'prompt,completion\n"a"x,b\n', r"line 2: broken CSV: "),
    "unknown format": (
        "a.jsonl",
        lines([{"question": "q"}]),
        r"unknown format: .*\['question'\]; the nearest format is prompts, which lacks .*; set the source's `format` to",
    ),
    "mixed formats": (
        "a.jsonl",
        lines([GOOD, {"messages": []}]),
        r"mixes formats: line 1 looks like completion, line 2 like messages",
    ),
}
"""Case -> file, content, the error; with on_bad_row=skip as well."""


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_always_an_error(tmp_path: Path, case: str, on_bad_row: str) -> None:
    name, content, message = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, on_bad_row=on_bad_row)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("cut", [0, 8, 200])
def test_a_truncated_parquet(tmp_path: Path, cut: int) -> None:
    whole = parquet_bytes(tmp_path)
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) - 1 - cut])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet after row 0: ") as caught:
        read(tmp_path / "a.parquet", on_bad_row="skip")
    assert "\n" not in str(caught.value)


def test_a_parquet_damaged_inside_and_one_without_rows(tmp_path: Path) -> None:
    whole = bytearray(parquet_bytes(tmp_path))
    whole[4:60] = b"\xff" * 56
    (tmp_path / "a.parquet").write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        read(tmp_path / "a.parquet", on_bad_row="skip")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet holds no row$"):
        read(tmp_path / "none.parquet")


ACCEPTED: dict[str, tuple[str, bytes, list[str]]] = {
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + lines([GOOD]), ["s-1"]),
    "byte order mark in an array": ("a.json", b"\xef\xbb\xbf" + json.dumps([GOOD]).encode(), ["s-1"]),
    "byte order mark in a csv": ("a.csv", b"\xef\xbb\xbfprompt,completion\na,b\n", ["s-1"]),
    "CRLF": ("a.jsonl", lines([GOOD, GOOD]).replace(b"\n", b"\r\n"), ["s-1", "s-2"]),
    "CRLF csv": ("a.csv", b"prompt,completion\r\na,b\r\n", ["s-1"]),
    "csv with line breaks in cells": ("a.csv", b'prompt,completion\n"a\nb","c\n\nd"\n\ne,f\n', ["s-1", "s-2"]),
    "blank lines between": ("a.jsonl", b"\n" + lines([GOOD]) + b"\n \n" + lines([GOOD]), ["s-2", "s-5"]),
    "no newline at the end": ("a.jsonl", lines([GOOD]).strip(), ["s-1"]),
    "array in a .jsonl": ("a.jsonl", json.dumps([GOOD, GOOD]).encode(), ["s-1", "s-2"]),
    "lines in a .json": ("a.json", lines([GOOD, GOOD]), ["s-1", "s-2"]),
    "one pretty object": ("a.json", json.dumps(GOOD, indent=2).encode(), ["s-1"]),
    "gzip without suffix": ("a.jsonl", gzip.compress(lines([GOOD])), ["s-1"]),
    "two gzip members": ("a.jsonl.gz", gzip.compress(lines([GOOD])) + gzip.compress(lines([GOOD])), ["s-1", "s-2"]),
    "two zstd frames": ("a.jsonl.zst", zstd(lines([GOOD])) + zstd(lines([GOOD])), ["s-1", "s-2"]),
    "own ids twice": ("a.jsonl", lines([GOOD | {"id": "x"}] * 2), ["s-x", "s-x-2"]),
    "an escaped NUL": ("a.jsonl", lines([GOOD | {"prompt": "a\0b"}]), ["s-1"]),
    "a pair of surrogates": ("a.jsonl", b'{"prompt": "\\ud83d\\ude00", "completion": "c"}', ["s-1"]),
    "half a pair where nobody looks": ("a.jsonl", lines([GOOD | {"note": "\ud83d"}]), ["s-1"]),
    "NaN where nobody looks": ("a.jsonl", b'{"prompt": "p", "completion": "c", "loss": NaN}', ["s-1"]),
    "a 10 MB line": ("a.jsonl", lines([GOOD, GOOD | {"completion": "x" * 10_000_000}, GOOD]), ["s-1", "s-2", "s-3"]),
    "a 10 MB row of an array": ("a.json", json.dumps([GOOD, GOOD | {"prompt": "x" * 10_000_000}]).encode(), ["s-1", "s-2"]),
    "rank gaps": ("a.jsonl", ranked({"text": "b", "rank": 7}, {"text": "a", "rank": 2}), ["s-1", "s-2"]),
    "whole floats as ranks": ("a.jsonl", ranked({"text": "b", "rank": 1.0}, {"text": "a", "rank": 0.0}), ["s-1", "s-2"]),
    "equal ranks": ("a.jsonl", ranked(A, A), ["s-1", "s-2"]),
    "one response only": ("a.jsonl", ranked(A), ["s-1", "s-2"]),
    "a long line of long characters": ("a.json", lines_as_they_are(GOOD | {"prompt": "x" + "é" * 70_000}), ["s-1", "s-2"]),
    "extra fields": ("a.jsonl", lines([GOOD | {"meta": {"deep": [None, {}]}}]), ["s-1"]),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted(tmp_path: Path, case: str) -> None:
    name, content, ids = ACCEPTED[case]
    (tmp_path / name).write_bytes(content)
    _, records, drops = read(tmp_path / name)
    assert [record.id for record in records] == ids
    assert drops == []


def test_places_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; set `path` to a file or a folder, or .* allow_download=true$"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"does not exist, and is no hub id \(owner/name or owner/name:split\)$"):
        read(tmp_path / "nowhere", allow_download=True)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"holds no data file \(.*\.jsonl.*\); it has \['notes\.md'\]$"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"is no seed folder: it must hold ift\.jsonl"):
        read(tmp_path, format="seed-folder")


def test_a_data_set_of_the_hub_without_network() -> None:
    with pytest.raises(
        DataError, match=r"data set 'no-such-owner/no-such-data' cannot be read from the hub after row 0: "
    ) as caught:
        read(Path("no-such-owner/no-such-data"), allow_download=True)
    assert "\n" not in str(caught.value)


def test_splits_of_a_data_set() -> None:
    import datasets

    stream = datasets.Dataset.from_list([GOOD]).to_iterable_dataset()
    assert list(one_split("n", stream)) == [GOOD]
    assert list(one_split("n", datasets.IterableDatasetDict({"train": stream}))) == [GOOD]
    with pytest.raises(DataError, match=r"'n' has the splits \['test', 'train'\]; set the source's `path` to n:SPLIT$"):
        one_split("n", datasets.IterableDatasetDict({"train": stream, "test": stream}))


def test_folders_of_mixed_or_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([GOOD]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"instruction": "i", "output": "o"}]))
    with pytest.raises(
        DataError, match=r"b\.jsonl has format alpaca, the folder's first file completion; make them two sources"
    ):
        read(tmp_path, on_bad_row="skip")
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jsonl is empty$"):
        read(tmp_path, on_bad_row="skip")


def test_saved_folders_that_cannot_be_read(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list([GOOD])}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(
        DataError, match=r"splits holds the splits \['train'\]; set the source's `path` to one of these folders$"
    ):
        read(tmp_path / "splits")
    assert len(read(tmp_path / "splits" / "train")[1]) == 1
    next((tmp_path / "splits" / "train").glob("*.arrow")).write_bytes(b"short")
    with pytest.raises(DataError, match=r"train cannot be read as a saved data set after row 0: ") as caught:
        read(tmp_path / "splits" / "train")
    assert "\n" not in str(caught.value)


def test_seed_folder_rows_are_strict(tmp_path: Path) -> None:
    (tmp_path / "ift.jsonl").write_bytes(lines([{"prompt": "p", "response": "r"}, {"prompt": "p", "response": " "}]))
    with pytest.raises(DataError, match=r"ift\.jsonl line 2: field 'response' must be a text that is not blank, got ' '$"):
        read(tmp_path)
    _, records, drops = read(tmp_path, label="", on_bad_row="skip")
    assert ([r.id for r in records], [d.id for d in drops]) == (["ift-1"], ["ift-2"])
    (tmp_path / "ranked.jsonl").write_bytes(lines([{"prompt": "p", "responses": [A]}]))
    with pytest.raises(
        DataError, match=r"ranked\.jsonl line 1: field 'responses' must hold at least two responses to compare, got 1$"
    ):
        read(tmp_path, role="ranked")
    with pytest.raises(
        ConfigError, match=r"role=eft is not in a source of format seed-folder with ift\.jsonl, ranked\.jsonl, which"
    ):
        read(tmp_path, role="eft")
