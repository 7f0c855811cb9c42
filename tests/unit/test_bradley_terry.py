"""Bradley-Terry strengths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward.errors import DataError
from selfreward.evals.bradley_terry import PRIOR, Game, fit, rank_models


def games(first, second, wins, ties, losses):
    scores = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return [Game(f"{first}{second}{number}", first, second, score) for number, score in enumerate(scores)]


def test_two_models_have_the_logit_of_the_win_share():
    strengths = rank_models(["a", "b"], games("b", "a", 60, 20, 20), seed=1, samples=200)
    assert strengths["a"].value == 0
    assert strengths["b"].value == pytest.approx(math.log((70 + PRIOR) / (30 + PRIOR)), abs=1e-4)
    assert strengths["b"].low < strengths["b"].value < strengths["b"].high
    assert strengths["b"].n == 100


def test_three_models_agree_with_the_fixed_point_of_the_likelihood():
    wins = np.array([[0, 10, 4.0], [20, 0, 9], [16, 21, 0]])
    strengths = np.exp(fit(wins))
    met = wins + PRIOR * (wins + wins.T > 0)
    for _ in range(5000):  # Zermelo's iteration: the likelihood's own fixed point
        games_ = met + met.T
        strengths = np.array(
            [met[i].sum() / sum(games_[i, j] / (strengths[i] + strengths[j]) for j in range(3) if j != i) for i in range(3)]
        )
    assert fit(wins) == pytest.approx(np.log(strengths / strengths[0]), abs=1e-4)


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32), st.sampled_from([1, 30, 5000]))
def test_at_the_strengths_wins_are_as_many_as_expected(num, seed, most):
    """The likelihood's slope is 0 there, also where somebody won everything; many fits at once are the single ones."""
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, most + 1, size=(3, num, num)) * rng.integers(0, 2, size=(3, num, num)).astype(float)
    for table in wins:
        np.fill_diagonal(table, 0)
    together = fit(wins)
    for table, strengths in zip(wins, together, strict=True):
        assert fit(table) == pytest.approx(strengths, abs=1e-9, nan_ok=True)
        known = ~np.isnan(strengths)
        table = table[np.ix_(known, known)]
        counted = table + PRIOR * (table + table.T > 0)
        gaps = strengths[known][:, None] - strengths[known][None, :]
        expected = ((counted + counted.T) / (1 + np.exp(-gaps))).sum(axis=1)
        assert expected == pytest.approx(counted.sum(axis=1), abs=1e-6 * most + 1e-9)
        assert strengths[0] == 0


def test_a_model_that_never_lost_has_a_finite_strength():
    strengths = rank_models(["a", "b"], games("b", "a", 30, 0, 0), seed=1, samples=50)
    assert 4 < strengths["b"].value < 8
    assert (strengths["b"].low, strengths["b"].high) == (None, None), "30 wins in a row set no upper end"


def test_only_models_with_wins_both_ways_have_intervals():
    played = [*games("b", "a", 12, 0, 8), *games("c", "b", 9, 0, 0), *games("d", "a", 0, 0, 7), *games("e", "a", 0, 5, 0)]
    found = rank_models(["a", "b", "c", "d", "e"], played, seed=1, samples=60)
    assert [model for model in found if found[model].low is not None] == ["a", "b", "e"]
    assert found["c"].value > found["b"].value > 0 > found["d"].value


def test_a_resample_without_a_model_says_nothing_about_it():
    """The three games of c are ties with b, so c is as strong as b. One resample in twenty has none of them; counted as
    strength 0 these would be the low end of c's interval."""
    found = rank_models(["a", "b", "c"], [*games("b", "a", 33, 0, 4), *games("c", "b", 0, 3, 0)], seed=1, samples=600)
    assert found["c"].value == pytest.approx(found["b"].value, abs=1e-3)
    assert found["b"].low > 1
    assert found["c"].low == pytest.approx(found["b"].low, abs=0.2)


def test_the_order_of_true_strengths_is_found_and_covered():
    rng = np.random.default_rng(3)
    truth = {"a": 0.0, "b": 0.6, "c": 1.2}
    played = []
    for unit in range(400):
        for first, second in (("b", "a"), ("c", "b")):
            chance = 1 / (1 + math.exp(truth[second] - truth[first]))
            played.append(Game(str(unit), first, second, float(rng.random() < chance)))
    found = rank_models(["a", "b", "c"], played, seed=1, samples=300)
    for model in ("b", "c"):
        assert found[model].low < truth[model] < found[model].high


def test_groups_that_never_met_and_strangers_are_refused():
    with pytest.raises(DataError, match="c, d met neither a"):
        rank_models(["a", "b", "c", "d"], [*games("a", "b", 1, 0, 1), *games("c", "d", 1, 0, 1)], seed=1, samples=5)
    with pytest.raises(DataError, match="names 'x' and 'a'"):
        rank_models(["a", "b"], games("x", "a", 1, 0, 0), seed=1, samples=5)
