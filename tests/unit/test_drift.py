"""drift.py: what differs between two trees, and what a person calls it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.drift import ABSENT, ACCEPTED, Change, compare, compare_versions, is_accepted, name_accepted, name_changes

A, B = "a" * 64, "b" * 64
CONFIG: dict[str, Any] = {
    "mode": "self-rewarding",
    "judge": {"rubric": "additive", "model": "policy", "panel": [], "num_votes": 3},
    "model": {"path": "m"},
    "seed": {"path": "s", "num_eft": 5},
    "propose": {"path": None, "model": "policy", "template": "t"},
    "engine": {"name": "hf", "script": None},
    "replay": {"num_items": 0, "method": "pairs"},
}


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return {**CONFIG, **{name: {**CONFIG[name], **values} for name, values in sections.items()}}


def said(key: str, field: str, old: Any, new: Any, now: dict[str, Any] = CONFIG) -> str:
    (found,) = name_changes([(key, Change(field, old, new))], CONFIG, now)
    return str(found)


@pytest.mark.parametrize(
    ("key", "field", "old", "new", "sentence"),
    [
        ("sft", "sections.sft.learning_rate", 1e-5, 2e-5, "sft.learning_rate was 1e-05, is 2e-05"),
        ("sft", "random_seed", 1, 2, "random_seed was 1, is 2"),
        ("sft", "versions.torch", "2.12.0", "2.13.0", 'torch was "2.12.0", is "2.13.0"'),
        ("sft", "versions.peft", None, "0.21.0", 'peft was null, is "0.21.0"'),
        ("m1", "sections.rubric", A, B, "the contents of judge.rubric changed"),
        ("round-1/judgements", "sections.members.0.rubric", A, B, "the contents of judge.rubric changed"),
        ("round-1/judgements", "sections.members.0.num_votes", 3, 4, "judge.num_votes was 3, is 4"),
        ("round-1/judgements", "sections.members.0.player.script", A, B, "the contents of judge.model changed"),
        ("round-1/prompts", "sections.template", A, B, "the contents of propose.template changed"),
        ("round-1/prompts", "sections.player.weights", A, B, "the contents of propose.model changed"),
        ("round-1/prompts", "sections.pool", A, B, "the contents of propose.path changed"),
        ("round-1/samples", "sections.player.engine.script", A, B, "the contents of engine.script changed"),
        ("m0", "sections.weights", A, B, "the contents of model.path changed"),
        ("seed", "sections.files.0/ift.jsonl", A, B, "the contents of the seed file ift.jsonl (seed.sources[0]) changed"),
        ("sft/evals", "sections.pairwise_rubric", A, B, "the contents of eval.pairwise_rubric changed"),
        ("sft/evals", "sections.dtype", "float32", "bfloat16", 'model.dtype was "float32", is "bfloat16"'),
        (
            "round-1/pairs",
            "inputs.samples",
            "1" * 16,
            "2" * 16,
            "the contents of the input samples of round-1/pairs changed",
        ),
    ],
)
def test_a_field_is_named_as_the_setting_that_decides_it(key: str, field: str, old: Any, new: Any, sentence: str) -> None:
    assert said(key, field, old, new) == sentence


@pytest.mark.parametrize(
    ("key", "field", "old", "new", "now", "sentence"),
    [
        ("m1", "sections.rubric", A, B, changed(judge={"rubric": "x"}), 'judge.rubric was "additive", is "x"'),
        ("m0", "sections.weights", A, B, changed(model={"path": "n"}), 'model.path was "m", is "n"'),
        ("m1", "inputs.eft", "0" * 16, ABSENT, {**CONFIG, "mode": "no-eft"}, 'mode was "self-rewarding", is "no-eft"'),
        ("m1", "sections.rubric", A, None, {**CONFIG, "mode": "no-eft"}, 'mode was "self-rewarding", is "no-eft"'),
        ("round-1/model", "sections.sft.a", ABSENT, 1, changed(replay={"num_items": 9}), "replay.num_items was 0, is 9"),
        ("round-1/samples", "sections.player.engine.script", ABSENT, A, changed(engine={"name": "scripted"}),
         'engine.name was "hf", is "scripted"'),
        ("round-1/judgements", "sections.members.0.player.script", ABSENT, A, changed(judge={"model": "scripted:random"}),
         'judge.model was "policy", is "scripted:random"'),
        ("seed", "sections.files.0/a.jsonl", A, ABSENT, changed(seed={"path": "z"}), 'seed.path was "s", is "z"'),
    ],
)  # fmt: skip
def test_a_setting_that_is_another_one_says_more_than_what_follows(
    key: str, field: str, old: Any, new: Any, now: dict[str, Any], sentence: str
) -> None:
    assert said(key, field, old, new, now) == sentence


def test_each_difference_is_named_once_with_all_its_stages() -> None:
    found = name_changes(
        [
            ("m1", Change("sections.rubric", A, B)),
            ("m1", Change("random_seed", 1, 2)),
            ("m1/evals", Change("sections.rubric", A, B)),
            ("m1/evals", Change("random_seed", 0, 2)),
        ],
        CONFIG,
        CONFIG,
    )
    assert [(item.name, item.old, item.stages) for item in found] == [
        ("judge.rubric", A, ("m1", "m1/evals")),
        ("random_seed", 1, ("m1",)),
        ("random_seed", 0, ("m1/evals",)),
    ]


def test_panels_and_sources_are_told_apart_by_their_place() -> None:
    panel = changed(judge={"panel": [{}, {}]})
    found = name_changes([("round-1/judgements", Change("sections.members.1.rubric", A, B))], panel, panel)
    assert str(found[0]) == "the contents of judge.panel[1].rubric changed"
    (change,) = compare({"sources": [{"cap": 1}, {"cap": 2}]}, {"sources": [{"cap": 1}, {"cap": 3}]})
    assert change == Change("sources[1].cap", 2, 3)
    (whole,) = compare({"sources": [{"cap": 1}]}, {"sources": []})
    assert whole == Change("sources", [{"cap": 1}], [])


def test_versions_are_compared_as_far_as_the_record_knows_them() -> None:
    record = {"versions": {"torch": "1", "numpy": "2", "gone": "3"}}
    assert compare_versions(record, {"torch": "2", "numpy": "2", "new": "1"}) == [Change("versions.torch", "1", "2")]
    assert compare_versions({}, {"torch": "2"}) == []


def test_what_was_accepted_is_that_very_difference_and_no_other() -> None:
    record = {ACCEPTED: [{"stage": "sft", "field": "random_seed", "old": 1, "new": 2, "date": "any"}]}
    assert is_accepted(Change("random_seed", 1, 2), record)
    assert not is_accepted(Change("random_seed", 1, 3), record)
    assert not is_accepted(Change("random_seed", 2, 1), record)
    assert not is_accepted(Change("random_seed", 1, 2), {})
    (named,) = name_accepted([{"stage": "sft", "field": "random_seed", "old": 1, "new": 2, "date": "any"}], CONFIG)
    assert (str(named), named.stages) == ("random_seed was 1, is 2", ("sft",))


LEAVES = st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2)
TREES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3) | st.lists(inner, max_size=2)
)


@given(st.dictionaries(st.sampled_from("pqr"), TREES), st.dictionaries(st.sampled_from("pqr"), TREES))
def test_trees_differ_in_some_field_exactly_when_they_are_not_equal(old: dict[str, Any], new: dict[str, Any]) -> None:
    import json

    same = json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    assert (compare(old, new) == []) == same
    back = [Change(change.field, change.new, change.old) for change in compare(old, new)]
    assert back == compare(new, old)
