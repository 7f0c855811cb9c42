"""bench/: runs at a small size, both sides give the same verdicts, results are merged and keep their shape."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
KEYS = {"workload", "model", "ours", "peer", "peer_name", "ratio"}


BARS = {"dedupe 100,000 prompts": 1000, "dedupe 100,000 prompts, one phrase": 500}
"""New prompts a second, on one core."""
PEER = "rapidfuzz cdist, whole pool"
FEWEST_TIMES = 3
"""Times as fast as the peer, on any machine."""


def run_bench(results: Path, pool: int, new: int = 80, peer: int = 80) -> str:
    command = [sys.executable, str(BENCH / "dedupe.py"), "--pool", str(pool), "--new", str(new), "--peer", str(peer)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([*command, "--results", str(results)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_dedupe_benchmark_runs_and_merges_its_row(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    other = {"workload": "other", "model": "m", "ours": 1.0, "peer": None, "peer_name": None, "ratio": None}
    old = {"workload": "dedupe 700 prompts", "model": None, "ours": -1.0, "peer": 2.0, "peer_name": PEER, "ratio": -0.5}
    results.write_text(json.dumps({"rows": [old, other]}))
    shown = run_bench(results, 700)
    rows = json.loads(results.read_text())["rows"]
    assert [row["workload"] for row in rows] == ["dedupe 700 prompts", "other", "dedupe 700 prompts, one phrase"]
    assert rows[1] == other
    for row in (rows[0], rows[2]):
        assert set(row) == KEYS
        assert row["ours"] > 0
        assert row["ratio"] == row["ours"] / row["peer"]
    assert shown.splitlines()[0].startswith("workload")
    assert "dedupe 700 prompts" in shown
    assert "pool built in" in shown


def test_the_kept_results_have_their_shape_and_pass_the_bar() -> None:
    rows = json.loads((BENCH / "results.json").read_text(encoding="utf-8"))["rows"]
    assert all(set(row) == KEYS for row in rows)
    check_bars(rows)


@pytest.mark.slow
def test_the_measured_results_pass_the_bar(tmp_path: Path) -> None:
    run_bench(tmp_path / "results.json", 100_000, new=1024, peer=64)
    check_bars(json.loads((tmp_path / "results.json").read_text())["rows"])


def check_bars(rows: list[dict[str, Any]]) -> None:
    rates = {row["workload"]: row for row in rows}
    for workload, bar in BARS.items():
        assert rates[workload]["ours"] >= bar, workload
        assert rates[workload]["ratio"] >= FEWEST_TIMES, workload


def test_make_bench_runs_every_benchmark() -> None:
    recipe = (BENCH.parent / "Makefile").read_text(encoding="utf-8").split("\nbench:", 1)[1].split("\n\n", 1)[0]
    # What vLLM's own environment runs is started by bench/speed.
    programs = [path.name for path in BENCH.glob("*.py") if not path.name.startswith(("_", "vllm_"))]
    assert programs
    assert all(f"bench/{name}" in recipe for name in programs)
