"""Seed sources: Open Assistant trees and the message table, every reply accounted for."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import OASST, WRITERS, lines, read, write_table

from selfreward.errors import DataError
from selfreward.sources import Reading, Record

MESSAGE = {"lang": "en", "deleted": False, "review_result": True, "synthetic": False}
real = pytest.mark.skipif(not OASST.exists(), reason="the shared real data is not here")


def message(name: str, text: str = "t", rank: int | None = None, replies: Any = (), **fields: Any) -> dict[str, Any]:
    return {"message_id": name, "text": text, **MESSAGE, "replies": list(replies), **fields, "rank": rank}


def tree(root: dict[str, Any], state: str = "ready_for_export") -> dict[str, Any]:
    return {"message_tree_id": root["message_id"], "tree_state": state, "prompt": root}


def table_of(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, one a row, parents first."""
    rows: list[dict[str, Any]] = []
    for item in trees:
        waiting = [(item["prompt"], None)]
        while waiting:
            node, parent = waiting.pop(0)
            about = {"parent_id": parent, "message_tree_id": item["message_tree_id"], "tree_state": item["tree_state"]}
            rows.append({key: value for key, value in node.items() if key != "replies"} | about)
            waiting += [(reply, node["message_id"]) for reply in node.get("replies") or []]
    return rows


def without_ids(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.id)


@real
def test_every_reply_of_the_real_trees_is_accounted_for() -> None:
    reading, records, drops = read(OASST, lang="en")
    assert (reading.format, reading.detected, reading.num_rows) == ("oasst-trees", True, 70)
    assert (len(records), Counter(drop.reason for drop in drops)) == (66, {"synthetic": 4})
    assert reading.num_replies == 727
    assert reading.replies_dropped == {"deeper_turn": 494, "tree_synthetic": 13, "unranked": 3}
    assert sum(len(record.replies) for record in records) == 727 - 494 - 13 - 3
    rows = [json.loads(line) for line in OASST.read_text(encoding="utf-8").splitlines()]
    assert sum(len(row["prompt"]["replies"]) for row in rows) == 233
    assert {record.id for record in records} | {drop.id for drop in drops} == {f"s-{row['message_tree_id']}" for row in rows}
    by_id = {f"s-{row['message_tree_id']}": row["prompt"] for row in rows}
    for record in records:
        replies = by_id[record.id]["replies"]
        best = [reply["text"] for reply in replies if reply.get("rank") == 0]
        assert (record.prompt, record.response) == (by_id[record.id]["text"], best[0] if best else None)
        assert set(record.replies) == {reply["text"] for reply in replies if reply.get("rank") is not None}
    assert "replies" not in json.loads(drops[0].item)


@real
def test_the_real_trees_as_a_message_table(tmp_path: Path) -> None:
    trees = [json.loads(line) for line in OASST.read_text(encoding="utf-8").splitlines()]
    rows = table_of(trees)
    random.Random(0).shuffle(rows)
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    reading, records, drops = read(tmp_path / "a.jsonl", lang="en")
    wanted, from_trees, _ = read(OASST, lang="en")
    assert (reading.format, reading.num_rows, len(drops)) == ("oasst-messages", 70, 4)
    assert (reading.num_replies, reading.replies_dropped) == (wanted.num_replies, wanted.replies_dropped)
    assert len(rows) == reading.num_rows + reading.num_replies
    assert [(r.id, r.prompt, r.response, r.replies) for r in without_ids(records)] == [
        (r.id, r.prompt, r.response, r.replies) for r in without_ids(from_trees)
    ]


def example_trees() -> list[dict[str, Any]]:
    below = [message("d1", replies=[message("d2")]), message("d3")]
    best = message("g2", "a", 0, replies=below)
    kinds = {
        "good": message("good", "q", replies=[message("g1", "b", 3), best, message("g3", "c", 3)]),
        "lang": message("lang", lang="de", replies=[message("l1", rank=0), message("l2", rank=1)]),
        "deleted": message("deleted", deleted=True, replies=[message("x1", rank=0)]),
        "unreviewed": message("unreviewed", review_result=None, replies=[message("u1", rank=0)]),
        "synthetic": message("synthetic", synthetic=True),
        "blank": message("blank", " "),
        "losing": message(
            "losing",
            replies=[
                message("o1", "a", 0, deleted=True),
                message("o2", "b", 1),
                message("o3", "c", 2, lang="fr"),
                message("o4", " ", 3),
                message("o5", "e", None),
                message("o6", "f", 4, review_result=False),
                message("o7", "g", 5, synthetic=True),
            ],
        ),
        "alone": message("alone"),
    }
    return [tree(root) for root in kinds.values()] + [tree(message("early", replies=[message("e1", rank=0)]), "growing")]


def check_example(reading: Reading, records: list[Record], reasons: dict[str, str]) -> None:
    by_id = {record.id: record for record in records}
    assert by_id.keys() == {"s-good", "s-losing", "s-alone"}
    good, losing, alone = by_id["s-good"], by_id["s-losing"], by_id["s-alone"]
    assert (good.response, good.replies[0], set(good.replies), good.ranks) == ("a", "a", {"a", "b", "c"}, (0, 1, 1))
    assert good.roles == {"ift", "ranked", "prompts"}
    assert (losing.response, losing.replies, losing.ranks, losing.roles) == (None, ("b",), (0,), {"prompts"})
    assert (alone.roles, alone.replies) == ({"prompts"}, ())
    assert reasons == {
        "s-lang": "lang", "s-deleted": "deleted", "s-unreviewed": "unreviewed", "s-synthetic": "synthetic",
        "s-blank": "blank", "s-early": "not_ready",
    }  # fmt: skip
    assert reading.replies_dropped == {
        "deeper_turn": 3, "tree_lang": 2, "tree_deleted": 1, "tree_unreviewed": 1, "tree_not_ready": 1,
        "deleted": 1, "lang": 1, "blank": 1, "unranked": 1, "unreviewed": 1, "synthetic": 1,
    }  # fmt: skip
    assert reading.num_replies == 18


