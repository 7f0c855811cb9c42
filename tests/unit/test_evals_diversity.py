"""distinct-n by hand and its interval."""

import numpy as np
import pytest

from selfreward.evals.diversity import distinct_n, words
from selfreward.statistics import NOTHING


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
