"""EFT targets: agreement with the human order, thinning out, and judgement pairs for replay."""

from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.config import EftConfig, ReplayConfig
from selfreward.rubrics import load_rubric
from selfreward.stages.eft import agreement, best_judging, select, thin_out
from selfreward.stages.replay import draw_items, judgement_pairs
from selfreward.types import EftExample, FinishReason, Judgement, Vote


def vote(score: float | None, text: str = "", finish: FinishReason = "stop", index: int = 0) -> Vote:
    text = text or f"fine. Score: {score}"
    return Vote(index, text, score, None if score is not None else "no_score", 5, finish)


RANKS = (0, 1, 2)
WHOLE, PAIRS = EftConfig(), EftConfig(agreement="pairwise")


@pytest.mark.parametrize(
    ("ranks", "scores", "whole", "whole_with_ties"),
    [
        ((0, 1, 2), (5, 3, 1), None, None),
        ((0, 1, 2), (5, 3, 3), "disagrees", None),
        ((0, 1, 2), (4, 5, 1), "disagrees", "disagrees"),
        ((2, 0, 1), (0, 4, 2), None, None),
        ((0, 1, 1), (5, 3, 3), None, None),
        ((0, 1, 1), (5, 3, 1), None, None),
        ((0, 1, 1), (3, 3, 1), "disagrees", None),
        ((0, 1, 2), (4, 4, 4), "disagrees", "uncompared"),
        ((0, 0), (1, 5), "uncompared", "uncompared"),
    ],
)
def test_the_whole_order_stands_or_falls(
    ranks: tuple[int, ...], scores: tuple[float | None, ...], whole: str | None, whole_with_ties: str | None
) -> None:
    assert agreement(ranks, scores, WHOLE) == [whole] * len(ranks)
    assert agreement(ranks, scores, EftConfig(ties="allow")) == [whole_with_ties] * len(ranks)


@pytest.mark.parametrize(
    ("ranks", "scores", "pairwise", "with_ties"),
    [
        ((0, 1, 2), (5, 3, 1), [None, None, None], [None, None, None]),
        ((0, 1, 2), (5, 1, 3), [None, "disagrees", "disagrees"], [None, "disagrees", "disagrees"]),
        ((0, 1, 2), (5, 3, 3), [None, "disagrees", "disagrees"], [None, None, None]),
        ((0, 1, 2), (5, None, 3), [None, "unparsed", None], [None, "unparsed", None]),
        ((0, 1, 2), (5, None, None), ["uncompared", "unparsed", "unparsed"], ["uncompared", "unparsed", "unparsed"]),
        ((0, 0, 1), (2, 4, 3), ["disagrees", None, "disagrees"], ["disagrees", None, "disagrees"]),
        ((0, 1), (4, 4), ["disagrees"] * 2, ["uncompared"] * 2),
        ((0, 0), (1, 5), ["uncompared"] * 2, ["uncompared"] * 2),
    ],
)
def test_pairwise_keeps_replies_that_no_pair_speaks_against(
    ranks: tuple[int, ...], scores: tuple[float | None, ...], pairwise: list[str | None], with_ties: list[str | None]
) -> None:
    assert agreement(ranks, scores, PAIRS) == pairwise
    assert agreement(ranks, scores, EftConfig(agreement="pairwise", ties="allow")) == with_ties


def test_in_a_whole_order_only_the_reply_without_a_score_is_unparsed() -> None:
    for ties in ("disagree", "allow"):
        found = agreement((0, 1, 2), (5, None, 1), EftConfig(ties=ties))
        assert found == ["sibling_unparsed", "unparsed", "sibling_unparsed"]
    assert agreement((0, 1), (None, None), WHOLE) == ["unparsed", "unparsed"]


SCORED = st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 5)), min_size=2, max_size=6)


