"""Seed sources: properties that hold for any file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import WRITERS, lines, read, zstd

from selfreward.config import SourceConfig
from selfreward.errors import DataError
from selfreward.sources import read_source

texts = st.text(st.characters(codec="utf-8"), max_size=12)
said = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
scores = st.floats(-1e6, 1e6)
words = st.sampled_from(["text", "rank", "role", "x"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)
turns = st.tuples(said, said).map(
    lambda pair: [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
)
instances = st.lists(st.fixed_dictionaries({"input": texts, "output": texts}), min_size=1, max_size=2)
replies = st.lists(st.fixed_dictionaries({"text": said, "rank": st.integers(0, 5)}), min_size=1, max_size=4)
ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "alpaca": st.fixed_dictionaries({"instruction": said, "input": texts, "output": texts}),
    "messages": st.fixed_dictionaries({"messages": turns}),
    "completion": st.fixed_dictionaries({"prompt": texts, "completion": texts}),
    "ranked": st.fixed_dictionaries({"prompt": said, "responses": replies}),
    "preference": st.fixed_dictionaries({"prompt": said, "chosen": texts, "rejected": texts}),
    "eft": st.fixed_dictionaries({"instruction": said, "response": said, "judgement": said, "score": scores}),
    "prompts": st.fixed_dictionaries({"prompt": texts}),
    "self-instruct": st.fixed_dictionaries({"instruction": said, "instances": instances}),
}
many = st.sampled_from(sorted(ROWS)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.lists(ROWS[shape], min_size=1, max_size=5))
)
fields = st.sampled_from(["prompt", "instruction", "id", "lang", "messages", "responses", "chosen"])
some_bytes = st.binary(max_size=60) | st.text(alphabet='{}[]",:\n\t ab1', max_size=40).map(str.encode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@settings(deadline=None)
@given(many)
def test_every_row_is_a_record_or_a_drop(folder: Path, given_rows: tuple[str, list[Any]]) -> None:
    shape, rows = given_rows
    (folder / "a.jsonl").write_bytes(lines(rows))
    reading, records, drops = read(folder / "a.jsonl")
    assert (reading.format, reading.num_rows) == (shape, len(rows))
    assert sorted(item.id for item in [*records, *drops]) == sorted(f"s-{i + 1}" for i in range(len(rows)))


@settings(deadline=None)
@given(many, st.sampled_from(["a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "wrapped.json", "a.parquet", "no_suffix"]))
def test_containers_agree(folder: Path, given_rows: tuple[str, list[Any]], file: str) -> None:
    _, rows = given_rows
    for name in ("a.jsonl", file):
        WRITERS[name](folder / name, rows)
    plain, records, drops = read(folder / "a.jsonl")
    other, records_there, drops_there = read(folder / file)
    assert (records, drops) == (records_there, drops_there)
    assert (plain.num_replies, plain.replies_dropped) == (other.num_replies, other.replies_dropped)


@settings(deadline=None)
@given(many, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(folder: Path, given_rows: tuple[str, list[Any]], random: Any) -> None:
    _, rows = given_rows
    (folder / "a.jsonl").write_bytes(lines(rows))
    wanted = read(folder / "a.jsonl")
    shuffled = [{key: row[key] for key in random.sample(sorted(row), len(row))} for row in rows]
    (folder / "a.jsonl").write_bytes(lines(shuffled))
    reading, records, drops = read(folder / "a.jsonl")
    assert (records, reading) == (wanted[1], wanted[0])
    # A drop may keep its row as it was.
    assert [(drop.id, drop.reason, json.loads(drop.item)) for drop in drops] == [
        (drop.id, drop.reason, json.loads(drop.item)) for drop in wanted[2]
    ]


@settings(deadline=None)
@given(many)
def test_what_was_written_comes_back(folder: Path, given_rows: tuple[str, list[Any]]) -> None:
    """A record holds its row's texts, letter by letter."""
    shape, rows = given_rows
    (folder / "a.jsonl").write_bytes(lines(rows))
    for record in read(folder / "a.jsonl")[1]:
        row = rows[int(record.id.removeprefix("s-")) - 1]
        blank = [record.response is None]
        if shape == "alpaca":
            assert record.prompt == row["instruction"] + (f"\n\n{row['input']}" if row["input"].strip() else "")
            assert record.response == row["output"] or blank == [not row["output"].strip()]
        elif shape == "messages":
            assert [record.prompt, record.response] == [turn["content"] for turn in row["messages"]]
        elif shape == "completion":
            assert record.prompt == row["prompt"]
            assert record.response == row["completion"] or blank == [not row["completion"].strip()]
        elif shape == "ranked":
            assert sorted(record.replies) == sorted(reply["text"] for reply in row["responses"])
            places = sorted({reply["rank"] for reply in row["responses"]})
            wanted = sorted((places.index(reply["rank"]), reply["text"]) for reply in row["responses"])
            assert sorted(zip(record.ranks, record.replies, strict=True)) == wanted
        elif shape == "preference":
            kept = [row[key] for key in ("chosen", "rejected") if row[key].strip()]
            assert list(record.replies) == kept
        elif shape == "eft":
            assert [record.prompt, record.response, record.judgement, record.score] == [
                row[key] for key in ("instruction", "response", "judgement", "score")
            ]


