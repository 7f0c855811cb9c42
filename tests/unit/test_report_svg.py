"""Charts: geometry by hand, hostile names, empty data."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward.report import svg
from selfreward.types import Estimate

HOSTILE = '<script>alert("x")</script>'


def _tree(markup):
    return ElementTree.fromstring(f"<div>{markup}</div>")


def test_interval_chart_places_values_and_intervals():
    points = [Estimate(1.0, 0.5, 1.5, 9), Estimate(2.0, 1.5, 2.5, 9)]
    tree = _tree(svg.interval_chart(["M1", "M2"], [svg.Series("x", points)], svg.SCORE))
    circles = [float(node.get("cy")) for node in tree.iter("circle")]
    groups = list(tree.iter("g"))
    bars = [node.find("line") for node in groups]
    assert circles[0] > circles[1]  # higher values are higher up
    first = (float(bars[0].get("y1")), float(bars[0].get("y2")))
    assert sum(first) / 2 == pytest.approx(circles[0], abs=0.1)
    tips = [node for node in tree.iter("rect") if node.get("class") == "hit"]
    assert tips[0].get("data-tip") == "x, M1: 1.00 [0.50, 1.50], n=9"


def test_tips_of_two_series_do_not_cover_each_other():
    point = Estimate(1.0, 0.5, 1.5, 9)
    tree = _tree(svg.interval_chart(["M1", "M2"], [svg.Series("x", [point] * 2), svg.Series("y", [point] * 2)], svg.SCORE))
    spans = [(float(n.get("x")), float(n.get("x")) + float(n.get("width"))) for n in tree.iter("rect")]
    spans.sort()
    assert all(left[1] <= right[0] + 0.2 for left, right in pairwise(spans))


def test_a_missing_point_breaks_the_line_and_is_not_drawn_as_zero():
    point = Estimate(1.0, None, None, 1)
    tree = _tree(svg.interval_chart(["a", "b", "c"], [svg.Series("x", [point, None, point])], svg.SCORE))
    assert len(list(tree.iter("circle"))) == 2
    assert list(tree.iter("polyline")) == []


def test_reference_is_inside_the_axis():
    tree = _tree(svg.interval_chart(["a"], [svg.Series("x", [Estimate(0.9, 0.85, 0.95, 9)])], svg.SCORE, (0.5, "chance")))
    reference = next(node for node in tree.iter("line") if node.get("class") == "reference")
    assert 0 < float(reference.get("y1")) < 196 - 26


def test_share_bars_fill_the_width():
    parts = [("win", Estimate(0.5, 0.4, 0.6, 10)), ("tie", Estimate(0.3, 0.2, 0.4, 10)), ("lose", Estimate(0.2, 0.1, 0.3, 10))]
    tree = _tree(svg.share_bars([("M2 against M1", parts)]))
    bars = list(tree.iter("rect"))
    assert sum(float(bar.get("width")) for bar in bars) == pytest.approx(svg.WIDTH - 4)
    whiskers = [node.find("line") for node in tree.iter("g")]
    lose = sorted((float(whiskers[1].get("x1")), float(whiskers[1].get("x2"))))
    assert lose == pytest.approx([358 - 0.3 * 356, 358 - 0.1 * 356])


def test_histogram_bins_mean_scores():
    tree = _tree(svg.histogram({"0": 1, "4.5": 1, "4": 1, "5": 1}, 0, 5))
    tips = [node.get("data-tip") for node in tree.iter("rect")]
    assert tips[0] == "score 0: 1 of 4 (25 %)"
    assert tips[4] == "score 4: 1 of 4 (25 %)"
    assert tips[5] == "score 5: 2 of 4 (50 %)"


def test_line_chart_leaves_out_non_finite_values_and_thins():
    tree = _tree(svg.line_chart([svg.Curve("loss", range(4), [1.0, math.nan, 0.5, math.inf])], svg.SCORE))
    assert len(next(tree.iter("polyline")).get("points").split()) == 2
    long = svg.line_chart([svg.Curve("loss", range(5000), [1.0] * 5000)], svg.SCORE)
    assert len(next(_tree(long).iter("polyline")).get("points").split()) <= 240


def test_nothing_is_said_in_words():
    empty = Estimate(None, None, None, 0)
    for markup in (
        svg.interval_chart(["a"], [svg.Series("x", [None])], svg.SCORE),
        svg.share_bars([("r", [("win", empty)])]),
        svg.histogram({}, 0, 5),
        svg.line_chart([], svg.SCORE),
    ):
        assert "not measured" in markup
        assert "<svg" not in markup


def test_hostile_names_stay_text():
    point = Estimate(0.5, 0.4, 0.6, 5)
    markup = svg.interval_chart([HOSTILE], [svg.Series(HOSTILE, [point]), svg.Series('" onload="x', [point])], svg.SCORE)
    markup += svg.share_bars([(HOSTILE, [(HOSTILE, point), ("b", point)])])
    markup += svg.line_chart([svg.Curve(HOSTILE, [0, 1], [1, 2]), svg.Curve("b", [0, 1], [1, 2])], svg.SCORE)
    assert "<script" not in markup
    assert not re.search(r'<[^>]* onload="', markup)
    _tree(markup)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False),
    st.floats(0, 1e6, allow_nan=False, allow_subnormal=False),
)
def test_any_range_gives_a_drawable_axis(low, size):
    point = Estimate(low, low, low + size, 5)
    tree = _tree(svg.interval_chart(["a"], [svg.Series("x", [point])], svg.SCORE))
    y = float(next(tree.iter("circle")).get("cy"))
    assert 0 <= y <= 196
    assert 2 <= sum(node.get("class") == "grid" for node in tree.iter("line")) <= 8


def test_percent():
    assert [svg.percent(value) for value in (0, 0.004, 0.0994, 0.0996, 0.5, 1, -0.02)] == [
        "0 %", "0.4 %", "9.9 %", "10 %", "50 %", "100 %", "-2.0 %",
    ]  # fmt: skip


def test_ticks_of_an_axis_differ():
    point = Estimate(0.75, 0.735, 0.765, 100)
    tree = _tree(svg.interval_chart(["a"], [svg.Series("x", [point])], svg.SHARE))
    ticks = [node.text for node in tree.iter("text") if node.get("class") == "axis"]
    assert len(set(ticks)) == len(ticks)
    assert "74 %" in ticks
    assert svg.SHARE.tick(0.725, 0.025) == "72.5 %"
    assert svg.SCORE.tick(3.0, 0.5) == "3.0"
    assert svg.NUMBER.tick(200.0, 50.0) == "200"
