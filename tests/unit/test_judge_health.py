"""What a judge is like: failures, spread, length and position, against tables by hand, SciPy and what theory says."""

import random
from statistics import stdev

import numpy as np
import pytest
from scipy import stats

from selfreward.evals.head_to_head import Comparison, decide
from selfreward.evals.judge_health import JudgedSet, health_figures, judged_set, main_failure, pair_measures
from selfreward.types import Estimate, Judgement, Vote


def judged(*scores: float | None) -> Judgement:
    """A response with these votes; its score is their mean."""
    valid = [score for score in scores if score is not None]
    votes = [Vote(index, "", score, None if score is not None else "no_score", 1, "stop") for index, score in enumerate(scores)]
    return Judgement("r", tuple(votes), sum(valid) / len(valid) if valid else None)


def figures(*sets: JudgedSet) -> dict[str, Estimate]:
    return health_figures(sets, lambda name: 1, 200)


def test_by_hand() -> None:
    found = figures(
        judged_set("a", (10, 20, 30), (judged(1, 3), judged(2, 2), judged(5, None))),
        judged_set("b", (5, 9), (judged(None, None), judged(4, 4))),
    )
    assert found["failed_votes"].value == pytest.approx(3 / 10)
    # Only responses with two valid votes have a spread: sqrt(2), 0 and 0.
    assert found["vote_spread"].value == pytest.approx(stdev([1, 3]) / 3)
    assert (found["vote_spread"].n, found["length_within_sets"].n) == (2, 1)
    # Set b has one scored response, so nothing to correlate; set a: 2, 2, 5 against 10, 20, 30.
    assert found["length_within_sets"].value == pytest.approx(stats.spearmanr([10, 20, 30], [2, 2, 5]).statistic)
    overall = stats.spearmanr([10, 20, 30, 9], [2, 2, 5, 4]).statistic
    assert found["length_overall"].value == pytest.approx(overall)
    assert found["length_overall"].n == 2, "sets, as for the others"
    assert (found["scored"].value, found["scored"].n) == (pytest.approx(4 / 5), 2)


def test_a_judge_that_counts_characters() -> None:
    rng = random.Random(3)
    sets = []
    for number in range(30):
        lengths = tuple(rng.sample(range(1, 400), 4))
        sets.append(judged_set(str(number), lengths, tuple(judged(length / 100, length / 100) for length in lengths)))
    found = figures(*sets)
    assert found["length_within_sets"].value == pytest.approx(1)
    assert found["length_overall"].value == pytest.approx(1)
    assert found["vote_spread"].value == found["failed_votes"].value == 0
    assert found["failed_votes"].high is not None
    assert found["failed_votes"].high > 0, "no failure in 30 sets is no proof that there are none"


def test_a_constant_judge_has_no_taste_and_no_spread() -> None:
    found = figures(*(judged_set(str(n), (n, 2 * n + 1), (judged(3, 3), judged(3, 3))) for n in range(5)))
    assert found["length_within_sets"].value == 0
    assert found["length_within_sets"].n == 5
    assert found["length_overall"] == Estimate(None, None, None, 5)


def test_a_random_judge_has_the_spread_of_its_scores() -> None:
    rng = random.Random(5)
    sets = [
        judged_set(str(n), (3, 2, 1), tuple(judged(*(rng.randrange(6) for _ in range(3))) for _ in range(3)))
        for n in range(1500)
    ]
    found = figures(*sets)
    # The mean standard deviation of three draws from 0..5, over all of them.
    draws = [stdev((a, b, c)) for a in range(6) for b in range(6) for c in range(6)]
    assert found["vote_spread"].value == pytest.approx(sum(draws) / len(draws), abs=0.03)
    assert found["length_within_sets"].value == pytest.approx(0, abs=0.05)


def test_the_overall_length_correlation_has_an_interval_over_sets() -> None:
    """Against SciPy on the responses of resampled sets, written out."""
    rng = random.Random(7)
    sets = []
    for number in range(25):
        lengths = [rng.choice((3, 10, 10, 25, 40)) for _ in range(rng.randint(1, 4))]
        scores = [rng.choice((None, 1, 2, 3, 4)) for _ in lengths]
        sets.append(judged_set(str(number), lengths, [judged(score) for score in scores]))
    kept = [item for item in sets if any(score is not None for score in item.scores)]
    found = health_figures(sets, lambda name: 5, 300)["length_overall"]
    draw, values = np.random.default_rng(5), []
    for _ in range(300):
        rows = [
            (length, score)
            for place in draw.integers(0, len(kept), len(kept))
            for length, score in zip(kept[place].lengths, kept[place].scores, strict=True)
            if score is not None
        ]
        values.append(stats.spearmanr(*zip(*rows, strict=True)).statistic)
    assert found.n == len(kept)
    assert (found.low, found.high) == (pytest.approx(np.percentile(values, 2.5)), pytest.approx(np.percentile(values, 97.5)))
    assert found.low is not None
    assert found.value is not None
    assert found.low < found.value
    assert health_figures(sets, lambda name: 5, 300)["length_overall"] == found, "the same on every call"


