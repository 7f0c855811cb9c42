"""Seed sources: what each format makes of its rows, and how a format is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from source_files import OASST, TABLES, TASKS, WRITERS, lines, read

from selfreward.config import SourceConfig, parse_config
from selfreward.errors import ConfigError, DataError
from selfreward.sources import Record, read_source

USER, SAYS = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}
BOTH = frozenset({"ift", "prompts"})
ALL = frozenset({"ift", "ranked", "prompts"})
ULTRA = {
    "instruction": "why?",
    "source": "x",
    "completions": [
        {"model": "m1", "response": "low", "annotations": {"help": {"Rating": "2"}, "truth": {"Rating": "N/A"}}},
        {"model": "m2", "response": "high", "annotations": {"help": {"Rating": "5"}, "truth": {"Rating": "4"}}},
    ],
}

CASES: dict[str, tuple[str, Any, Record]] = {
    "alpaca": (
        "alpaca",
        {"instruction": "Add", "input": "1 2", "output": "3"},
        Record("s-1", "Add\n\n1 2", BOTH, response="3"),
    ),
    "alpaca without input": ("alpaca", {"instruction": "Hi", "output": "Ho"}, Record("s-1", "Hi", BOTH, response="Ho")),
    "dolly": ("alpaca", {"instruction": "q", "context": "c", "response": "r"}, Record("s-1", "q\n\nc", BOTH, response="r")),
    "messages": ("messages", {"id": 7, "messages": [USER, SAYS]}, Record("s-7", "why?", BOTH, response="because")),
    "message parts": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        Record("s-1", "ab", frozenset({"prompts"})),
    ),
    "sharegpt": (
        "sharegpt",
        {"id": "u", "conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]},
        Record("s-u", "why?", BOTH, response="so"),
    ),
    "completion": ("completion", {"prompt": "p", "completion": "c"}, Record("s-1", "p", BOTH, response="c")),
    "completion as response": ("completion", {"prompt": "p", "response": "c"}, Record("s-1", "p", BOTH, response="c")),
    "completion of turns": (
        "completion",
        {"prompt": [USER], "completion": [SAYS]},
        Record("s-1", "why?", BOTH, response="because"),
    ),
    "self-instruct": (
        "self-instruct",
        {"id": "seed_task_1", "instruction": "Sort", "instances": [{"input": "2 1", "output": "1 2"}]},
        Record("s-seed_task_1", "Sort\n\n2 1", BOTH, response="1 2"),
    ),
    "ranked": (
        "ranked",
        {"prompt": "p", "responses": [{"text": "b", "rank": 3}, {"text": "a", "rank": 1}, {"text": "c", "rank": 3}]},
        Record("s-1", "p", ALL, response="a", replies=("a", "b", "c"), ranks=(0, 1, 1)),
    ),
    "scores beside": (
        "ranked",
        {"prompt": "p", "responses": ["low", "high"], "scores": [0.5, 3]},
        Record("s-1", "p", ALL, response="high", replies=("high", "low"), ranks=(0, 1)),
    ),
    "ultrafeedback ratings": (
        "ranked",
        ULTRA,
        Record("s-1", "why?", ALL, response="high", replies=("high", "low"), ranks=(0, 1)),
    ),
    "ultrafeedback overall": (
        "ranked",
        {**ULTRA, "completions": [item | {"overall_score": 9 - i} for i, item in enumerate(ULTRA["completions"])]},
        Record("s-1", "why?", ALL, response="low", replies=("low", "high"), ranks=(0, 1)),
    ),
    "preference": (
        "preference",
        {"prompt": "p", "chosen": "yes", "rejected": "no"},
        Record("s-1", "p", ALL, response="yes", replies=("yes", "no"), ranks=(0, 1)),
    ),
    "preference with turns": (
        "preference",
        {"prompt": "why?", "chosen": [USER, SAYS], "rejected": [USER, {"role": "assistant", "content": "no"}]},
        Record("s-1", "why?", ALL, response="because", replies=("because", "no"), ranks=(0, 1)),
    ),
    "preference without prompt": (
        "preference",
        {"chosen": [USER, SAYS], "rejected": [USER, {"role": "assistant", "content": "no"}]},
        Record("s-1", "why?", ALL, response="because", replies=("because", "no"), ranks=(0, 1)),
    ),
    "eft": (
        "eft",
        {"instruction": "q", "response": "a", "judgement": "fine", "score": 4},
        Record("s-1", "q", frozenset({"eft"}), response="a", judgement="fine", score=4.0),
    ),
    "prompts": ("prompts", {"prompt": "p", "topic": "t", "lang": "de"}, Record("s-1", "p", frozenset({"prompts"}), lang="de")),
    "instructions": ("prompts", {"instruction": "p"}, Record("s-1", "p", frozenset({"prompts"}))),
    "texts": ("prompts", {"text": "p"}, Record("s-1", "p", frozenset({"prompts"}))),
    "oasst-trees": (
        "oasst-trees",
        {"message_tree_id": "t", "prompt": {"text": "p", "replies": [{"text": "b", "rank": 2}, {"text": "a", "rank": 0}]}},
        Record("s-t", "p", ALL, response="a", replies=("a", "b"), ranks=(0, 1)),
    ),
}

NOT_IN_TABLES = {"completion of turns", "preference with turns", "preference without prompt", "oasst-trees"}
"""A cell of these fields is a text, whatever it looks like."""


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_told_and_read(tmp_path: Path, name: str) -> None:
    shape, row, wanted = CASES[name]
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    reading, records, drops = read(tmp_path / "a.jsonl")
    assert (reading.format, reading.detected, records, drops) == (shape, True, [wanted], [])
    reading, again, _ = read(tmp_path / "a.jsonl", format=shape)
    assert (reading.format, reading.detected, again) == (shape, False, records)


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("name", CASES)
def test_every_container_gives_the_same_records(tmp_path: Path, name: str, file: str) -> None:
    shape, row, wanted = CASES[name]
    WRITERS[file](tmp_path / file, [row])
    reading, records, drops = read(tmp_path / file)
    assert (reading.format, records, drops) == (shape, [wanted], [])


@pytest.mark.parametrize("file", TABLES)
@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_IN_TABLES])
def test_tables_of_text_spell_numbers_and_lists(tmp_path: Path, name: str, file: str) -> None:
    shape, row, wanted = CASES[name]
    TABLES[file](tmp_path / file, [row])
    reading, records, drops = read(tmp_path / file)
    assert (reading.format, records, drops) == (shape, [wanted], [])


def test_messages_beyond_the_first_turn(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [
        [USER, SAYS, USER, SAYS, USER, SAYS],
        [system, USER, SAYS],
        [{"role": "system", "content": " "}, USER, SAYS],
        [SAYS, USER, SAYS],
        [USER],
        [USER, USER, SAYS],
        [USER, {"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, SAYS],
        [USER, {"role": "assistant", "content": "  "}],
    ]
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": row} for row in rows]))
    reading, records, drops = read(tmp_path / "a.jsonl")
    assert [(r.id, r.response) for r in records] == [
        ("s-1", "because"),
        ("s-3", "because"),
        ("s-5", None),
        ("s-6", None),
        ("s-7", None),
        ("s-9", None),
    ]
    assert [(drop.id, drop.reason) for drop in drops] == [("s-2", "system_turn"), ("s-4", "no_user_turn"), ("s-8", "not_text")]
    assert reading.replies_dropped == {
        "deeper_turn": 3, "row_system_turn": 1, "row_no_user_turn": 2, "not_text": 1, "row_not_text": 1, "blank": 1,
    }  # fmt: skip
    reading, records, drops = read(tmp_path / "a.jsonl", role="ift")
    assert [r.id for r in records] == ["s-1", "s-3"]
    assert {drop.id: drop.reason for drop in drops if drop.id in ("s-5", "s-6", "s-7", "s-9")} == {
        "s-5": "no_response",
        "s-6": "no_response",
        "s-7": "not_text",
        "s-9": "blank",
    }


def test_rows_of_one_prompt_make_one_record(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": "a", "helpfulness": 1, "verbosity": 3},
        {"prompt": "p", "response": "b", "helpfulness": 4, "verbosity": 1},
        {"prompt": "q", "response": "c", "helpfulness": 2, "verbosity": 1},
        {"prompt": "q", "response": "d", "helpfulness": None, "verbosity": 1},
        {"prompt": "p", "response": "e", "helpfulness": 0, "verbosity": 1},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    reading, records, drops = read(tmp_path / "a.jsonl")
    assert (reading.format, reading.num_rows, reading.num_replies, drops) == ("ranked", 3, 5, [])
    assert [(r.id, r.prompt, r.replies) for r in records] == [
        ("s-1", "p", ("b", "a")),
        ("s-3", "q", ("c",)),
        ("s-5", "p", ("e",)),
    ]
    assert [r.roles for r in records] == [ALL, BOTH, BOTH]
    assert reading.replies_dropped == {"unranked": 1}
    assert reading.notes == {"order by helpfulness": "the highest is the best"}


@pytest.mark.parametrize(("first", "note"), [(0, "0 is the best"), (1, "1 is the best")])
def test_which_rank_is_best_is_said(tmp_path: Path, first: int, note: str) -> None:
    rows = [{"prompt": "p", "responses": [{"text": "a", "rank": first}, {"text": "b", "rank": first + 1}]}]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    reading, records, _ = read(tmp_path / "a.jsonl")
    assert reading.notes == {"order by rank": note}
    assert (records[0].replies, records[0].ranks) == (("a", "b"), (0, 1))


def test_one_field_orders_all_replies_of_a_row(tmp_path: Path) -> None:
    replies = [
        {"text": "a", "rank": 1, "score": 9},
        {"text": "b", "rank": None, "score": 1},
        {"text": "c", "rank": 0, "score": 5},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": "p", "responses": replies}]))
    reading, records, _ = read(tmp_path / "a.jsonl")
    assert records[0].replies == ("c", "a")
    assert reading.replies_dropped == {"unranked": 1}


def test_wanting_ranked_replies(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one", "responses": [{"text": "a", "rank": 0}]},
        {"prompt": "tied", "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 2}]},
        {"prompt": "none", "responses": [{"text": "a", "rank": None}, {"text": "b", "rank": None}]},
        {"prompt": "good", "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1}]},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    reading, records, drops = read(tmp_path / "a.jsonl", role="ranked")
    assert [(r.prompt, r.roles) for r in records] == [("good", {"ranked"})]
    assert [drop.reason for drop in drops] == ["one_reply", "all_tied", "unranked"]
    assert reading.replies_dropped == {"row_one_reply": 1, "row_all_tied": 2, "unranked": 2}


def test_preferences_that_do_not_fit(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "same", "rejected": "same"},
        {"prompt": "p", "chosen": [USER, SAYS, USER, SAYS], "rejected": [USER, SAYS]},
        {"prompt": [{"role": "system", "content": "s"}, USER], "chosen": [SAYS], "rejected": [{**SAYS, "content": "no"}]},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    reading, records, drops = read(tmp_path / "a.jsonl")
    assert (records, [drop.reason for drop in drops]) == ([], ["chosen_is_rejected", "multi_turn", "system_turn"])
    assert reading.num_replies == 6


def test_filters_by_words_and_language(tmp_path: Path) -> None:
    english = "Please tell me what the weather is going to be like tomorrow"
    rows = [
        {"prompt": english, "completion": "one two three"},
        {"prompt": english, "completion": "one"},
        {"prompt": english, "completion": "one two three four five six"},
        {"prompt": english + " and the day after", "completion": "one two three"},
        {"prompt": "Bitte sag mir doch, wie das Wetter morgen wird", "completion": "one two three"},
        {"prompt": "Bitte sag mir doch, wie das Wetter wird", "lang": "en", "completion": "one two three"},
        {"prompt": english, "lang": "de", "completion": "one two three"},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    limits = {"min_response_words": 2, "max_response_words": 5, "max_prompt_words": 12, "lang": "en"}
    reading, records, drops = read(tmp_path / "a.jsonl", role="ift", **limits)
    assert [r.id for r in records] == ["s-1", "s-6"]
    assert {drop.id: drop.reason for drop in drops} == {
        "s-2": "too_short", "s-3": "too_long", "s-4": "prompt_too_long", "s-5": "lang", "s-7": "lang",
    }  # fmt: skip
    assert reading.replies_dropped == {"too_short": 1, "too_long": 1, "row_prompt_too_long": 1, "row_lang": 2}
    _, records, _ = read(tmp_path / "a.jsonl", **limits)
    assert [(r.id, r.response, r.roles) for r in records][1] == ("s-2", None, {"prompts"})


def test_a_ranked_set_closes_up_where_a_reply_is_too_short(tmp_path: Path) -> None:
    replies = [{"text": "x", "rank": 0}, {"text": "one two", "rank": 1}, {"text": "one two three", "rank": 4}]
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": "p", "responses": replies}]))
    reading, records, _ = read(tmp_path / "a.jsonl", min_response_words=2)
    assert records == [Record("s-1", "p", frozenset({"ranked", "prompts"}), replies=("one two", "one two three"), ranks=(0, 1))]
    assert reading.replies_dropped == {"too_short": 1}


def test_ids(tmp_path: Path) -> None:
    ids = ["a", "a", None, 3, "a-2", "", "a"]
    rows = [{"prompt": f"p{i}", "completion": "c"} | ({} if own is None else {"id": own}) for i, own in enumerate(ids)]
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines(rows))
    assert [r.id for r in read(tmp_path / "a.jsonl", label="x")[1]] == ["x-a", "x-a-3", "x-4", "x-3", "x-a-2", "x-7", "x-a-8"]
    assert [r.id for r in read(tmp_path / "a.jsonl", label="")[1]][:3] == ["a", "a-3", "4"]


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines([{"prompt": "2", "completion": "c"}]))
    (tmp_path / "a.jsonl.gz").write_bytes(lines([{"prompt": "1", "completion": "c"}]))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.jsonl").write_text("{")
    (tmp_path / "sub").mkdir()
    reading, records, _ = read(tmp_path)
    assert [(r.id, r.prompt) for r in records] == [("s-a-1", "1"), ("s-b-1", "2")]
    assert [Path(name).name for name in reading.files] == ["a.jsonl.gz", "b.jsonl"]
    assert reading.ignored == ["README.md", "sub"]


def test_the_seed_folder_keeps_its_ids_and_splits(tmp_path: Path) -> None:
    ranked = {
        "prompt": "r",
        "responses": [{"text": "bad", "rank": 1}, {"text": "good", "rank": 0}, {"text": "tied", "rank": 1}],
    }
    tied = {"prompt": "t", "responses": [{"text": "x", "rank": 0}, {"text": "y", "rank": 0}]}
    files: dict[str, list[Any]] = {
        "ift": [{"id": "own", "prompt": "p", "response": "r"}],
        "eft": [{"instruction": "q", "response": "a", "judgement": "j", "score": 3}],
        "ranked": [ranked, tied],
        "heldout_prompts": [{"prompt": "h"}],
        "heldout_ranked": [ranked],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_bytes(lines(rows))
    (tmp_path / "notes.txt").write_text("x")
    reading, records, drops = read(tmp_path, label="")
    assert (reading.format, reading.detected, reading.num_rows, reading.num_replies, drops) == ("seed-folder", True, 6, 10, [])
    assert [(r.id, r.split, sorted(r.roles)) for r in records] == [
        ("ift-1", "train", ["ift"]),
        ("eft-1", "train", ["eft"]),
        ("ranked-1", "train", ["ranked"]),
        ("ranked-2", "train", ["ranked"]),
        ("heldout-1", "heldout", ["prompts"]),
        ("heldout-ranked-1", "heldout", ["ranked"]),
    ]
    assert (records[2].replies, records[2].ranks) == (("bad", "good", "tied"), (1, 0, 1)), "in the order of the file"
    assert reading.ignored == ["notes.txt"]
    assert read(tmp_path, label="lab")[1][0].id == "lab-ift-1"
    assert [r.id for r in read(tmp_path, label="", role="ranked")[1]] == ["ranked-1", "ranked-2", "heldout-ranked-1"]
    with pytest.raises(ConfigError, match=r"split=train does not fit a seed folder"):
        read(tmp_path, split="train")


@pytest.mark.parametrize(
    ("row", "role", "words"),
    [
        ({"prompt": "p"}, "ift", ["role=ift", "format prompts", "offers prompts"]),
        ({"prompt": "p", "completion": "c"}, "ranked", ["role=ranked", "format completion", "ift, prompts"]),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "eft", ["role=eft", "format preference"]),
    ],
)
def test_a_role_that_the_format_cannot_offer(tmp_path: Path, row: Any, role: str, words: list[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    with pytest.raises(ConfigError) as caught:
        read_source(SourceConfig(path=str(tmp_path / "a.jsonl"), role=role), "s", "fail")  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "why?", "chosen": [USER, SAYS], "rejected": [USER, {**SAYS, "content": "n"}], "messages": [USER, SAYS]}],
        [{"prompt": "p", "response": "r", "score": 3}],
        [{"instruction": "p", "response": "r", "rating": 3}],
    ],
)
def test_what_may_be_two_formats_is_an_error_until_one_is_set(tmp_path: Path, rows: list[Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    with pytest.raises(DataError, match=r"may be \w+ or (preference|ranked): .*set the source's `format`"):
        read(tmp_path / "a.jsonl")
    shape = "preference" if "chosen" in rows[0] else "ranked"
    assert len(read(tmp_path / "a.jsonl", format=shape)[1]) == 1


def test_split_and_labels_reach_the_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": "p"}]))
    assert read(tmp_path / "a.jsonl", split="heldout")[1] == [Record("s-1", "p", frozenset({"prompts"}), "heldout")]


def test_source_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="no response fits"):
        parse_config({"name": "x", "seed": {"sources": [{"path": "x", "min_response_words": 5, "max_response_words": 4}]}})
    with pytest.raises(ValidationError):
        SourceConfig(lang="english language")
    with pytest.raises(ConfigError, match=r"has no path; set its `path`"):
        read_source(SourceConfig(), "s", "fail")
    with pytest.raises(ConfigError, match="format=lab"):
        read_source(SourceConfig(path="x", format="lab"), "s", "fail")


@pytest.mark.skipif(not TASKS.exists(), reason="the shared real data is not here")
def test_the_real_self_instruct_tasks() -> None:
    reading, records, drops = read(TASKS)
    assert (reading.format, reading.num_rows, reading.num_replies, drops) == ("self-instruct", 175, 175, [])
    assert all(record.roles == BOTH for record in records)
    row = json.loads(TASKS.read_text(encoding="utf-8").splitlines()[1])
    assert records[1].prompt == row["instruction"] + "\n\n" + row["instances"][0]["input"]
    assert read(TASKS, role="prompts")[1][1].roles == {"prompts"}


@pytest.mark.skipif(not OASST.exists(), reason="the shared real data is not here")
def test_the_real_questions_of_mt_bench_have_no_known_format() -> None:
    with pytest.raises(DataError, match=r"unknown format: its first rows have the fields .*'turns'.*set the source's `format`"):
        read(OASST.parent / "mt_bench_questions.jsonl")
