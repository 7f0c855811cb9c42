"""`propose.source: file`: the rows of a user's file, in order, once, through the same filters."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from stage_bench import Stages, model, record

from selfreward.artifacts import Artifact, Run, read_rows
from selfreward.config import Config, SourceConfig, parse_config
from selfreward.errors import ConfigError, DataError, DriftError
from selfreward.preflight import check_config
from selfreward.sources import read_source
from selfreward.stages import propose, seed
from selfreward.stages._prompt_file import PromptRow, count_prompts, read_prompt_file
from selfreward.types import Drop, Prompt


def unlike(number: int) -> str:
    return " ".join(f"w{number}{place}" for place in "abcde")


def write_pool(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def rounds(run: Run, number: int) -> list[Artifact]:
    data = seed.run(run)
    made: list[Artifact] = []
    for t in range(1, number + 1):
        made.append(propose.run(run, t, model(run), data, made))
    return made


def lines_of(artifact: Artifact) -> tuple[list[int], dict[int, str]]:
    """(lines accepted, {line: reason} of the others)."""
    accepted = [int(item.id.removeprefix("file-")) for item in read_rows(artifact.path / "prompts.parquet", Prompt)]
    drops = read_rows(artifact.path / "rejects.parquet", Drop)
    return accepted, {int(drop.id.removeprefix("file-")): drop.reason for drop in drops}


def test_each_round_takes_the_next_rows_and_every_row_is_accounted_for(stages: Stages, tmp_path: Path) -> None:
    texts = [unlike(0), "too short", unlike(1), "", "- dash begins this one", unlike(2), unlike(0), unlike(3), unlike(4), "no"]
    path = write_pool(tmp_path / "pool.txt", texts)
    first, second, third = rounds(
        stages.run(propose={"source": "file", "path": path, "num_prompts": 2}, pair={"min_pairs": 0}), 3
    )
    assert lines_of(first) == ([1, 3], {2: "too_short"})
    assert lines_of(second) == ([6, 8], {5: "bad_start", 7: "duplicate"})
    assert lines_of(third) == ([9], {10: "too_short"})
    assert [item.source for item in read_rows(first.path / "prompts.parquet", Prompt)] == ["file", "file"]
    said = [record(artifact)["notes"] for artifact in (first, second, third)]
    assert [(notes["source"], notes["stopped_by"], notes["num_attempts"]) for notes in said] == [
        ("file", "num_prompts", 3),
        ("file", "num_prompts", 4),
        ("file", "pool_exhausted", 2),
    ]
    assert record(second)["counts"] == {"in": 4, "out": 2, "dropped": {"bad_start": 1, "duplicate": 1}}
    assert record(first)["roles"] == {"proposer": "file pool.txt"}
    assert record(first)["tokens"] == {"prompt": 0, "generated": 0}


def test_an_empty_rest_is_an_error_that_says_what_to_do(stages: Stages, tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.txt", [unlike(0), unlike(1)])
    with pytest.raises(DataError, match=r"round-2/prompts: propose\.path='.*pool\.txt' has no rows left .*num_rounds"):
        rounds(stages.run(propose={"source": "file", "path": path, "num_prompts": 2}), 2)
    path = write_pool(tmp_path / "other.txt", ["no", "nope"])
    with pytest.raises(DataError, match=r"none of 2 rows was accepted, refused: \{'too_short': 2\}"):
        rounds(stages.run(name="other", propose={"source": "file", "path": path, "num_prompts": 2}), 1)


def test_attempts_count_rows_looked_at(stages: Stages, tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.txt", ["no"] * 3 + [unlike(0), unlike(1)])
    run = stages.run(propose={"source": "file", "path": path, "num_prompts": 2, "max_attempts": 4})
    first, second = rounds(run, 2)
    assert lines_of(first) == ([4], {1: "too_short", 2: "too_short", 3: "too_short"})
    assert record(first)["notes"]["stopped_by"] == "max_attempts"
    assert lines_of(second) == ([5], {})


def test_no_model_is_asked(stages: Stages, tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.txt", [unlike(0), unlike(1)])
    run = stages.run(engine={"script": str(tmp_path / "gone.json")}, propose={"source": "file", "path": path, "num_prompts": 1})
    nobody = Artifact("m1", tmp_path / "nowhere", "none")
    assert lines_of(propose.run(run, 1, nobody, seed.run(run), []))[0] == [1]


def test_near_copies_of_seed_prompts_earlier_rounds_and_held_out_prompts_are_dropped(stages: Stages, tmp_path: Path) -> None:
    run = stages.run(propose={"source": "file", "path": str(tmp_path / "pool.txt"), "num_prompts": 2})
    data = seed.run(run)
    heldout = read_rows(data.path / "prompts_heldout.parquet", Prompt)[0].text
    near = f"{heldout}!"
    pool = [unlike(0), heldout.upper(), unlike(1), unlike(1)[:-3] + "zzz", near, unlike(2), unlike(3)]
    write_pool(tmp_path / "pool.txt", pool)
    first = propose.run(run, 1, model(run), data, [])
    second = propose.run(run, 2, model(run), data, [first])
    assert lines_of(first) == ([1, 3], {2: "heldout"})
    assert lines_of(second) == ([6, 7], {4: "rouge_l", 5: "heldout"})


def test_how_rows_are_cut_into_batches_changes_nothing(stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [unlike(number // 2) if number % 3 else "no" for number in range(40)]
    path = write_pool(tmp_path / "pool.txt", texts)
    settings = {"source": "file", "path": path, "num_prompts": 8}
    whole = [lines_of(artifact) for artifact in rounds(stages.run(propose=settings), 2)]
    monkeypatch.setattr(propose, "MAX_BATCH", 1)
    assert [lines_of(artifact) for artifact in rounds(stages.run(name="single", propose=settings), 2)] == whole


def test_another_file_content_is_another_stage_and_its_place_is_not(stages: Stages, tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.txt", [unlike(0), unlike(1)])
    settings = {"source": "file", "path": path, "num_prompts": 1}
    made = rounds(stages.run(propose=settings), 1)[0]
    moved = write_pool(tmp_path / "moved.txt", [unlike(0), unlike(1)])
    assert rounds(stages.run(propose={**settings, "path": moved}), 1)[0] == made
    write_pool(tmp_path / "pool.txt", [unlike(0), unlike(2)])
    with pytest.raises(DriftError, match="pool"):
        rounds(stages.run(propose=settings), 1)


def test_edited_unsafe_words_are_another_stage(stages: Stages, tmp_path: Path) -> None:
    words = tmp_path / "unsafe.txt"
    words.write_text("w0a\n")
    path = write_pool(tmp_path / "pool.txt", [unlike(0), unlike(1)])
    settings = {"source": "file", "path": path, "num_prompts": 1, "unsafe_words_file": str(words)}
    assert lines_of(rounds(stages.run(propose=settings), 1)[0]) == ([2], {1: "unsafe"})
    words.write_text("# less\nw0b\n")
    with pytest.raises(DriftError, match="unsafe_words"):
        rounds(stages.run(propose=settings), 1)


@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path: Path, packed: bool) -> None:
    lines = {
        "pool.txt": ["\ufeff Name a river. ", "", "Zähle bis zehn\r"],
        "pool.jsonl": [
            json.dumps({"prompt": "Name a river.", "instruction": "x", "id": 3}),
            "",
            json.dumps({"instruction": "Zähle bis zehn", "input": " "}),
        ],
    }
    for name, rows in lines.items():
        data = "\n".join(rows).encode()
        path = tmp_path / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
        assert list(read_prompt_file(str(path))) == [PromptRow(1, "Name a river."), PromptRow(3, "Zähle bis zehn")]
        assert list(read_prompt_file(str(path), after=1)) == [PromptRow(3, "Zähle bis zehn")]
        assert not list(read_prompt_file(str(path), after=3))
        assert count_prompts(str(path)) == 2


def test_an_instructions_input_belongs_to_the_prompt(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "Sort these numbers.", "input": "3 1 2", "output": "1 2 3", "id": []})
    assert list(read_prompt_file(write_pool(tmp_path / "p.jsonl", [row]))) == [PromptRow(1, "Sort these numbers.\n\n3 1 2")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: must be a JSON object, got \\[1\\]"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"question": "x"}', "line 2: field 'prompt' or 'instruction' or 'text' is missing; the row has \\['question'\\]"),
        ('{"prompt": "half \\ud800"}', "line 2: field 'prompt' holds half of a surrogate pair"),
        ('{"prompt": 7}', "line 2: field 'prompt' must be a text, got 7"),
        ('{"instruction": "x", "input": []}', "line 2: field 'input' must be a text"),
    ],
    ids=["cut off", "array", "nested", "other fields", "surrogate", "number", "input"],
)
def test_malformed_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = write_pool(tmp_path / "pool.jsonl", ['{"prompt": "fine"}', row])
    with pytest.raises(DataError, match=rf"propose\.path: .*pool\.jsonl {message}"):
        count_prompts(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "pool.txt").write_bytes(b"fine\n\xff\xff\n")
    with pytest.raises(DataError, match=r"propose\.path: .*pool\.txt line 2: not text in UTF-8 \(byte 0xff"):
        count_prompts(str(tmp_path / "pool.txt"))
    (tmp_path / "pool.txt.gz").write_bytes(gzip.compress(b"one\n" * 999)[:-9])
    with pytest.raises(DataError, match=r"propose\.path: .*\.gz cannot be read: .*damaged or cut off"):
        count_prompts(str(tmp_path / "pool.txt.gz"))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress("".join(f"Write a poem number {number * 7919}\n" for number in range(5000)).encode()))
    raw[200:260] = b"\xff" * 60
    (tmp_path / "pool.txt.gz").write_bytes(raw)
    with pytest.raises(DataError, match=r"propose\.path: .*pool\.txt\.gz cannot be read: .*damaged"):
        count_prompts(str(tmp_path / "pool.txt.gz"))


def test_every_kind_of_file_is_read_as_seed_sources_are(tmp_path: Path) -> None:
    wanted = [PromptRow(1, "Name a river."), PromptRow(2, 'Count to\nten, "slowly"')]
    rows = [{"prompt": None, "instruction": wanted[0].text}, {"prompt": wanted[1].text, "instruction": "no"}]
    path = tmp_path / "pool"
    for text in (json.dumps(rows, indent=1), json.dumps({"data": rows}), "".join(json.dumps(row) + "\n" for row in rows)):
        path.write_text(text)
        assert list(read_prompt_file(str(path))) == wanted
    path.write_text('prompt,score\nName a river.,1\n"Count to\nten, ""slowly""",2\n')
    assert list(read_prompt_file(str(path))) == wanted
    path.write_bytes(zstandard.compress(path.read_bytes()))
    assert list(read_prompt_file(str(path))) == wanted
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_prompt_file(str(path))) == wanted


