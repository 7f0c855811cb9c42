"""storage.py: seeds, hashes, JSON, rows."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward import types
from selfreward.artifacts import (
    derive_seed,
    fingerprint,
    hash_file,
    hash_model,
    iter_rows,
    read_json,
    read_rows,
    read_rows_metadata,
    write_json,
    write_rows,
    writing_rows,
)
from selfreward.config import JudgeConfig
from selfreward.errors import CorruptArtifactError, DataError, ModelError
from selfreward.types import Drop, Judgement, Message, PreferencePair, Prompt, Vote

PROMPTS = [Prompt(f"p{i}", f"text {i}", "file") for i in range(10)]
PAIR = PreferencePair("a", (Message("user", "hi"), Message("assistant", "yo")), "c", "r", 4.5, 2.0, "a/0", "a/1")


# --- seeds and hashes


def test_derived_seeds_are_stable_numbers():
    assert derive_seed("judge", 1, "p1/0") == 2243397928929195698, "a changed encoding would change every run"
    assert all(0 <= derive_seed("x", i) < 2**63 for i in range(100))


def test_derived_seeds_do_not_collide_on_ambiguous_parts():
    parts = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("1",),
        (1,),
        ("a", ""),
        ("", "a"),
        ("a,", "b"),
        ("a", ",b"),
        ('a","b',),
        ("a", "b"),
    ]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


def test_derived_seeds_do_not_depend_on_the_process():
    code = (
        "from selfreward.storage import derive_seed, fingerprint;print(derive_seed('ü', 1), fingerprint({'b': {3, 1}, 'a': 1}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{derive_seed('ü', 1)} {fingerprint({'a': 1, 'b': {1, 3}})}\n"}


def test_fingerprint_sees_content_not_order():
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert fingerprint(JudgeConfig()) != fingerprint(JudgeConfig(num_votes=4))
    assert fingerprint(PAIR) != fingerprint(replace(PAIR, chosen="d"))
    assert len(fingerprint(None)) == 16
    with pytest.raises(ValueError):
        fingerprint(float("nan"))
    with pytest.raises(TypeError, match="object"):
        fingerprint(object())


def test_hash_model_covers_what_decides_behaviour_and_nothing_else(tmp_path):
    files = {
        "model.safetensors": b"w",
        "config.json": b"{}",
        "tokenizer.model": b"t",
        "chat_template.jinja": b"j",
        "merges.txt": b"m",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    before = hash_model(tmp_path)
    for name in ("optimizer.pt", "training_args.bin", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    assert hash_model(tmp_path) == before
    for name, content in files.items():
        (tmp_path / name).write_bytes(content + b"!")
        assert hash_model(tmp_path) != before, name
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert hash_model(tmp_path) != before, "names count"
    with pytest.raises(ModelError, match="nowhere"):
        hash_model(tmp_path / "nowhere")


# --- JSON and rows


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"t": (1, None), "p": Path("a/b"), "d": Drop("i", "r"), "s": "ü\ud800"})
    assert read_json(tmp_path / "a" / "x.json") == {
        "t": [1, None],
        "p": "a/b",
        "d": {"id": "i", "reason": "r", "item": ""},
        "s": "ü\ud800",
    }


def test_json_holds_no_nan_and_damage_is_named(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir()), "nothing half-written stays"
    (tmp_path / "x.json").write_text('{"a": [1, 2')
    with pytest.raises(CorruptArtifactError, match=r"x\.json"):
        read_json(tmp_path / "x.json")
    with pytest.raises(CorruptArtifactError):
        read_json(tmp_path / "missing.json")


def examples():
    vote = Vote(0, "Score: 4", 4.0, None, 5, "stop")
    failed = Vote(1, "", None, "empty", 0, "stop")
    return [
        PAIR,
        Judgement("p/0", (vote, failed), 4.0),
        Judgement("p/1", (), None),
        Prompt("p", "tab\there\nnew\0line 漢字 🙂", "ift"),
        types.RankedSet("r", "q", ("a", "b"), (0, 1)),
        types.Completion("p/0", "p", "q", 0, "text", 3, "length"),
        types.Generation("p/0", "t", 4, 2, "error", "too_long"),
        types.EftExample("e", "i", "r", "j", 3.5),
        types.Estimate(None, None, None, 0),
        Drop("d", "empty", "{}"),
    ]


@pytest.mark.parametrize("row", examples(), ids=lambda row: type(row).__name__)
def test_rows_round_trip(tmp_path, row):
    path = tmp_path / "rows.parquet"
    write_rows(path, [row, row])
    assert read_rows(path, type(row)) == [row, row]
    write_rows(path, [], type(row))
    assert read_rows(path, type(row)) == []
    assert pq.read_schema(path).names == list(type(row).__dataclass_fields__), "an empty file has its columns"
    write_rows(path, [])
    assert read_rows(path, type(row)) == []


VOTES = st.builds(
    Vote,
    index=st.integers(-(2**63), 2**63 - 1),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    score=st.none() | st.floats(allow_nan=False),
    failure=st.sampled_from([None, "no_score", "too_long"]),
    num_tokens=st.integers(0, 99),
    finish_reason=st.sampled_from(["stop", "length", "error"]),
)


@given(
    st.lists(st.builds(Judgement, completion_id=st.just("c"), votes=st.lists(VOTES, max_size=3).map(tuple), score=st.none()))
)
@settings(max_examples=40, deadline=None)
def test_any_judgement_round_trips(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "r.parquet"
    write_rows(path, rows, Judgement)
    assert read_rows(path, Judgement) == rows


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, [PAIR] * 50, metadata={"prompt_tokens": "3"})
    assert hash_file(tmp_path / "a") == hash_file(tmp_path / "b")
    assert read_rows_metadata(tmp_path / "a") == {"prompt_tokens": "3"}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"chosen": None}, "PreferencePair.chosen: expected str, got NoneType"),
        ({"chosen_score": "4"}, "PreferencePair.chosen_score: expected float"),
        ({"chosen_score": True}, "PreferencePair.chosen_score: expected float, got bool"),
        ({"kind": "other"}, "PreferencePair.kind: expected one of"),
        ({"messages": [Message("user", "x")]}, "PreferencePair.messages: expected a tuple, got list"),
        ({"messages": (Message("user", 3),)}, "PreferencePair.messages[0].content: expected str, got int"),
        ({"messages": ("x",)}, "PreferencePair.messages[0]: expected Message, got str"),
        ({"chosen": "\ud800"}, "PreferencePair rows cannot be stored"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path, change, where):
    with pytest.raises(DataError) as caught:
        write_rows(tmp_path / "x", [replace(PAIR, **change)])
    assert where in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_whole_numbers_are_never_cut(tmp_path):
    with pytest.raises(DataError, match=r"num_tokens: expected int, got float 4\.5"):
        write_rows(tmp_path / "x", [Vote(0, "", None, "empty", 4.5, "stop")])


@dataclass(frozen=True)
class Told:
    number: int


@dataclass(frozen=True)
class ToldList:
    items: tuple[Told, ...]


@dataclass(frozen=True)
class Untold:
    number: int | None


@dataclass(frozen=True)
class UntoldList:
    items: tuple[Untold, ...]


def test_what_never_was_empty_can_be_read_as_what_may_be(tmp_path):
    write_rows(tmp_path / "told", [ToldList((Told(3),))])
    assert read_rows(tmp_path / "told", UntoldList) == [UntoldList((Untold(3),))]
    write_rows(tmp_path / "untold", [UntoldList((Untold(None),))])
    with pytest.raises(CorruptArtifactError, match="does not hold ToldList rows"):
        read_rows(tmp_path / "untold", ToldList)


def test_rows_of_mixed_types_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected Prompt, got Drop"):
        write_rows(tmp_path / "x", [PROMPTS[0], Drop("a", "b")])


@dataclass(frozen=True)
class Odd:
    mapping: dict[str, int]


@dataclass(frozen=True)
class Mixed:
    value: Literal["a", 1]


def test_types_that_cannot_be_stored_are_programming_errors(tmp_path):
    for row in (Odd({}), Mixed("a"), "text"):
        with pytest.raises(TypeError):
            write_rows(tmp_path / "x", [row])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, PROMPTS * 50)
    data = path.read_bytes()
    damaged = [data[:-7], data[:20], b"", data[:60] + bytes(40) + data[100:], b"PAR1" + data[4:-9] + bytes(9)]
    for broken in damaged:
        path.write_bytes(broken)
        with pytest.raises(CorruptArtifactError, match=r"rows\.parquet"):
            read_rows(path, Prompt)
    path.unlink()
    with pytest.raises(CorruptArtifactError):
        read_rows(path, Prompt)


def test_rows_of_another_type_are_not_read(tmp_path):
    write_rows(tmp_path / "x", PROMPTS)
    with pytest.raises(CorruptArtifactError, match="does not hold Drop rows"):
        read_rows(tmp_path / "x", Drop)
    pq.write_table(pa.table({"id": [1], "text": ["a"], "source": ["b"]}), tmp_path / "y")
    with pytest.raises(CorruptArtifactError, match="other types"):
        read_rows(tmp_path / "y", Prompt)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, 1)

    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert read_json(path) == 1


def test_a_stream_of_rows_is_the_same_file(tmp_path):
    rows = [Drop(f"id{index}", "reason", f"{index} " * 20) for index in range(500)]
    for part in (rows, []):
        write_rows(tmp_path / "list.parquet", part, Drop)
        with writing_rows(tmp_path / "stream.parquet", Drop) as write:
            for row in part:
                write(row)
        assert hash_file(tmp_path / "list.parquet") == hash_file(tmp_path / "stream.parquet")


@pytest.mark.parametrize("number", [0, 1, 256, 257, 2000])
def test_rows_one_by_one_are_the_same_rows(tmp_path, number):
    rows = [Judgement(f"c{n}", (Vote(0, f"Score: {n}", float(n), None, 1, "stop"),), float(n)) for n in range(number)]
    path = tmp_path / "a.parquet"
    with writing_rows(path, Judgement) as add:
        for row in rows:
            add(row)
    assert list(iter_rows(path, Judgement)) == read_rows(path, Judgement) == rows
    with pytest.raises(CorruptArtifactError, match="does not hold Prompt rows"):
        next(iter_rows(path, Prompt))


def test_damage_is_met_when_the_rows_come(tmp_path):
    path = tmp_path / "a.parquet"
    with writing_rows(path, Prompt) as add:
        for number in range(3 * 8192):
            add(Prompt(f"p{number}", f"text {number}", "file"))
    data = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[middle + 40 : middle + 60] = bytes(20)
    path.write_bytes(data)
    rows = iter_rows(path, Prompt)
    assert next(rows) == Prompt("p0", "text 0", "file")
    with pytest.raises(CorruptArtifactError, match=r"a\.parquet cannot be read"):
        list(rows)
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        next(iter_rows(tmp_path / "none.parquet", Prompt))


def test_a_long_stream_is_written_in_groups(tmp_path):
    long = "x" * 100_000
    with writing_rows(tmp_path / "long.parquet", Drop) as write:
        for index in range(20_000):
            write(Drop(str(index), "reason", long if index < 200 else ""))
    groups = pq.ParquetFile(tmp_path / "long.parquet").metadata
    sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    assert sum(sizes) == 20_000
    assert sizes[0] < 100, "long rows do not pile up"
    assert [row.id for row in read_rows(tmp_path / "long.parquet", Drop)] == [str(index) for index in range(20_000)]


def test_a_stream_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, [Drop("old", "reason")], Drop)

    def write_two():
        with writing_rows(path, Drop) as write:
            write(Drop("new", "reason"))
            write(Drop("bad", 3))

    with pytest.raises(DataError, match=r"Drop\.reason"):
        write_two()
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]
    assert [row.id for row in read_rows(path, Drop)] == ["old"]