@settings(deadline=None, max_examples=300)
@given(many, st.lists(st.tuples(fields, anything)))
def test_no_value_breaks_the_stream(folder: Path, given_rows: tuple[str, list[Any]], changes: list[tuple[str, Any]]) -> None:
    """Whatever stands in a field: with on_bad_row=skip each line is a record or a drop, with fail the error has one line."""
    shape, rows = given_rows
    content = [dict(row) for row in rows]
    for index, (key, value) in enumerate(changes):
        content[index % len(rows)][key] = value
    (folder / "a.jsonl").write_bytes(lines(content))
    settings_here: dict[str, Any] = {"format": shape, "lang": "en", "min_response_words": 1}
    reading, _, drops = read(folder / "a.jsonl", on_bad_row="skip", **settings_here)
    assert reading.num_rows == len(rows)
    if any(drop.reason == "bad_row" for drop in drops):
        with pytest.raises(DataError) as caught:
            read(folder / "a.jsonl", **settings_here)
        assert "\n" not in str(caught.value)
    else:
        assert read(folder / "a.jsonl", **settings_here)[0].num_rows == len(rows)


@settings(deadline=None, max_examples=100)
@given(some_bytes, st.sampled_from(["plain", "gz", "zst"]))
def test_no_bytes_break_the_reader(folder: Path, content: bytes, packed: str) -> None:
    """Any file at all: its rows add up, or one DataError on one line."""
    packers = {"plain": bytes, "gz": gzip.compress, "zst": zstd}
    for suffix in (".jsonl", ".json", ".csv", ".bin"):
        path = folder / f"any{suffix}"
        path.write_bytes(packers[packed](content))
        for shape in ("auto", "prompts"):
            message = ""
            try:
                read(path, on_bad_row="skip", format=shape)
            except DataError as error:
                message = str(error)
            assert "\n" not in message
            assert not message or path.name in message


@settings(deadline=None, max_examples=200)
@given(st.lists(st.dictionaries(st.text(max_size=3), anything, max_size=3) | anything, max_size=4), st.integers(1, 5))
def test_arrays_are_read_as_the_json_module_does(folder: Path, values: list[Any], indent: int) -> None:
    """Streaming an array over tiny windows gives what loading it whole gives."""
    from selfreward.sources import containers
    from selfreward.sources.rows import BadRow

    path = folder / "array.json"
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
    whole = containers._CHUNK
    try:
        containers._CHUNK = indent
        rows = list(containers._array(path))
    finally:
        containers._CHUNK = whole
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert [None if isinstance(row, BadRow) else repr(row.value) for row in rows] == [
        repr(value) if isinstance(value, dict) else None for value in loaded
    ]


def test_reading_twice_gives_the_same(folder: Path) -> None:
    (folder / "twice.jsonl").write_bytes(lines([{"id": "x", "prompt": "p"}, {"id": "x", "prompt": "q"}]))
    source = SourceConfig(path=str(folder / "twice.jsonl"))
    assert list(read_source(source, "s", "fail")[1]) == list(read_source(source, "s", "fail")[1])