@given(SCORED, st.sampled_from(["disagree", "allow"]))
def test_what_the_whole_order_keeps_pairwise_keeps_too(
    replies: list[tuple[int, int | None]], ties: Literal["disagree", "allow"]
) -> None:
    ranks, scores = [rank for rank, _ in replies], [score for _, score in replies]
    whole = agreement(ranks, scores, EftConfig(ties=ties))
    pairs = agreement(ranks, scores, EftConfig(ties=ties, agreement="pairwise"))
    assert len({reason and reason.removeprefix("sibling_") for reason in whole}) == 1, "they stand and fall together"
    if whole[0] is None:
        assert "disagrees" not in pairs
        assert None in pairs
    kept = [reply for reply, lost in enumerate(pairs) if lost is None]
    for a in kept:
        for b in kept:
            if ranks[a] < ranks[b]:
                assert scores[a] > scores[b] or (ties == "allow" and scores[a] == scores[b])


def test_the_first_judging_that_agrees_on_most_is_kept() -> None:
    votes = [[vote(3), vote(5), vote(5)], [vote(3), vote(None), vote(2)], [vote(1), vote(1), vote(1)]]
    judging, lost = best_judging(RANKS, votes, WHOLE)
    assert [item.score for item in judging] == [5, 2, 1]
    assert lost == [None, None, None]
    votes = [[vote(5, "first"), vote(5, "second")], [vote(2), vote(2)], [vote(1), vote(1)]]
    assert best_judging(RANKS, votes, WHOLE)[0][0].text == "first"
    votes = [[vote(1), vote(5)], [vote(4), vote(3)], [vote(3), vote(None)]]
    judging, lost = best_judging(RANKS, votes, PAIRS)
    assert [item.score for item in judging] == [5, 3, None]
    assert lost == [None, None, "unparsed"]


def test_reasons_for_a_set_without_targets() -> None:
    assert best_judging((0, 1), [[vote(None)], [vote(3)]], WHOLE)[1] == ["unparsed", "sibling_unparsed"]
    assert best_judging((0, 1), [[vote(3), vote(None)], [vote(3), vote(2)]], WHOLE)[1] == ["disagrees"] * 2


def test_a_cut_judgement_is_no_target_even_with_a_score() -> None:
    assert best_judging((0, 1), [[vote(5, finish="length")], [vote(3)]], WHOLE)[1] == ["unparsed", "sibling_unparsed"]


@given(st.lists(st.integers(0, 5), max_size=60), st.sampled_from([0.25, 0.4, 0.7, 1.0]))
def test_no_score_keeps_more_than_its_share(scores: list[int], share: float) -> None:
    table = {f"e{index}": float(score) for index, score in enumerate(scores)}
    dropped = thin_out(table, share)
    left = Counter(score for item, score in table.items() if item not in dropped)
    allowed = max(share, 1 / len(set(scores))) if scores else 1.0
    assert all(count <= allowed * left.total() + 1e-9 for count in left.values())
    assert set(left) == set(table.values())


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 40), st.sampled_from([0.25, 0.4, 0.7, 1.0]))
def test_the_share_holds_for_what_the_limit_leaves(scores: list[int], limit: int, share: float) -> None:
    table = {f"e{index}": float(score) for index, score in enumerate(sorted(scores))}
    lost = select(table, limit, share)
    left = Counter(score for item, score in table.items() if item not in lost)
    assert left.total() <= limit
    allowed = max(share, 1 / len(left)) if left else 1.0
    assert all(count <= allowed * left.total() + 1e-9 for count in left.values())
    assert set(lost.values()) <= {"over_share", "over_limit"}
    if len(table) - len(thin_out(table, share)) <= limit:
        assert lost == dict.fromkeys(thin_out(table, share), "over_share"), "a limit that is not reached changes nothing"


def test_a_cut_through_a_file_that_begins_with_one_score_keeps_its_share() -> None:
    table = {f"e{index}": 4.0 if index < 40 else float(index % 2) for index in range(100)}
    lost = select(table, 50, 0.4)
    left = Counter(score for item, score in table.items() if item not in lost)
    assert left == {4.0: 20, 0.0: 15, 1.0: 15}
    assert Counter(lost.values()) == {"over_share": 20, "over_limit": 30}
    assert all(f"e{index}" not in lost for index in range(20)), "the first of a score stay"


