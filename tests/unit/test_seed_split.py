"""Seed records -> pool -> five tables: nothing is lost, nothing is shared, who is held out depends on ids alone."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seed_bench import SMALL, Splits, prompt_text, row, tree

from selfreward.config import SeedConfig
from selfreward.filters import normalise, rouge_l
from selfreward.sources.digests import Digests
from selfreward.sources.records import Record
from selfreward.stages import _pool
from selfreward.stages._pool import SPLITS, SplitName
from selfreward.stages._split import GROUPS, share_out, shared_prompts

WORDS = st.sampled_from("sun moon star sea sand salt".split())
ROLES = st.sampled_from(["ift", "ranked", "eft", "prompts"])
SIDES = st.sampled_from(["auto", "auto", "train", "heldout"])
ROWS = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=6), ROLES, SIDES, st.integers(0, 1)), max_size=60)


def made(rows: list[Any]) -> list[Record]:
    return [
        row(f"r{number}", " ".join(words), role, side, lang=f"x{other}" if other else None)
        for number, (words, role, side, other) in enumerate(rows)
    ]


@settings(deadline=None)
@given(ROWS, st.sampled_from([0.3, 0.7, 1.0]))
def test_no_record_is_lost_and_no_prompt_is_shared(rows: list[Any], max_overlap: float) -> None:
    splits = Splits(made(rows), SMALL.model_copy(update={"max_overlap": max_overlap}))
    ids = [id_ for split in SPLITS for id_ in splits.ids[split]] + [drop.id for drop in splits.drops]
    assert sorted(ids) == sorted(f"r{number}" for number in range(len(rows)))
    for a in SPLITS:
        for b in SPLITS:
            if GROUPS[a] == GROUPS[b]:
                continue
            for one in splits.records[a]:
                for other in splits.records[b]:
                    assert normalise(one.prompt) != normalise(other.prompt)
                    assert rouge_l(one.prompt, other.prompt) <= max_overlap
    prompts = {split: [record.prompt for record in splits.records[split]] for split in SPLITS}
    assert not list(shared_prompts(prompts, max_overlap))
    limits = {"ift": 4, "eft_train": 4, "prompts_heldout": 2, "ranked_heldout": 2, "ranked_train": 16}
    assert all(len(splits.ids[split]) <= limits[split] for split in SPLITS)


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_what_auto_rows_become_depends_on_their_ids_and_not_on_their_order(rows: list[Any], chance: Any) -> None:
    distinct = {normalise(record.prompt): record for record in made(rows) if record.split == "auto"}
    records = list(distinct.values())
    shuffled = list(records)
    chance.shuffle(shuffled)
    assert Splits(records).ids == Splits(shuffled).ids


@pytest.mark.parametrize("num_rows", [200, 3000])
def test_a_bounded_pool_splits_as_an_unbounded_one(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    records = [tree(number) for number in range(num_rows)]
    bounded = Splits(records)
    monkeypatch.setattr(_pool, "SLACK_ROWS", 10**6)
    whole = Splits(records)
    assert bounded.ids == whole.ids
    assert bounded.by_reason == whole.by_reason


def test_the_pool_is_bounded() -> None:
    dropped: list[str] = []
    pool = _pool.Pool(SMALL, lambda drop, source: dropped.append(drop.reason))
    for number in range(5000):
        pool.take(row(f"r{number}", prompt_text(number), "ift", "train"), 0)
    kept = pool.candidates()
    assert len(kept) + len(dropped) == 5000
    assert len(kept) == _pool.pool_limits(SMALL)["ift"] < 300
    assert [item.record.id for item in kept] == [f"r{number}" for number in range(len(kept))], "the first of the file stay"


@given(st.lists(st.text(max_size=3)))
def test_digests_are_a_set(texts: list[str]) -> None:
    digests, known = Digests(), set()
    for text in texts:
        assert digests.add(text) == (text not in known)
        known.add(text)
    assert all(text in digests for text in known)
    assert "another text" not in digests


def test_digests_stay_a_set_when_they_are_merged() -> None:
    digests = Digests(str(number) for number in range(200_000))
    assert all(str(number) in digests for number in range(0, 200_000, 97))
    assert not any(digests.add(str(number)) for number in range(0, 200_000, 97))
    assert digests.add("200000")


ASKED = st.fixed_dictionaries({split: st.integers(0, 50) for split in SPLITS})
SUPPLY = st.dictionaries(st.frozensets(st.sampled_from(SPLITS), min_size=1), st.integers(1, 80), max_size=6)


@given(ASKED, SUPPLY)
def test_shares_are_fair_and_can_be_served(asked: dict[SplitName, int], supply: dict[frozenset[SplitName], int]) -> None:
    served = frozenset().union(*supply)
    asked = {split: number if split in served else 0 for split, number in asked.items()}
    quotas = share_out(asked, supply)
    assert all(0 <= quotas[split] <= asked[split] for split in asked)
    assert all(quotas[split] >= 1 for split in asked if asked[split])
    for split in asked:
        alone = sum(number for splits, number in supply.items() if split in splits)
        assert quotas[split] <= max(1, alone)
    if all(sum(n for splits, n in supply.items() if split in splits) >= sum(asked.values()) for split in asked if asked[split]):
        assert quotas == asked


def test_shares_of_one_supply_do_not_depend_on_another() -> None:
    asked: dict[SplitName, int] = dict.fromkeys(SPLITS, 0) | {"ift": 3200, "eft_train": 1630}
    supply: dict[frozenset[SplitName], int] = {frozenset(["ift"]): 10, frozenset(["eft_train"]): 3}
    assert share_out(asked, supply) == dict.fromkeys(SPLITS, 0) | {"ift": 10, "eft_train": 3}


def test_trees_are_split_apart() -> None:
    splits = Splits(tree(number) for number in range(10))
    assert splits.sizes == {"ranked_heldout": 2, "prompts_heldout": 2, "ranked_train": 2, "ift": 4}
    assert len({record.prompt for records in splits.records.values() for record in records}) == 10
    assert not splits.drops


def test_a_small_file_shares_out_in_proportion() -> None:
    config = SeedConfig(num_ift=20, num_eft=20, num_heldout_prompts=5, num_heldout_ranked=5)
    splits = Splits([tree(number) for number in range(20)], config)
    assert splits.sizes == {"ranked_heldout": 2, "prompts_heldout": 2, "ranked_train": 6, "ift": 10}
    assert not splits.drops, "what rounding down leaves goes to EFT"


def test_ranked_sets_that_are_left_join_the_eft_ones() -> None:
    trees = [tree(number) for number in range(12)] + [tree(number, ("only",)) for number in range(12, 20)]
    splits = Splits(trees)
    assert (len(splits.ids["ranked_heldout"]), len(splits.ids["prompts_heldout"]), len(splits.ids["ift"])) == (2, 2, 4)
    assert set(splits.by_reason) == {"over_limit"}
    assert all(json.loads(drop.item)["replies"] == ["only"] for drop in splits.drops), "rejects hold the whole row"
    assert len(splits.ids["ranked_train"]) > 2
    none = Splits(trees, SMALL.model_copy(update={"num_eft": 0}))
    assert none.ids["ranked_train"] == []


def test_scarce_ranked_sets_are_shared_before_prompts_take_them() -> None:
    config = SeedConfig(num_ift=50, num_eft=8, num_heldout_prompts=50, num_heldout_ranked=4)
    for start in range(0, 1000, 100):
        trees = [tree(start + number) for number in range(4)] + [tree(start + number, ("only",)) for number in range(4, 80)]
        splits = Splits(trees, config)
        assert (len(splits.ids["ranked_heldout"]), len(splits.ids["ranked_train"])) == (2, 2)


def test_explicit_splits_keep_the_order_of_their_file() -> None:
    records = [row(f"i{n}", prompt_text(n), "ift", "train") for n in range(9)]
    records += [row(f"h{n}", prompt_text(100 + n), "prompts", "heldout") for n in range(3)]
    splits = Splits(records)
    assert splits.ids["ift"] == ["i0", "i1", "i2", "i3"]
    assert splits.ids["prompts_heldout"] == ["h0", "h1"]
    assert splits.by_reason == {"over_limit": 6}


def test_every_row_counts() -> None:
    records = [
        row("1", "Hello  there", "ift", "train", response="x"),
        row("2", "hello there", "ift", "train", response="x"),
        row("3", "hello there", "ift", "train", response="y"),
        row("4", "SECRET", "ift", "train"),
        row("5", "more", "ift", "train"),
        row("6", "still more", "ift", "train"),
        row("e1", "secret ranked", "eft", "train"),
        row("e2", "open", "eft", "train"),
        row("r1", "secret", "ranked", "train"),
        row("h1", "secret", "prompts", "heldout"),
        row("h2", "Secret ", "prompts", "heldout"),
        row("h3", "s2", "prompts", "heldout"),
        row("k1", "secret ranked", "ranked", "heldout"),
        row("x1", "a held-out target", "eft", "heldout"),
    ]
    config = SMALL.model_copy(update={"num_ift": 3, "num_heldout_prompts": 1, "max_overlap": 1.0})
    splits = Splits(records, config)
    assert {split: ids for split, ids in splits.ids.items() if ids} == {
        "ift": ["1", "3", "5"], "eft_train": ["e2"], "prompts_heldout": ["h1"], "ranked_heldout": ["k1"],
    }  # fmt: skip
    assert splits.reasons == {
        "2": "duplicate", "4": "overlaps_heldout", "6": "over_limit", "e1": "overlaps_heldout", "r1": "overlaps_heldout",
        "h2": "duplicate", "h3": "over_limit", "x1": "unusable_split",
    }  # fmt: skip
    assert splits.splitter.overlaps["eft_train"] == {"ranked_heldout": 1}
    assert splits.splitter.overlaps["ift"] == {"prompts_heldout": 1}


def test_a_held_out_prompt_that_this_run_does_not_use_is_kept_out_all_the_same() -> None:
    records = [
        row("1", "unused held-out prompt", "ift", "train"),
        row("2", "free", "ift", "train"),
        row("h1", "used", "prompts", "heldout"),
        row("h2", "unused held-out prompt", "prompts", "heldout"),
    ]
    splits = Splits(records, SMALL.model_copy(update={"num_heldout_prompts": 1}))
    assert splits.ids["ift"] == ["2"]
    assert splits.reasons["1"] == "overlaps_heldout"


def test_a_near_copy_of_an_unused_held_out_prompt_is_kept_out_too() -> None:
    records = [
        row("1", "name three towns in the far north of the land", "ift", "train"),
        row("2", "free", "ift", "train"),
        row("h1", "used", "prompts", "heldout"),
        row("h2", "name three towns in the far north of the country", "prompts", "heldout"),
        row("e", "name three towns in the far north of a country", "eft", "heldout"),
        row("3", "name the three towns in the far north of a country", "ift", "auto"),
    ]
    splits = Splits(records, SMALL.model_copy(update={"num_heldout_prompts": 1}))
    assert (splits.ids["ift"], splits.reasons["1"], splits.reasons["3"]) == (["2"], "overlaps_heldout", "overlaps_heldout")
    exact = Splits(records, SMALL.model_copy(update={"num_heldout_prompts": 1, "max_overlap": 1.0}))
    assert exact.ids["ift"] == ["1", "2", "3"]


@pytest.mark.parametrize("max_overlap", [0.7, 1.0])
@pytest.mark.parametrize("side", ["train", "auto"])
def test_copies_of_a_held_out_prompt_take_no_place_from_others(max_overlap: float, side: Any) -> None:
    asked = "name three towns in the far north of the country"
    held_out = row("h", asked, "prompts", "heldout")
    near = [asked + (f" {number}" if max_overlap < 1 else "") for number in range(400)]
    copies = [row(f"c{n}", text, "ift", side, response=f"reply {n}") for n, text in enumerate(near)]
    good = [row(f"g{number}", prompt_text(number), "ift", side) for number in range(50)]
    splits = Splits([held_out, *copies, *good], SMALL.model_copy(update={"max_overlap": max_overlap}))
    assert len(splits.ids["ift"]) == 4
    assert all(id_.startswith("g") for id_ in splits.ids["ift"])
    if side == "train":
        assert splits.ids["ift"] == ["g0", "g1", "g2", "g3"]
    assert splits.num_in == len(splits.drops) + sum(splits.sizes.values())


def test_a_near_copy_is_the_same_prompt() -> None:
    records = [
        row("h", "name three towns in the far north of the country", "prompts", "heldout"),
        row("e", "name three towns in the far north of the land", "eft"),
        row("e2", "write a poem about the wide and open sea", "eft"),
        row("i", "please write a poem about the wide and open sea", "ift"),
        row("i2", "how many days are in a week", "ift"),
    ]
    splits = Splits(records)
    assert splits.reasons == {"e": "overlaps_heldout", "i": "overlaps_eft"}
    assert (splits.ids["eft_train"], splits.ids["ift"]) == (["e2"], ["i2"])
    exact = Splits(records, SMALL.model_copy(update={"max_overlap": 1.0}))
    assert exact.reasons == {}


def test_the_two_held_out_tables_may_ask_the_same_when_their_source_says_so() -> None:
    named = [row("k", "the same", "ranked", "heldout"), row("h", "the same", "prompts", "heldout")]
    assert Splits(named).sizes == {"ranked_heldout": 1, "prompts_heldout": 1}
    found = [row(f"k{number}", "the same" if number else "not that", "ranked") for number in range(2)]
    splits = Splits([*found, row("h", "the same", "prompts"), row("h2", "another one", "prompts")])
    held_out = [record.prompt for split in ("ranked_heldout", "prompts_heldout") for record in splits.records[split]]
    assert len(set(held_out)) == len(held_out)
    assert list(splits.reasons.values()) == ["overlaps_heldout"], "who of the two equal ones comes first depends on their ids"


def test_a_reject_keeps_a_score_of_zero() -> None:
    dropped = json.loads(_pool.drop_of(row("e", "p", "eft", score=0.0), "over_limit").item)
    assert dropped["score"] == 0.0
    assert "ranks" not in dropped
    assert "lang" not in dropped


def test_the_only_ranked_set_teaches_and_measures_not() -> None:
    splits = Splits([row("k", "the only one", "ranked"), *(row(f"i{n}", prompt_text(n), "ift") for n in range(5))])
    assert (splits.ids["ranked_heldout"], splits.ids["ranked_train"]) == ([], ["k"])


def test_a_held_out_table_that_a_source_names_is_whole() -> None:
    records = [row("h", "the only one", "prompts", "heldout"), *(tree(number) for number in range(20))]
    splits = Splits(records)
    assert splits.ids["prompts_heldout"] == ["h"]
    assert len(splits.ids["ranked_heldout"]) == 2, "the other one is still held out of the rest"


def test_ready_targets_and_ranked_sets_stand_side_by_side() -> None:
    ranked = [row(f"r{number}", prompt_text(number), "ranked", "train") for number in range(40)]
    ready = [row(f"e{number}", prompt_text(100 + number), "eft") for number in range(3)]
    splits = Splits([*ranked, *ready], SMALL.model_copy(update={"num_eft": 5}))
    assert len(splits.ids["eft_train"]) == 3
    assert len(splits.ids["ranked_train"]) == 8 * 1, "two more targets need one set; eight are kept for each"
    enough = Splits([*ranked, *ready], SMALL.model_copy(update={"num_eft": 3}))
    assert (len(enough.ids["eft_train"]), enough.ids["ranked_train"]) == (3, [])
