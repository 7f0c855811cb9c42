"""Seed sources: the file formats, the Open Assistant split, and cleaning."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import SeedConfig
from selfreward.errors import DataError
from selfreward.filters import normalise
from selfreward.stages._oasst import load_oasst
from selfreward.stages._sources import SeedData, load_files
from selfreward.stages.seed import clean
from selfreward.types import Demonstration, EftExample, Prompt, RankedSet

TREES = Path(__file__).parents[2].parent / "shared" / "data" / "oasst_en_trees.jsonl"
RANKED = {"prompt": "why?", "responses": [{"text": "good", "rank": 0}, {"text": "bad", "rank": 1}, {"text": "bad2", "rank": 1}]}


def write_folder(folder: Path, **files: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def minimal(folder: Path, **files: list[Any]) -> Path:
    ift, heldout = [{"prompt": "hello", "response": "hi"}], [{"prompt": "unseen"}]
    return write_folder(folder, **({"ift": ift, "heldout_prompts": heldout} | files))


def test_all_five_files(tmp_path: Path) -> None:
    eft = {"instruction": "q", "response": "a", "judgement": "fine. Score: 4", "score": 4}
    data = load_files(minimal(tmp_path, eft=[eft], ranked=[RANKED], heldout_ranked=[RANKED]))
    assert data.ift == (Demonstration("ift-1", "hello", "hi"),)
    assert data.prompts_heldout == (Prompt("heldout-1", "unseen", "heldout"),)
    assert data.eft_train == (EftExample("eft-1", "q", "a", "fine. Score: 4", 4.0),)
    assert data.ranked_train == (RankedSet("ranked-1", "why?", ("good", "bad", "bad2"), (0, 1, 1)),)
    assert data.ranked_heldout[0].id == "heldout-ranked-1"
    assert data.num_in == 5


def test_optional_files_may_be_absent_and_blank_lines_and_extra_keys_do_not_matter(tmp_path: Path) -> None:
    folder = minimal(tmp_path)
    (folder / "ift.jsonl").write_text(
        '\ufeff{"prompt": "a", "response": "b", "source": "x"}\n\n{"prompt": "c", "response": "d"}\n'
    )
    data = load_files(folder)
    assert [item.id for item in data.ift] == ["ift-1", "ift-3"]
    assert (data.eft_train, data.ranked_train, data.ranked_heldout) == ((), (), ())


@pytest.mark.parametrize(
    ("file", "row", "words"),
    [
        ("ift", {"prompt": "p"}, ["'response'", "is missing"]),
        ("ift", {"prompt": "  ", "response": "r"}, ["'prompt'", "not blank"]),
        ("ift", {"prompt": 3, "response": "r"}, ["'prompt'", "got 3"]),
        ("ift", ["p", "r"], ["must be a JSON object"]),
        ("heldout_prompts", {"text": "p"}, ["'prompt'", "['text']"]),
        ("eft", {"instruction": "i", "response": "r", "judgement": "j", "score": "4"}, ["'score'", "number"]),
        ("eft", {"instruction": "i", "response": "r", "judgement": "j", "score": True}, ["'score'", "got True"]),
        ("eft", {"instruction": "i", "response": "r", "judgement": "j", "score": float("nan")}, ["'score'", "finite"]),
        ("ranked", {"prompt": "p", "responses": [{"text": "t", "rank": 0}]}, ["'responses'", "at least two"]),
        ("ranked", {"prompt": "p", "responses": "none"}, ["'responses'", "list of objects"]),
        (
            "ranked",
            {"prompt": "p", "responses": [{"text": "t", "rank": 0}, {"text": "u", "rank": 0.5}]},
            ["'responses[1].rank'"],
        ),
        ("heldout_ranked", {"prompt": "p", "responses": [{"text": "", "rank": 0}] * 2}, ["'responses[0].text'"]),
    ],
)
def test_a_malformed_row_names_file_line_and_field(tmp_path: Path, file: str, row: Any, words: list[str]) -> None:
    good = {
        "ift": {"prompt": "p", "response": "r"},
        "heldout_prompts": {"prompt": "p"},
        "eft": {"instruction": "i", "response": "r", "judgement": "j", "score": 1},
        "ranked": RANKED,
        "heldout_ranked": RANKED,
    }
    folder = minimal(tmp_path, **{file: [good[file], row]})
    with pytest.raises(DataError) as caught:
        load_files(folder)
    message = str(caught.value)
    assert f"{file}.jsonl line 2" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("content", [b'{"prompt": "a", ', b'{"prompt": "\xff"}', b"not json"])
def test_broken_json_or_encoding_names_file_and_line(tmp_path: Path, content: bytes) -> None:
    folder = minimal(tmp_path)
    (folder / "ift.jsonl").write_bytes(b'{"prompt": "a", "response": "b"}\n' + content)
    with pytest.raises(DataError, match=r"ift.jsonl line 2: not JSON in UTF-8"):
        load_files(folder)


def test_missing_folder_or_required_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; set seed.path"):
        load_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no heldout_prompts.jsonl"):
        load_files(write_folder(tmp_path, ift=[{"prompt": "p", "response": "r"}]))


def test_clean_counts_every_row() -> None:
    data = SeedData(
        ift=(
            Demonstration("1", "Hello  there", "x"),
            Demonstration("2", "hello there", "x"),
            Demonstration("3", "hello there", "y"),
            Demonstration("4", "SECRET", "x"),
            Demonstration("5", "more", "x"),
        ),
        eft_train=(EftExample("e1", "secret ranked", "r", "j", 1.0), EftExample("e2", "open", "r", "j", 1.0)),
        ranked_train=(RankedSet("r1", "secret", ("a", "b"), (0, 1)),),
        prompts_heldout=(Prompt("h1", "secret", "heldout"), Prompt("h2", "Secret ", "heldout"), Prompt("h3", "s2", "heldout")),
        ranked_heldout=(RankedSet("k1", "secret ranked", ("a", "b"), (0, 1)),),
    )
    cleaned = clean(data, SeedConfig(num_ift=2, num_heldout_prompts=1))
    assert [item.id for item in cleaned.ift] == ["1", "3"]
    assert [item.id for item in cleaned.eft_train] == ["e2"]
    assert cleaned.ranked_train == ()
    assert [item.id for item in cleaned.prompts_heldout] == ["h1"]
    assert {drop.id: drop.reason for drop in cleaned.drops} == {
        "2": "duplicate", "4": "heldout", "5": "over_limit", "e1": "heldout", "r1": "heldout", "h2": "duplicate",
        "h3": "over_limit",
    }  # fmt: skip
    assert cleaned.num_in == data.num_in == cleaned.num_items + len(cleaned.drops)


def test_clean_keeps_out_heldout_prompts_that_this_run_does_not_use() -> None:
    data = SeedData(
        ift=(Demonstration("1", "unused held-out prompt", "x"), Demonstration("2", "free", "x")),
        eft_train=(),
        ranked_train=(),
        prompts_heldout=(Prompt("h1", "used", "heldout"), Prompt("h2", "unused held-out prompt", "heldout")),
        ranked_heldout=(),
    )
    assert [item.id for item in clean(data, SeedConfig(num_heldout_prompts=1)).ift] == ["2"]


def tree(number: int, replies: list[dict[str, Any]] | None = None, **root: Any) -> dict[str, Any]:
    fields = {"message_id": f"t{number}", "text": f"question {number}", "lang": "en", "deleted": False, "review_result": True}
    if replies is None:
        replies = [reply("best", 0), reply("worse", 1)]
    return {"message_tree_id": f"t{number}", "tree_state": "ready_for_export", "prompt": fields | {"replies": replies} | root}


def reply(text: str, rank: int | None, **fields: Any) -> dict[str, Any]:
    return {"text": text, "rank": rank, "lang": "en", "deleted": False, "review_result": True, "replies": []} | fields


def write_trees(path: Path, trees: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in trees), encoding="utf-8")
    return path


SMALL = SeedConfig(num_ift=4, num_eft=4, num_heldout_prompts=2, num_heldout_ranked=2)


def test_oasst_reads_first_turns_and_splits_them_apart(tmp_path: Path) -> None:
    data = load_oasst(write_trees(tmp_path / "t.jsonl", [tree(i) for i in range(10)]), SMALL)
    assert [len(data.ranked_heldout), len(data.ranked_train), len(data.prompts_heldout), len(data.ift)] == [2, 2, 2, 4]
    texts = [item.prompt for item in (*data.ift, *data.ranked_train, *data.ranked_heldout)] + [
        p.text for p in data.prompts_heldout
    ]
    assert len(set(texts)) == 10
    assert {item.response for item in data.ift} == {"best"}
    assert data.ranked_train[0].responses == ("best", "worse")
    assert data.ranked_train[0].ranks == (0, 1)
    assert data.num_in == 10


def test_oasst_split_depends_on_ids_and_not_on_the_files_order(tmp_path: Path) -> None:
    trees = [tree(i) for i in range(12)]
    one = load_oasst(write_trees(tmp_path / "a.jsonl", trees), SMALL)
    two = load_oasst(write_trees(tmp_path / "b.jsonl", trees[::-1]), SMALL)
    assert (one.ift, one.ranked_train, one.prompts_heldout) == (two.ift, two.ranked_train, two.prompts_heldout)


def test_oasst_ranked_trees_that_are_left_join_the_eft_sets(tmp_path: Path) -> None:
    trees = [tree(i) for i in range(12)] + [tree(i, [reply("only", 0)]) for i in range(12, 20)]
    path = write_trees(tmp_path / "t.jsonl", trees)
    data = load_oasst(path, SMALL)
    assert [len(data.ranked_heldout), len(data.prompts_heldout), len(data.ift)] == [2, 2, 4]
    assert {drop.reason for drop in data.drops} == {"over_limit"}
    left = [json.loads(drop.item) for drop in data.drops]
    assert all(item["replies"] == ["only"] for item in left), "no ranked tree is left over, and rejects hold the whole tree"
    assert len(data.ranked_train) > 2
    assert data.num_in == 20
    none = load_oasst(path, SMALL.model_copy(update={"num_eft": 0}))
    assert none.ranked_train == ()


def test_oasst_small_file_shares_out_in_proportion(tmp_path: Path) -> None:
    config = SeedConfig(num_ift=20, num_eft=20, num_heldout_prompts=5, num_heldout_ranked=5)
    data = load_oasst(write_trees(tmp_path / "t.jsonl", [tree(i) for i in range(20)]), config)
    assert [len(data.ranked_heldout), len(data.ranked_train), len(data.prompts_heldout), len(data.ift)] == [2, 6, 2, 10]
    assert not data.drops, "what rounding down leaves goes to EFT"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (tree(99) | {"tree_state": "growing"}, "not_ready"),
        (tree(99, lang="de"), "lang"),
        (tree(99, deleted=True), "deleted"),
        (tree(99, review_result=False), "unreviewed"),
        (tree(99, review_result=None), "unreviewed"),
        (tree(99, synthetic=True), "synthetic"),
        (tree(99, text=" "), "blank"),
        (tree(99, text="Question  3"), "duplicate"),
    ],
)
def test_oasst_drops_unusable_trees_with_a_reason(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    data = load_oasst(write_trees(tmp_path / "t.jsonl", [*(tree(i) for i in range(10)), bad]), SMALL)
    assert [(drop.id, drop.reason) for drop in data.drops] == [("t99", reason)]
    kept = json.loads(data.drops[0].item)
    assert kept.get("text", kept.get("prompt")) == bad["prompt"]["text"]
    assert data.num_in == 11


def test_oasst_replies_left_out_are_counted_and_a_lost_best_reply_makes_no_ift(tmp_path: Path) -> None:
    replies = [
        reply("gone", 0, deleted=True),
        reply("second", 1),
        reply("third", 3),
        reply("unranked", None),
        reply("nein", 2, lang="de"),
    ]
    trees = [tree(i, replies) for i in range(4)] + [tree(i) for i in range(4, 10)]
    data = load_oasst(write_trees(tmp_path / "t.jsonl", trees), SMALL)
    assert data.notes["replies_dropped"] == {"deleted": 4, "lang": 4, "unranked": 4}
    assert {item.response for item in data.ift} == {"best"}
    sets = [item for item in (*data.ranked_train, *data.ranked_heldout) if item.responses[0] == "second"]
    assert all((item.responses, item.ranks) == (("second", "third"), (0, 1)) for item in sets)


def test_oasst_with_nothing_to_train_on_says_what_was_dropped(tmp_path: Path) -> None:
    path = write_trees(tmp_path / "t.jsonl", [tree(i, lang="fr") for i in range(3)])
    with pytest.raises(DataError, match=r"leaves no tree for ranked_heldout: 0 usable trees, dropped \{'lang': 3\}"):
        load_oasst(path, SMALL)


def test_oasst_message_export_is_refused_by_field(tmp_path: Path) -> None:
    path = write_trees(tmp_path / "m.jsonl", [{"message_id": "x", "text": "hello"}])
    with pytest.raises(DataError, match=r"m.jsonl line 1: field 'prompt' is missing"):
        load_oasst(path, SMALL)


def test_oasst_reads_gzip_and_names_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(tree(i)) + "\n" for i in range(10)).encode())
    path.write_bytes(whole)
    assert load_oasst(path, SMALL).num_in == 10
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"t.jsonl.gz cannot be read after line"):
        load_oasst(path, SMALL)


@pytest.mark.skipif(not TREES.is_file(), reason="needs ../shared/data/oasst_en_trees.jsonl beside the repository")
def test_oasst_on_real_trees() -> None:
    data = load_oasst(TREES, SeedConfig(num_ift=24, num_eft=40, num_heldout_prompts=8, num_heldout_ranked=6))
    assert data.num_in == 70
    assert [len(data.ift), len(data.prompts_heldout), len(data.ranked_heldout)] == [24, 8, 6]
    training = {normalise(item.prompt) for item in (*data.ift, *data.ranked_train)}
    held_out = {normalise(item.text) for item in data.prompts_heldout} | {
        normalise(item.prompt) for item in data.ranked_heldout
    }
    assert not training & held_out
    assert all(item.ranks[0] == 0 and len(item.ranks) == len(item.responses) for item in data.ranked_train)
