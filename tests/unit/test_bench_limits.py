"""bench/speed: operations and bytes are counted as by hand, the table keeps its width, sizes run in processes of their own."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from speed import roofline, scaling, table  # noqa: E402
from speed.contest import Made, rates  # noqa: E402
from speed.models import RANDOM, Shape, write_model  # noqa: E402
from speed.workloads import Workload  # noqa: E402

from selfreward.types import Request, Sampling  # noqa: E402

HAND = Shape(hidden_size=2, num_layers=1, num_heads=1, intermediate_size=3, vocabulary=5)


def workload_of(*wanted: tuple[tuple[int, ...], int]) -> Workload:
    """Requests of (prompt ids, new tokens); their texts do not matter."""
    requests = tuple(Request(f"r{n}", "x", Sampling(max(1, new)), n) for n, (_, new) in enumerate(wanted))
    requests = tuple(
        replace(request, choices=("a",) if new == 0 else ()) for request, (_, new) in zip(requests, wanted, strict=True)
    )
    return Workload("hand", requests, tuple(ids for ids, _ in wanted), len(wanted))


# --- the limit


def test_prefixes_are_counted_once() -> None:
    assert roofline.prefix_tree([(1, 2, 3), (1, 2, 4), (1, 2, 3), (5,)]) == {1: 2, 2: 1, 3: 2}
    assert roofline.prefix_tree([(1, 2), (1, 2, 3)]) == {1: 1, 2: 1, 3: 1}
    assert roofline.prefix_tree([]) == {}


def test_operations_and_bytes_are_those_counted_by_hand() -> None:
    assert (HAND.layer_weights, HAND.num_weights) == (4 * 4 + 3 * 6, 34 + 10)
    work = roofline.least_work(HAND, workload_of(((1, 2), 3), ((1, 2), 1), ((1, 3), 2)))
    # Read: 1, 1-2, 1-3. Matrices 2 * 34 each; attention 4 * 2 * tokens attended to: 1, 2, 2; output 2 * 10 for two prompts.
    assert work.prompt_flops == 3 * 68 + 8 * (1 + 2 + 2) + 2 * 20
    # Fed back: two tokens at positions 3 and 4, one at position 3; each with the output matrix.
    assert work.new_flops == 3 * (68 + 20) + 8 * (3 + 4 + 3)
    # A token keeps 2 * 4 * 2 = 16 bytes. Weights 4 * 44 for the prompts and two steps; 3 + 3 tokens written; the first step
    # reads three prompt tokens and two of replies, the second two prompt tokens (one reply runs) and its two.
    assert work.moved == 176 * 3 + 16 * (3 + 3) + 16 * (3 + 2) + 16 * (2 + 2)
    assert work.kept == 176 + 16 * 6


def test_weighing_scores_needs_no_step() -> None:
    work = roofline.least_work(HAND, workload_of(((1, 2), 0), ((1, 3), 0)))
    assert work.new_flops == 0
    assert work.moved == 176 + 16 * 3


def test_the_limit_is_the_larger_of_computing_and_traffic() -> None:
    work = roofline.Work(prompt_flops=400, new_flops=100, moved=60, kept=1)
    limit = roofline.limit(work, roofline.Machine(prompt_rate=100, new_rate=50, copy_rate=20))
    assert (limit.compute, limit.traffic, limit.seconds, limit.bound) == (6, 3, 6, "compute")
    limit = roofline.limit(work, roofline.Machine(prompt_rate=100, new_rate=50, copy_rate=6))
    assert (limit.seconds, limit.bound) == (10, "traffic")


def test_the_machine_is_measured() -> None:
    shape = RANDOM["tiny"]
    machine = roofline.measure_machine(shape, 4, roofline.Work(1, 1, 1, 1 << 16))
    assert 1e6 < machine.new_rate < 1e14
    assert 1e6 < machine.prompt_rate < 1e14
    assert 1e6 < machine.copy_rate < 1e13


# --- table, results, scaling


def comparison(**changes: object) -> table.Comparison:
    ours, peer = rates(300, [Made(2.0, ()), Made(1.0, ()), Made(4.0, ())]), rates(300, [Made(30.0, ())])
    whole = table.Comparison(
        "judge", "demo", "tokens", ours, peer, "HF generate_batch", (300, 300), ("a", "b"), 2.0, roofline.Limit(0.5, 0.1)
    )
    return replace(whole, **changes)


def test_the_table_has_80_columns_at_most_and_says_ratio_and_limit() -> None:
    shown = table.render([comparison(), comparison(workload="a workload with a name that is too long", model="another")])
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.splitlines()[1].split() == [
        "judge",
        "demo",
        "tokens",
        "150",
        "10.0",
        "HF",
        "generate_batch",
        "15.00x",
        "25",
        "%",
    ]
    told = table.notes([comparison()])
    assert max(map(len, told.splitlines())) <= 80
    assert "150 [75.0, 300] tokens/s, 300 new tokens" in " ".join(told.split())


def test_a_comparison_becomes_a_row() -> None:
    row = comparison().row()
    assert (row.workload, row.model, row.ours, row.peer, row.peer_name) == ("judge", "demo", 150, 10, "HF generate_batch")
    assert row.ratio == 15


def test_the_line_through_the_sizes() -> None:
    points = [scaling.Point(number, number, 0.5 + 0.01 * number, 100, 110) for number in (1000, 2000, 5000)]
    line = scaling.fit(points)
    assert (line.start, line.slope, line.explained) == (pytest.approx(0.5), pytest.approx(0.01), pytest.approx(1))
    bent = scaling.fit([replace(points[0], seconds=1), replace(points[1], seconds=4), replace(points[2], seconds=25)])
    assert bent.explained < 0.99
    assert "peak 1.00x from 1,000 to 5,000" in scaling.render(points)


def test_scaling_measures_a_size_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path and path != str(BENCH)))
    (point,) = scaling.run(write_model("tiny", tmp_path), [5], 1, True, lambda text: None)
    assert (point.num_candidates, point.num_tokens) == (5, 15)
    assert 0 < point.loaded_mb <= point.peak_mb
