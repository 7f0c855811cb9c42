"""Intervals against hand-computed values, SciPy, and their promised coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selfreward import statistics
from selfreward.types import Estimate


def _units(values, weights=None):
    weights = weights or [1.0] * len(values)
    return {f"u{i}": (float(v), float(w)) for i, (v, w) in enumerate(zip(values, weights, strict=True))}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(case):
    k, n = case
    estimate = statistics.wilson(k, n)
    oracle = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert estimate.value == k / n
    assert estimate.n == n
    assert estimate.low == pytest.approx(oracle.low, abs=1e-9)
    assert estimate.high == pytest.approx(oracle.high, abs=1e-9)


def test_wilson_by_hand():
    # k=8 of 10: centre (0.8 + 3.8415/20) / (1 + 3.8415/10), half-width by the formula.
    estimate = statistics.wilson(8, 10)
    assert estimate.low == pytest.approx(0.4901625, abs=1e-6)
    assert estimate.high == pytest.approx(0.9433178, abs=1e-6)


def test_wilson_edges():
    assert statistics.wilson(0, 0) == Estimate(None, None, None, 0)
    assert statistics.wilson(0, 5).low == 0.0
    assert statistics.wilson(5, 5).high == 1.0
    with pytest.raises(ValueError, match="successes=6"):
        statistics.wilson(6, 5)


def test_wilson_covers_95_percent():
    for share in (0.1, 0.5, 0.85):
        n = 80
        k = np.arange(n + 1)
        inside = [statistics.wilson(int(i), n).low <= share <= statistics.wilson(int(i), n).high for i in k]
        coverage = float(np.sum(stats.binom.pmf(k, n, share)[inside]))
        assert 0.93 <= coverage <= 0.97


def test_bootstrap_mean_covers_95_percent_for_clusters():
    """Units of unequal weight whose observations are correlated: the case of pairs in a ranked set."""
    rng = np.random.default_rng(3)
    trials, hits = 300, 0
    for trial in range(trials):
        weights = rng.integers(1, 5, size=80)
        values = rng.beta(2, 1, size=80)  # mean 2/3, the same for all observations of a unit
        estimate = statistics.bootstrap_mean(_units(values.tolist(), weights.tolist()), seed=trial, samples=400)
        hits += estimate.low <= 2 / 3 <= estimate.high
    assert 0.91 <= hits / trials <= 0.98


def test_paired_difference_covers_and_is_narrower_than_unpaired():
    rng = np.random.default_rng(4)
    trials, hits, narrower = 200, 0, 0
    for trial in range(trials):
        difficulty = rng.normal(0, 2, size=60)
        old, new = _units(difficulty + rng.normal(0, 0.5, 60)), _units(difficulty + 0.3 + rng.normal(0, 0.5, 60))
        paired = statistics.paired_difference(new, old, seed=trial, samples=400)
        unpaired = statistics.unpaired_difference(new, old, seed=trial, samples=400)
        hits += paired.low <= 0.3 <= paired.high
        narrower += paired.high - paired.low < unpaired.high - unpaired.low
    assert 0.90 <= hits / trials <= 0.985
    assert narrower == trials


def test_bootstrap_mean_is_the_weighted_mean_and_close_to_scipy():
    values = [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 3.5, 1.5, 2.5, 4.5]
    estimate = statistics.bootstrap_mean(_units(values), seed=0, samples=20000)
    oracle = stats.bootstrap((np.array(values),), np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.low == pytest.approx(oracle.low, abs=0.06)
    assert estimate.high == pytest.approx(oracle.high, abs=0.06)
    weighted = statistics.bootstrap_mean(_units([1.0, 0.0], [3.0, 1.0]), seed=0, samples=100)
    assert weighted.value == 0.75


def test_bootstrap_is_seeded_and_does_not_depend_on_memory_blocks(monkeypatch):
    units = _units([0.0, 1.0, 2.0, 5.0, 3.0])
    first = statistics.bootstrap_mean(units, seed=7, samples=500)
    assert statistics.bootstrap_mean(units, seed=7, samples=500) == first
    monkeypatch.setattr(statistics, "_BLOCK", 20)
    assert statistics.bootstrap_mean(units, seed=7, samples=500) == first
    assert statistics.bootstrap_mean(units, seed=8, samples=500) != first


def test_small_n_says_so():
    assert statistics.bootstrap_mean({}, 0, 100) == Estimate(None, None, None, 0)
    assert statistics.bootstrap_mean(_units([3.0]), 0, 100) == Estimate(3.0, None, None, 1)
    assert statistics.bootstrap_mean(_units([3.0, 1.0], [0.0, 1.0]), 0, 100) == Estimate(1.0, None, None, 1)


def test_share_at_the_end_of_its_range_has_an_honest_interval():
    everything = statistics.bootstrap_share(_units([1.0] * 12), 0, 200)
    assert everything == statistics.wilson(12, 12)
    assert everything.low < 0.8
    assert statistics.bootstrap_share(_units([0.0] * 12), 0, 200) == statistics.wilson(0, 12)
    with pytest.raises(ValueError, match="share"):
        statistics.bootstrap_share(_units([2.0, 3.0]), 0, 200)


@pytest.mark.parametrize("value", [0.5, 1 / 3])
def test_units_that_are_all_alike_do_not_make_a_share_certain(value):
    alike = statistics.bootstrap_share(_units([value] * 12), 0, 200)
    oracle = stats.binomtest(round(12 * value), 12).proportion_ci(method="wilson")
    assert (alike.low, alike.high) == pytest.approx((oracle.low, oracle.high))
    assert (alike.value, alike.n) == (pytest.approx(value), 12)
    assert statistics.bootstrap_share(_units([value]), 0, 200) == Estimate(value, None, None, 1)


def test_paired_difference_equals_the_difference_of_the_figures():
    new = {"a": (1.0, 2.0), "b": (0.0, 1.0)}
    old = {"a": (0.5, 1.0), "c": (0.0, 1.0), "gone": (9.0, 0.0)}
    estimate = statistics.paired_difference(new, old, 0, 200)
    assert estimate.value == pytest.approx(2 / 3 - 0.25)
    assert estimate.n == 3
    assert statistics.paired_difference({"a": (1.0, 1.0)}, {"b": (1.0, 1.0)}, 0, 200) == statistics.NOTHING


def test_equal_sides_have_no_difference():
    units = _units([0.0, 1.0, 1.0, 0.0, 1.0])
    assert statistics.paired_difference(units, units, 0, 200) == Estimate(0.0, 0.0, 0.0, 5)


def test_unpaired_difference():
    estimate = statistics.unpaired_difference(_units([3.0, 4.0, 5.0]), _units([1.0, 1.0]), 0, 500)
    assert estimate.value == 3.0
    assert estimate.n == 5
    assert 2.0 <= estimate.low <= 3.0 <= estimate.high <= 4.0
    assert statistics.unpaired_difference({}, _units([1.0]), 0, 100) == statistics.NOTHING


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    without = [(values.sum() - value) / 3 for value in values]
    estimate = statistics.jackknife(float(values.mean()), without, -math.inf, math.inf)
    error = float(values.std(ddof=1)) / 2
    assert estimate.low == pytest.approx(3.5 - statistics.Z * error)
    assert estimate.high == pytest.approx(3.5 + statistics.Z * error)


def test_sign_test():
    assert statistics.sign_test(0, 0) is None
    assert statistics.sign_test(5, 5) == pytest.approx(1.0)
    assert statistics.sign_test(8, 0) == pytest.approx(2 / 256)
    assert statistics.sign_test(0, 8) == pytest.approx(2 / 256)
