"""A 95 % interval covers the truth in 93 to 97 % of 2,000 simulated experiments."""

import numpy as np
import pytest

from selfreward.evals.bradley_terry import Game, rank_models
from selfreward.evals.diversity import distinct_n, mean_overlap
from selfreward.statistics import bootstrap_mean, bootstrap_share, paired_difference, unpaired_difference, wilson

DRAWS = 2000
RESAMPLES = 400
RNG = np.random.default_rng


def covered(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def units(values, weights=None):
    weights = np.ones(len(values)) if weights is None else weights
    return {str(n): (float(value), float(weight)) for n, (value, weight) in enumerate(zip(values, weights, strict=True))}


@pytest.mark.parametrize(("share", "n"), [(0.3, 120), (0.5, 250), (0.08, 400)])
def test_wilson(share, n):
    estimates = [wilson(int(wins), n) for wins in RNG(1).binomial(n, share, DRAWS)]
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], share) <= 0.97


def test_bootstrap_of_a_mean_of_oracle_like_scores():
    rng = RNG(2)
    values, chances = np.arange(6), np.array([0.1, 0.1, 0.1, 0.2, 0.2, 0.3])
    truth = float(values @ chances)
    estimates = [bootstrap_mean(units(rng.choice(values, 150, p=chances)), draw, RESAMPLES) for draw in range(DRAWS)]
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], truth) <= 0.97


def test_bootstrap_of_a_share_over_sets_of_unequal_size():
    rng = RNG(3)
    estimates = []
    for draw in range(DRAWS):
        sizes = rng.integers(1, 7, 150)
        # Pairs of one set resemble each other: sets differ in how hard they are.
        chances = rng.beta(7, 3, 150)
        estimates.append(bootstrap_share(units(rng.binomial(sizes, chances) / sizes, sizes), draw, RESAMPLES))
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], 0.7) <= 0.97


def test_paired_and_unpaired_differences():
    rng = RNG(4)
    paired, unpaired = [], []
    for draw in range(DRAWS):
        common = rng.normal(0, 1, 120)
        old, new = common + rng.normal(0, 0.5, 120), common + 0.2 + rng.normal(0, 0.5, 120)
        paired.append(paired_difference(units(new), units(old), draw, RESAMPLES))
        unpaired.append(unpaired_difference(units(new), units(rng.normal(0, 1.1, 90)), draw, RESAMPLES))
    for estimates in (paired, unpaired):
        assert 0.93 <= covered([(e.low, e.high) for e in estimates], 0.2) <= 0.97


def test_score_and_net_of_a_head_to_head():
    """Half wins for ties: what `contest_figures` resamples."""
    rng = RNG(6)
    estimates = [
        bootstrap_share(units(rng.choice([1.0, 0.5, 0.0], 120, p=[0.3, 0.5, 0.2])), draw, RESAMPLES) for draw in range(DRAWS)
    ]
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], 0.55) <= 0.97


def test_jackknife_of_distinct_words():
    """What is covered is the figure's mean over draws of as many texts: it falls with their number and has no other truth."""
    rng = RNG(7)
    words = np.array([f"w{number}" for number in range(3000)])
    chances = 1 / np.arange(1, 3001)
    chances /= chances.sum()
    estimates = []
    for _ in range(DRAWS):
        drawn = np.split(rng.choice(words, 1200, p=chances), 120)
        estimates.append(distinct_n([" ".join(text) for text in drawn], 1))
    truth = float(np.mean([e.value for e in estimates]))
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], truth) <= 0.97


def test_jackknife_of_overlap():
    rng = RNG(8)
    estimates = []
    for _ in range(DRAWS):
        sizes = rng.integers(3, 9, 40)
        texts = [" ".join(rng.choice(list("abcdefgh"), size)) for size in sizes]
        estimates.append(mean_overlap(texts, 1))
    truth = float(np.mean([e.value for e in estimates]))
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], truth) <= 0.97


def test_bradley_terry():
    rng = RNG(5)
    truth = {"a": 0.0, "b": 0.5, "c": 1.0}
    estimates = []
    for draw in range(DRAWS):
        games = [
            Game(str(unit), first, second, float(rng.random() < 1 / (1 + np.exp(truth[second] - truth[first]))))
            for unit in range(150)
            for first, second in (("b", "a"), ("c", "b"), ("c", "a"))
        ]
        estimates.append(rank_models(list(truth), games, draw, 200)["c"])
    assert 0.93 <= covered([(e.low, e.high) for e in estimates], 1.0) <= 0.97