def test_one_set_alone_has_no_interval() -> None:
    found = figures(judged_set("a", (1, 2, 3), (judged(1, 2), judged(2, 2), judged(5, 4))))
    assert found["length_overall"] == Estimate(pytest.approx(1), None, None, 1)
    assert figures()["length_overall"] == Estimate(None, None, None, 0)


def test_why_a_response_has_no_score() -> None:
    def failed(*names: str | None) -> str:
        votes = [Vote(0, "", None if name else 3.0, name, 1, "stop") for name in names]  # type: ignore[arg-type]
        return main_failure(Judgement("r", tuple(votes), None))

    assert failed("empty", "too_long", "too_long") == "too_long"
    assert failed("truncated", "empty", None) == "truncated"


def test_nothing_judged() -> None:
    found = figures(judged_set("a", (1, 2), (judged(None), judged(None))))
    assert found["failed_votes"].value == 1
    assert found["vote_spread"].value is None
    assert found["length_within_sets"].value is None


# --- verdicts on pairs ---------------------------------------------------------------------------------------------


def pairs(*rows: tuple[str, str | None, str | None]) -> dict[str, tuple[float, float]]:
    """Figure -> (mean over sets by weight, weight), for contests (id, choice with new first, choice with old first)."""
    comparisons = [Comparison(name, first, second, decide(first, second)) for name, first, second in rows]  # type: ignore[arg-type]
    found = pair_measures(lambda name: name.rpartition("/")[0], comparisons)
    totals: dict[str, tuple[float, float]] = {}
    for row in found:
        value, weight = totals.get(row.figure, (0.0, 0.0))
        totals[row.figure] = (value + row.value * row.weight, weight + row.weight)
    return {figure: (value / weight, weight) for figure, (value, weight) in totals.items()}


def test_perfect_and_inverted_judges_of_pairs() -> None:
    right = pairs(("a/0-1", "new", "new"), ("a/0-2", "new", "new"), ("b/0-1", "new", "new"))
    assert right["judge_pairwise"] == right["judge_pairwise_strict"] == (1, 3)
    assert (right["judge_tied"], right["first_position"]) == ((0, 3), (0.5, 6))
    wrong = pairs(("a/0-1", "old", "old"), ("b/0-1", "old", "old"))
    assert wrong["judge_pairwise"] == wrong["judge_pairwise_strict"] == (0, 2)


def test_a_judge_that_takes_the_first_is_at_chance_and_wholly_biased() -> None:
    found = pairs(("a/0-1", "new", "old"), ("a/0-2", "new", "old"), ("b/0-1", "new", "old"))
    assert found["judge_pairwise"] == (0.5, 3)
    assert found["judge_pairwise_strict"] == (0, 3)
    assert found["first_position"] == (1, 6)


def test_pairs_by_hand() -> None:
    found = pairs(
        ("a/0-1", "new", "new"), ("a/0-2", "tie", "tie"), ("a/1-2", "old", "old"),
        ("b/0-1", None, "new"), ("b/1-2", "new", "tie"),
    )  # fmt: skip
    # Set a: 1, 1/2, 0 of three; set b: one tie (the orders disagree) and one contest without a verdict.
    assert found["judge_pairwise"] == (pytest.approx((1 + 0.5 + 0 + 0.5) / 4), 4)
    assert found["judge_pairwise_strict"] == (pytest.approx(1 / 4), 4)
    assert found["judge_tied"] == (pytest.approx(2 / 4), 4)
    # Verdicts that prefer one: new first, new second, old second, old first, new second, new first.
    assert found["first_position"] == (pytest.approx(3 / 6), 6)


def test_a_random_judge_of_pairs() -> None:
    rng = random.Random(9)
    rows = [(f"s{n // 3}/{n % 3}-9", rng.choice(("new", "old")), rng.choice(("new", "old"))) for n in range(9000)]
    found = pairs(*rows)
    assert found["judge_pairwise"][0] == pytest.approx(0.5, abs=0.02)
    assert found["judge_tied"][0] == pytest.approx(0.5, abs=0.02)
    assert found["first_position"][0] == pytest.approx(0.5, abs=0.02)
