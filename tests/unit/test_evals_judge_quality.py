"""Judge metrics against hand-computed tables, SciPy, and what theory says of perfect, inverted, constant and random judges."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from selfreward.evals.judge_quality import ScoredSet, judge_measures

RANKS = (0, 1, 2)


def _values(sets, top=5.0):
    """figure -> weighted mean over the sets."""
    totals: dict[str, list[float]] = {}
    for measure in judge_measures(sets, top):
        entry = totals.setdefault(measure.figure, [0.0, 0.0])
        entry[0] += measure.value * measure.weight
        entry[1] += measure.weight
    return {figure: total / weight for figure, (total, weight) in totals.items()}


def test_perfect_judge():
    values = _values([ScoredSet("a", RANKS, (5.0, 3.0, 1.0)), ScoredSet("b", (1, 0, 2), (4.0, 5.0, 2.0))])
    assert values == {
        "judge_scored": 1,
        "judge_pairwise": 1,
        "judge_pairwise_strict": 1,
        "judge_tied": 0,
        "judge_exact_match": 1,
        "judge_spearman": pytest.approx(1),
        "judge_kendall": pytest.approx(1),
        "judge_five_best": 1,
    }


def test_inverted_judge():
    values = _values([ScoredSet("a", RANKS, (1.0, 3.0, 5.0)), ScoredSet("b", (0, 1), (2.0, 3.0))])
    assert values["judge_pairwise"] == values["judge_pairwise_strict"] == values["judge_exact_match"] == 0
    assert values["judge_five_best"] == 0
    assert values["judge_spearman"] == pytest.approx(-1)
    assert values["judge_kendall"] == pytest.approx(-1)


def test_constant_judge_has_chance_accuracy_and_no_correlation():
    """Below chance would mean that ties were counted as errors without saying so."""
    values = _values([ScoredSet("a", RANKS, (4.0, 4.0, 4.0)), ScoredSet("b", (0, 1, 1), (4.0, 4.0, 4.0))])
    assert values["judge_pairwise"] == 0.5
    assert values["judge_pairwise_strict"] == 0
    assert values["judge_tied"] == 1
    assert values["judge_exact_match"] == 0
    assert values["judge_spearman"] == values["judge_kendall"] == 0
    assert "judge_five_best" not in values


def test_random_judge_is_at_chance():
    rng = np.random.default_rng(0)
    sets = [ScoredSet(str(i), RANKS, tuple(float(score) for score in rng.integers(0, 6, 3))) for i in range(4000)]
    values = _values(sets)
    assert values["judge_pairwise"] == pytest.approx(0.5, abs=0.015)
    assert values["judge_tied"] == pytest.approx(1 / 6, abs=0.015)
    assert values["judge_pairwise_strict"] == pytest.approx(5 / 12, abs=0.015)
    assert values["judge_spearman"] == pytest.approx(0, abs=0.03)
    assert values["judge_kendall"] == pytest.approx(0, abs=0.03)
    # Three distinct scores in one given order of six: 5/9 of the draws are distinct.
    assert values["judge_exact_match"] == pytest.approx(5 / 54, abs=0.02)
    assert values["judge_five_best"] == pytest.approx(1 / 3, abs=0.03)


def test_by_hand():
    """Set a: pairs (0,1) right, (0,2) tied, (1,2) wrong. Set b: humans tie the first two, one unscored."""
    sets = [ScoredSet("a", RANKS, (4.0, 3.0, 4.0)), ScoredSet("b", (0, 0, 1, 2), (5.0, 2.0, None, 3.0))]
    rows = {(row.figure, row.unit): (row.value, row.weight) for row in judge_measures(sets, 5.0)}
    assert rows[("judge_pairwise", "a")] == (0.5, 3)
    assert rows[("judge_pairwise_strict", "a")] == (pytest.approx(1 / 3), 3)
    assert rows[("judge_tied", "a")] == (pytest.approx(1 / 3), 3)
    assert rows[("judge_exact_match", "a")] == (0.0, 1)
    # b: scored human-ordered pairs are (0,3) right and (1,3) wrong.
    assert rows[("judge_pairwise", "b")] == (0.5, 2)
    assert rows[("judge_scored", "b")] == (0.75, 4)
    assert rows[("judge_five_best", "b")] == (1.0, 1)
    assert ("judge_exact_match", "b") not in rows


@pytest.mark.parametrize(
    ("ranks", "scores", "spearman", "kendall"),
    [
        # One swap of neighbours among four: rho = 1 - 6 * 2 / (4 * 15), tau = (5 - 1) / 6.
        ((0, 1, 2, 3), (5.0, 3.0, 4.0, 1.0), 1 - 12 / 60, 4 / 6),
        # One tie in the scores: 5 pairs agree of 6, one ties there: tau-b = 5 / sqrt(6 * 5). Score ranks 4, 2.5, 2.5, 1
        # against 4, 3, 2, 1: covariance 4.5, variances 5 and 4.5.
        ((0, 1, 2, 3), (5.0, 3.0, 3.0, 1.0), 4.5 / (5 * 4.5) ** 0.5, 5 / 30**0.5),
        # One tie on either side, in different places: 1 and 2 tie for people, 0 and 1 for the judge: 4 pairs agree, 1 + 1 tie.
        # Ranks 4, 2.5, 2.5, 1 against 3.5, 3.5, 2, 1: covariance 1.5 * 1 + 1.5 * 1.5 = 3.75, variances 4.5 and 4.5.
        ((0, 1, 1, 2), (5.0, 5.0, 3.0, 1.0), 3.75 / 4.5, 4 / 5),
        # The same tie on both sides is no disagreement: tau-b = 5 / sqrt(5 * 5), rho = 1.
        ((0, 1, 1, 2), (5.0, 3.0, 3.0, 1.0), 1.0, 1.0),
        # An unscored response leaves; what is left is two in the wrong order.
        ((0, 1, 2), (1.0, None, 4.0), -1.0, -1.0),
        # All tied by the judge: tells nothing apart.
        ((0, 1, 2), (3.0, 3.0, 3.0), 0.0, 0.0),
        # One scored response, or one rank: nothing to correlate.
        ((0, 1, 2), (3.0, None, None), None, None),
        ((0, 0, 0), (1.0, 2.0, 3.0), None, None),
    ],
)
def test_correlations_by_hand(ranks, scores, spearman, kendall):
    rows = {row.figure: row.value for row in judge_measures([ScoredSet("s", ranks, scores)], 5.0)}
    assert rows.get("judge_spearman") == (None if spearman is None else pytest.approx(spearman))
    assert rows.get("judge_kendall") == (None if kendall is None else pytest.approx(kendall))


def test_sets_that_say_nothing_say_nothing():
    """One response, and responses that people tie: only whether they were scored."""
    for scored in (ScoredSet("a", (0,), (3.0,)), ScoredSet("b", (0, 0), (3.0, 5.0))):
        figures = {row.figure for row in judge_measures([scored], 5.0)}
        assert figures - {"judge_five_best"} == {"judge_scored"}


def test_five_best_counts_replies_not_sets():
    sets = [ScoredSet("a", RANKS, (5.0, 5.0, 5.0)), ScoredSet("b", (0, 1), (5.0, 1.0))]
    assert _values(sets)["judge_five_best"] == pytest.approx(2 / 4)
    assert "judge_five_best" not in _values([ScoredSet("c", (0, 1), (4.6667, 1.0))])


def test_correlations_equal_scipy_with_ties():
    rng = np.random.default_rng(1)
    for _ in range(50):
        size = int(rng.integers(2, 7))
        ranks = tuple(int(rank) for rank in rng.integers(0, 4, size))
        scores = tuple(float(score) for score in rng.integers(0, 4, size))
        rows = {row.figure: row.value for row in judge_measures([ScoredSet("s", ranks, scores)], 5.0)}
        if len(set(ranks)) < 2:
            assert "judge_spearman" not in rows
        elif len(set(scores)) < 2:
            assert rows["judge_spearman"] == 0
        else:
            human = [-rank for rank in ranks]
            assert rows["judge_spearman"] == pytest.approx(stats.spearmanr(human, scores).statistic)
            assert rows["judge_kendall"] == pytest.approx(stats.kendalltau(human, scores).statistic)


def test_pairwise_equals_brute_force():
    rng = np.random.default_rng(2)
    for _ in range(50):
        ranks = tuple(int(rank) for rank in rng.integers(0, 3, 5))
        scores = tuple(None if score == 4 else float(score) for score in rng.integers(0, 5, 5))
        rows = {row.figure: row for row in judge_measures([ScoredSet("s", ranks, scores)], 5.0)}
        points, num_pairs = 0.0, 0
        for i, j in combinations(range(5), 2):
            if ranks[i] == ranks[j] or scores[i] is None or scores[j] is None:
                continue
            num_pairs += 1
            points += 0.5 if scores[i] == scores[j] else float((scores[i] > scores[j]) == (ranks[i] < ranks[j]))
        if num_pairs:
            assert rows["judge_pairwise"].value == pytest.approx(points / num_pairs)
            assert rows["judge_pairwise"].weight == num_pairs
        else:
            assert "judge_pairwise" not in rows


def test_nothing_scored_leaves_only_the_count_of_failures():
    rows = judge_measures([ScoredSet("a", RANKS, (None, None, None))], 5.0)
    assert [(row.figure, row.value, row.weight) for row in rows] == [("judge_scored", 0.0, 3)]


def test_mismatched_lengths_are_refused():
    with pytest.raises(ValueError, match="3 ranks but 2 scores"):
        ScoredSet("a", RANKS, (1.0, 2.0))
