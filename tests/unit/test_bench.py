"""bench/: runs at a small size, both sides give the same verdicts, results are merged and keep their shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
KEYS = {"workload", "model", "ours", "peer", "peer_name", "ratio"}


def run_bench(results: Path, pool: int) -> str:
    command = [sys.executable, str(BENCH / "dedupe.py"), "--pool", str(pool), "--new", "80", "--peer", "80"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([*command, "--results", str(results)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_dedupe_benchmark_runs_and_merges_its_row(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    other = {"workload": "other", "model": "m", "ours": 1.0, "peer": None, "peer_name": None, "ratio": None}
    old = {"workload": "dedupe 700 prompts", "model": None, "ours": -1.0, "peer": 2.0, "peer_name": "x", "ratio": -0.5}
    results.write_text(json.dumps({"rows": [old, other]}))
    shown = run_bench(results, 700)
    rows = json.loads(results.read_text())["rows"]
    assert [row["workload"] for row in rows] == ["dedupe 700 prompts", "other"]
    assert rows[1] == other
    assert set(rows[0]) == KEYS
    assert rows[0]["ours"] > 0
    assert rows[0]["ratio"] == rows[0]["ours"] / rows[0]["peer"]
    assert shown.splitlines()[0].startswith("workload")
    assert "dedupe 700 prompts" in shown
    assert "pool built in" in shown


def test_the_kept_results_have_their_shape_and_pass_the_bar() -> None:
    rows = json.loads((BENCH / "results.json").read_text(encoding="utf-8"))["rows"]
    assert all(set(row) == KEYS for row in rows)
    (dedupe,) = [row for row in rows if row["workload"] == "dedupe 100,000 prompts"]
    assert dedupe["ours"] >= 1000


def test_make_bench_runs_every_benchmark() -> None:
    recipe = (BENCH.parent / "Makefile").read_text(encoding="utf-8").split("\nbench:", 1)[1].split("\n\n", 1)[0]
    programs = [path.name for path in BENCH.glob("*.py") if not path.name.startswith("_")]
    assert programs
    assert all(f"bench/{name}" in recipe for name in programs)