def test_lines_of_text_are_prompts_whatever_they_look_like(tmp_path: Path) -> None:
    lines = ['{"prompt": "no JSON here"}', "[1, 2]: what is the sum?", "prompt", "a,b"]
    path = write_pool(tmp_path / "pool.TXT", lines)
    assert list(read_prompt_file(path)) == [PromptRow(number, line) for number, line in enumerate(lines, start=1)]
    with pytest.raises(DataError, match=r"seed\.txt is not JSON lines"):
        read_source(SourceConfig(path=write_pool(tmp_path / "seed.txt", [unlike(0)])), "", "fail")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, r"propose\.path='.*gone\.txt' is no file"),
        ("blank.txt", b" \n\n", r"propose\.path: .*blank\.txt holds blank lines only"),
        ("wide.txt", "wide".encode("utf-16"), r"propose\.path: .*wide\.txt is not text in UTF-8 but in UTF-16"),
        ("words", b"just some words", r"propose\.path: .*words is not JSON lines, a JSON array"),
    ],
)
def test_a_round_looks_at_the_file_before_it_begins(
    stages: Stages, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run = stages.run(propose={"source": "file", "path": str(tmp_path / name), "num_prompts": 1})
    data = seed.run(run)
    with pytest.raises((ConfigError, DataError), match=message):
        propose.run(run, 1, model(run), data, [])
    assert not (run.dir.root / "round-1" / "prompts").exists()


def test_check_looks_at_the_files(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.txt", [unlike(0), unlike(1)])
    words = write_pool(tmp_path / "words.txt", ["# none", "poison"])
    lines = check_config(make_config(propose={"source": "file", "path": path, "unsafe_words_file": words, "lang": "en"}))
    assert f"propose.path: 2 prompts in {path}" in lines
    assert "propose.unsafe_words_file: 1 word or phrase" in lines
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"source": "file", "path": str(tmp_path / "none.txt")}, r"propose\.path='.*none\.txt' is no file"),
        ({"source": "file", "path": str(tmp_path)}, r"propose\.path='.*' is no file"),
        ({"source": "file", "path": write_pool(tmp_path / "none.csv", ["prompt"])}, r"holds no prompt"),
        ({"unsafe_words_file": str(tmp_path / "none")}, r"unsafe_words_file='.*none' cannot be read"),
        ({"unsafe_words_file": write_pool(tmp_path / "hash.txt", ["#"])}, r"holds no word"),
        ({"lang": "xx"}, r"propose\.lang='xx' is not known"),
    ]
    for settings, message in wrong:
        with pytest.raises(ConfigError, match=message):
            check_config(make_config(propose=settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "file"}, r"propose\.source=file needs propose\.path"),
        ({"path": "x.txt"}, r"propose\.path='x\.txt' is not read with propose\.source=self-instruct"),
        (
            {"source": "file", "path": "x.txt", "model": "other"},
            r"propose\.model='other' is not asked with",
        ),
        ({"source": "files"}, r"propose\.source='files'"),
    ],
)
def test_contradictions_are_config_errors(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "propose": settings})
