"""Head-to-head outcomes by hand."""

from itertools import product

import pytest

from selfreward.evals.figures import KINDS, estimate_all
from selfreward.evals.head_to_head import Comparison, compare_by_oracle, comparison_measures, contests, decide, describe
from selfreward.statistics import wilson
from selfreward.types import EvalOutput, Measure


def _output(prompt_id, oracle, text="x", kind="sampled"):
    return EvalOutput(prompt_id, "prompt", kind, text, 1, "stop", oracle)


def test_decide_every_case():
    expected = {("new", "new"): "win", ("old", "old"): "lose"}
    for choices in product(("new", "old", "tie", None), repeat=2):
        want = None if None in choices else expected.get(choices, "tie")
        assert decide(*choices) == want


def test_oracle_comparison():
    new = [
        _output("a", 5.0),
        _output("b", 3.0),
        _output("c", 1.0),
        _output("d", None),
        _output("e", 2.0),
        _output("a", 0.0, kind="greedy"),
    ]
    old = [_output("a", 4.0), _output("b", 3.0), _output("c", 2.0), _output("d", 2.0)]
    rows = compare_by_oracle(new, old)
    assert [row.outcome for row in rows] == ["win", "tie", "lose", None]
    summary = describe(rows, "oracle", "m1", 5)
    assert summary["missing"] == 1
    assert summary["not_compared"] == 1
    assert summary["sign_test_p"] == 1.0


def test_contests_join_sampled_answers_on_the_prompt():
    new = [_output("a", None, "n"), _output("a", None, "g", "greedy"), _output("b", None, "n")]
    old = [_output("a", None, "o"), _output("c", None, "o")]
    assert [(item.prompt_id, item.new, item.old) for item in contests(new, old)] == [("a", "n", "o")]


def test_rates_and_position_bias():
    rows = [
        Comparison("a", "new", "new", "win"),
        Comparison("b", "new", "old", "tie"),
        Comparison("c", "old", "old", "lose"),
        Comparison("d", None, "old", None),
        Comparison("e", "tie", "tie", "tie"),
    ]
    figures = estimate_all(comparison_measures(rows), lambda name: 0, 200)
    assert figures["win_rate"] == wilson(1, 4)
    assert figures["tie_rate_head_to_head"] == wilson(2, 4)
    # First shown: a 1 of 2, b 2 of 2, c 1 of 2, d 1 of 1 (old was first).
    assert figures["first_position"].value == pytest.approx(5 / 7)


def test_a_figure_without_an_interval_rule_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        estimate_all([Measure("nonsense", "a", 1.0, 1.0)], lambda name: 0, 100)
    assert set(KINDS.values()) == {"mean", "share", "proportion"}