def test_thinning_drops_only_the_crowded_score_and_no_more_than_needed() -> None:
    table = {f"e{index}": 4.0 if index < 12 else float(index % 4) for index in range(24)}
    dropped = thin_out(table, 0.4)
    assert {table[item] for item in dropped} == {4.0}
    assert len(dropped) == 4  # 8 of 20 is 0.4
    assert thin_out(table, 0.4) == dropped


def test_balanced_scores_and_a_single_score_are_left_alone() -> None:
    assert thin_out({"a": 1.0, "b": 2.0}, 0.4) == set()
    assert thin_out({"a": 1.0, "b": 1.0}, 0.4) == set()


ITEM = EftExample("eft-1", "sum it up", "the reply", "right. Score: 4", 4.0)
RUBRIC = load_rubric("additive", "pointwise")


def test_replay_pairs_the_target_over_wrong_votes() -> None:
    votes = (vote(4, "fine. Score: 4"), vote(2, "bad. Score: 2", index=1), vote(5, "top. Score: 5", index=2))
    pairs = judgement_pairs(RUBRIC, ITEM, Judgement("eft-1", votes, None), ReplayConfig(chosen="target"))
    assert not isinstance(pairs, str)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [
        ("right. Score: 4", "bad. Score: 2"),
        ("right. Score: 4", "top. Score: 5"),
    ]
    assert all(pair.kind == "judgement" and "the reply" in pair.messages[0].content for pair in pairs)
    assert [(pair.chosen_score, pair.rejected_score) for pair in pairs] == [(4.0, 2.0), (4.0, 5.0)]


def test_replay_prefers_its_own_right_vote_and_falls_back_to_the_target() -> None:
    votes = (vote(2, "bad. Score: 2"), vote(4, "mine. Score: 4", index=1))
    pairs = judgement_pairs(RUBRIC, ITEM, Judgement("eft-1", votes, None), ReplayConfig(chosen="vote"))
    assert [(pair.chosen, pair.chosen_id) for pair in pairs if not isinstance(pair, str)] == [("mine. Score: 4", "eft-1/1")]
    pairs = judgement_pairs(RUBRIC, ITEM, Judgement("eft-1", votes[:1], None), ReplayConfig(chosen="vote"))
    assert [(pair.chosen, pair.chosen_id) for pair in pairs if not isinstance(pair, str)] == [("right. Score: 4", "eft-1")]


def test_replay_uses_no_failed_or_cut_vote_and_no_vote_twice() -> None:
    failed = (vote(None), vote(1, finish="length", index=1))
    assert judgement_pairs(RUBRIC, ITEM, Judgement("eft-1", failed, None), ReplayConfig()) == "no_valid_vote"
    near = (vote(4), vote(3.5, index=1))
    assert judgement_pairs(RUBRIC, ITEM, Judgement("eft-1", near, None), ReplayConfig()) == "agrees"
    same = (vote(1, "no. Score: 1"), vote(1, "no. Score: 1", index=1))
    pairs = judgement_pairs(RUBRIC, ITEM, Judgement("eft-1", same, None), ReplayConfig())
    assert [pair.rejected_id for pair in pairs if not isinstance(pair, str)] == ["eft-1/0"]


def test_replay_draws_other_items_each_round_in_a_stable_order() -> None:
    items = [EftExample(f"e{index}", "i", "r", "j", 1.0) for index in range(50)]
    first, second = draw_items(items, 10, seed=1), draw_items(items, 10, seed=2)
    assert first == draw_items(items, 10, seed=1)
    assert first != second
    assert [int(item.id[1:]) for item in first] == sorted(int(item.id[1:]) for item in first)
    assert draw_items(items, 99, seed=1) == items
