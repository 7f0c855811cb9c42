"""Preference pairs: best over worst, and every way in which a prompt makes none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.stages.pair import make_pair
from selfreward.types import Completion, PreferencePair


def scored(*scores: float, texts: tuple[str, ...] | None = None) -> list[tuple[Completion, float]]:
    texts = texts or tuple(f"text {index}" for index in range(len(scores)))
    return [
        (Completion(f"p/{index}", "p", "do it", index, text, 3, "stop"), score)
        for index, (score, text) in enumerate(zip(scores, texts, strict=True))
    ]


def test_highest_mean_over_lowest_mean() -> None:
    pair = make_pair("p", scored(3.0, 4.5, 1.5, 4.0), 0.0)
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.rejected_id) == ("p/1", "p/2")
    assert (pair.chosen, pair.rejected) == ("text 1", "text 2")
    assert (pair.chosen_score, pair.rejected_score) == (4.5, 1.5)
    assert [(message.role, message.content) for message in pair.messages] == [("user", "do it")]


def test_means_are_not_floored() -> None:
    pair = make_pair("p", scored(11 / 3, 10 / 3), 0.0)
    assert isinstance(pair, PreferencePair)
    assert pair.chosen_id == "p/0"


def test_equal_scores_make_no_pair() -> None:
    assert make_pair("p", scored(4.0, 4.0, 4.0), 0.0) == "tie"


def test_ties_at_the_top_and_the_bottom_go_to_the_lower_index_whatever_the_order() -> None:
    candidates = scored(2.0, 5.0, 2.0, 5.0)
    for order in (candidates, candidates[::-1]):
        pair = make_pair("p", order, 0.0)
        assert isinstance(pair, PreferencePair)
        assert (pair.chosen_id, pair.rejected_id) == ("p/1", "p/0")


def test_margin_must_be_exceeded() -> None:
    assert make_pair("p", scored(3.0, 2.0), 1.0) == "below_margin"
    assert isinstance(make_pair("p", scored(3.5, 2.0), 1.0), PreferencePair)


@pytest.mark.parametrize("candidates", [[], scored(3.0)])
def test_one_judged_candidate_is_too_few(candidates: list[tuple[Completion, float]]) -> None:
    assert make_pair("p", candidates, 0.0) == "too_few_candidates"


def test_the_same_text_never_stands_on_both_sides() -> None:
    assert make_pair("p", scored(4.0, 2.0, texts=("same", "same\n")), 0.0) == "identical_text"


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 3.0, 5.0]), max_size=6), st.sampled_from([0.0, 0.5, 2.0]))
def test_a_pair_is_always_ordered(scores: list[float], margin: float) -> None:
    pair = make_pair("p", scored(*scores), margin)
    if isinstance(pair, PreferencePair):
        assert pair.chosen_score == max(scores)
        assert pair.rejected_score == min(scores)
        assert pair.chosen_score - pair.rejected_score > margin
        assert pair.chosen != pair.rejected
    else:
        assert len(scores) < 2 or max(scores) - min(scores) <= margin