@pytest.mark.parametrize("file", ["a.jsonl", "a.json", "a.jsonl.zst"])
def test_what_is_left_out_of_trees(tmp_path: Path, file: str) -> None:
    WRITERS[file](tmp_path / file, example_trees())
    reading, records, drops = read(tmp_path / file, lang="en")
    check_example(reading, records, {drop.id: drop.reason for drop in drops})


@pytest.mark.parametrize("file", ["a.jsonl", "a.parquet", "a.csv"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_what_is_left_out_of_the_table(tmp_path: Path, file: str, seed: int | None) -> None:
    rows = table_of(example_trees())
    if seed is not None:
        random.Random(seed).shuffle(rows)
    if file == "a.csv":
        write_table(tmp_path / file, [{key: "" if value is None else value for key, value in row.items()} for row in rows])
    else:
        WRITERS[file](tmp_path / file, rows)
    reading, records, drops = read(tmp_path / file, lang="en")
    assert reading.format == "oasst-messages"
    check_example(reading, records, {drop.id: drop.reason for drop in drops})


def test_all_languages_unless_one_is_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(example_trees()))
    _, records, drops = read(tmp_path / "a.jsonl")
    assert {"s-lang": "de"}.items() <= {record.id: record.lang for record in records}.items()
    assert "lang" not in {drop.reason for drop in drops}


def test_roles_of_trees(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(example_trees()))
    _, records, drops = read(tmp_path / "a.jsonl", lang="en", role="ift")
    assert [record.id for record in records] == ["s-good"]
    assert {drop.id: drop.reason for drop in drops}.items() >= {"s-losing": "no_usable_reply", "s-alone": "no_response"}.items()


def test_a_bad_message_does_not_take_its_tree_along(tmp_path: Path) -> None:
    rows = table_of(example_trees()[:1])
    rows[1]["text"] = 3
    rows.append({**rows[2]})
    rows.append({**rows[2], "message_id": None})
    rows.append({**rows[2], "message_id": "stray", "parent_id": "nobody"})
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    with pytest.raises(DataError, match=r"line 2: field 'text' must be a text, got 3$"):
        read(tmp_path / "a.jsonl")
    reading, records, drops = read(tmp_path / "a.jsonl", on_bad_row="skip")
    assert [(record.id, record.replies) for record in records] == [("s-good", ("a", "c"))]
    assert [(drop.id, drop.reason) for drop in drops] == [("s-2", "bad_row"), ("s-8", "bad_row"), ("s-9", "bad_row")]
    assert "'g2' stands in the file twice" in drops[1].item
    assert reading.replies_dropped == {"deeper_turn": 3, "no_parent": 1}


flags = st.fixed_dictionaries(
    {},
    optional={
        "lang": st.sampled_from(["en", "de", None]),
        "deleted": st.booleans(),
        "review_result": st.sampled_from([True, False, None]),
        "synthetic": st.booleans(),
        "rank": st.one_of(st.none(), st.integers(0, 4)),
    },
)
nodes = st.recursive(
    st.tuples(st.text("ab ", max_size=3), flags, st.just([])),
    lambda inner: st.tuples(st.text("ab ", max_size=3), flags, st.lists(inner, max_size=3)),
    max_leaves=8,
)


@settings(deadline=None)
@given(roots=st.lists(nodes, min_size=1, max_size=4), seed=st.integers(0, 9), lang=st.sampled_from([None, "en"]))
def test_no_message_is_lost(tmp_path_factory: pytest.TempPathFactory, roots: Any, seed: int, lang: str | None) -> None:
    """Trees and table agree in all counts, and each message is a prompt or a counted reply."""
    count = iter(range(10_000))

    def build(node: Any) -> dict[str, Any]:
        text, fields, replies = node
        return {"message_id": f"m{next(count)}", "text": text, **fields, "replies": [build(reply) for reply in replies]}

    trees = [tree(build(root)) for root in roots]
    folder = tmp_path_factory.mktemp("oasst")
    (folder / "trees.jsonl").write_bytes(lines(trees))
    rows = table_of(trees)
    random.Random(seed).shuffle(rows)
    (folder / "table.jsonl").write_bytes(lines(rows))
    reading, records, drops = read(folder / "trees.jsonl", lang=lang)
    from_table, again, drops_again = read(folder / "table.jsonl", lang=lang)
    assert reading.num_rows == len(trees)
    assert reading.num_rows + reading.num_replies == len(rows)
    assert (from_table.num_replies, from_table.replies_dropped) == (reading.num_replies, reading.replies_dropped)
    assert sorted((d.id, d.reason) for d in drops) == sorted((d.id, d.reason) for d in drops_again)
    assert {(r.id, frozenset(zip(r.replies, r.ranks, strict=True))) for r in records} == {
        (r.id, frozenset(zip(r.replies, r.ranks, strict=True))) for r in again
    }
