"""distinct-n and overlap by hand, and their intervals."""

import numpy as np
import pytest

from selfreward.evals.diversity import distinct_n, mean_overlap, words
from selfreward.statistics import NOTHING, Z
from selfreward.types import Estimate


def test_words_are_lower_case_runs_and_single_unspaced_characters():
    assert words("Don't PANIC, 42!") == ["don", "t", "panic", "42"]
    assert words("你好 world") == ["你", "好", "world"]
    assert words("Straße élan") == ["straße", "élan"]


def test_distinct_by_hand():
    texts = ["a b a", "b c"]
    assert distinct_n(texts, 1).value == pytest.approx(3 / 5)
    # Bigrams: ab, ba, bc: all different.
    assert distinct_n(texts, 2).value == 1.0
    assert distinct_n(texts, 1).n == 2


def test_ends_of_the_range():
    assert distinct_n(["x y"] * 10, 1).value == pytest.approx(2 / 20)
    assert distinct_n(["", "!"], 1) == NOTHING
    alone = distinct_n(["one two two"], 1)
    assert (alone.value, alone.low, alone.n) == (pytest.approx(2 / 3), None, 1)


def test_repeats_across_texts_count_once():
    assert distinct_n(["red fox", "red fox", "red owl"], 1).value == pytest.approx(3 / 6)


def test_interval_holds_the_value_and_covers_repeated_draws():
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 61) ** 1.0
    shares /= shares.sum()

    def draw():
        return [" ".join(f"w{index}" for index in rng.choice(60, size=5, p=shares)) for _ in range(60)]

    expected = float(np.mean([distinct_n(draw(), 1).value for _ in range(200)]))
    estimates = [distinct_n(draw(), 1) for _ in range(200)]
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)
    hits = sum(estimate.low <= expected <= estimate.high for estimate in estimates)
    assert hits / 200 >= 0.9


def test_overlap_by_hand():
    # Common words of the pairs: 2 of (3, 3), 0 and 0; F1 = 2 * 2 / 6.
    found = mean_overlap(["red fox runs", "red fox sleeps", "owl"], seed=1)
    assert found.value == pytest.approx((4 / 6) / 3)
    assert found.n == 3


def test_overlap_interval_is_the_jackknife_of_the_whole_statistic():
    texts = [" ".join(f"w{(n * k) % 7}" for k in range(1, 9)) for n in range(12)]
    found = mean_overlap(texts, seed=1)
    without = [mean_overlap(texts[:i] + texts[i + 1 :], seed=1).value for i in range(12)]
    error = (11 / 12 * sum((one - sum(without) / 12) ** 2 for one in without)) ** 0.5
    assert 0 < error < 0.2
    assert (found.low, found.high) == pytest.approx((found.value - Z * error, found.value + Z * error))


def test_overlap_of_equal_and_of_few_texts():
    assert mean_overlap(["a b c"] * 5, seed=1).value == pytest.approx(1)
    assert mean_overlap(["a", ""], seed=1) == Estimate(0.0, None, None, 2)
    assert mean_overlap(["a"], seed=1) == NOTHING
    many = [f"word{n} word{n + 1} word{n + 2}" for n in range(400)]
    assert mean_overlap(many, seed=1).n == 256
    assert mean_overlap(many, seed=1) == mean_overlap(many, seed=1)
