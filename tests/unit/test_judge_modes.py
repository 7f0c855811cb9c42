"""Judge modes side by side: the arithmetic over runs, and a comparison of scripted judges from run folders to the table."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfreward.artifacts import Run, read_json, write_rows
from selfreward.cli import app
from selfreward.config import parse_config
from selfreward.errors import UsageError
from selfreward.judge_modes import METRICS, MODES, REFERENCE, STAGE, compare_modes, modes_table, summarise
from selfreward.types import RankedSet

SETS = [RankedSet("s0", "q zero", ("best", "middle", "worst"), (0, 1, 2)), RankedSet("s1", "q one", ("best", "worst"), (0, 1))]
JUDGE = [
    {"match": "answer : best", "reply": ["Score : 5", "Score : 4"], "choices": {"4": 0.4, "5": 0.4}},
    {"match": "answer : middle", "reply": "Score : 4", "choices": {"3": 0.5, "4": 0.5}},
    {"match": "q zero.*answer : worst", "reply": "Score : 4", "choices": {"2": 0.1}},
    {"match": "q one.*answer : worst", "reply": "no idea", "choices": {"1": 1.0}},
]


def finished_run(folder: Path, seed: int) -> Path:
    """A run folder with what is compared: settings, a model, ranked sets."""
    script = folder / f"judge-{seed}.json"
    script.write_text(json.dumps({"replies": JUDGE}))
    tree: dict[str, Any] = {
        "name": f"run-of-{seed}",
        "run_dir": str(folder),
        "random_seed": seed,
        "engine": {"name": "scripted", "script": str(script)},
        "judge": {"rubric": "lab_additive"},
    }
    with Run.open(parse_config(tree)) as run:
        root = run.dir.root
    write_rows(root / "seed" / "ranked_heldout.parquet", SETS)
    (root / "m1" / "checkpoint").mkdir(parents=True)
    (root / "m1" / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    return root


def test_modes_are_compared_by_hand(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path, seed) for seed in (1, 2)]
    summary = compare_modes(runs, tmp_path / "out")
    modes = summary["modes"]
    # 4.5 over 3.5, and the last response of s0 without a score. The last of s1 scores 1 at once, and nothing once asked to
    # justify itself.
    assert modes["expected"]["judge_pairwise"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 2}
    assert modes["expected"]["valid_votes"]["value"] == pytest.approx(4 / 5)
    assert modes["expected-any"]["valid_votes"]["value"] == 1
    assert modes["expected"]["mean_mass"]["value"] == pytest.approx((0.8 + 1 + 0.1 + 0.8 + 1) / 5)
    assert modes["expected"]["generated_tokens"]["value"] == 0
    assert modes["expected-3"]["valid_votes"]["value"] == pytest.approx(3 / 5)
    assert modes["sampled-3"]["generated_tokens"]["value"] == pytest.approx((4 * 3 * 3 + 2 * 3) / 5)
    assert modes["sampled-3"]["mean_mass"]["value"] is None
    assert modes["expected-3"]["judge_tied"]["value"] == 0
    assert summary["differences"]["expected-1"]["generated_tokens"]["value"] == pytest.approx(-2 / 3 * (4 * 9 + 6) / 5)
    assert read_json(tmp_path / "out" / "summary.json") == summary
    before = (tmp_path / "out/run-1/expected-3" / STAGE / "record.json").stat().st_mtime_ns
    assert compare_modes(runs, tmp_path / "out") == summary, "what is judged is reused"
    assert (tmp_path / "out/run-1/expected-3" / STAGE / "record.json").stat().st_mtime_ns == before
    lines = modes_table(summary, 100).splitlines()
    assert max(map(len, lines)) <= 100
    assert {mode for mode in MODES if any(mode in line for line in lines)} == set(MODES)


def test_differences_are_taken_within_runs() -> None:
    def result(value: float) -> dict[str, float | None]:
        return dict.fromkeys(METRICS, value)

    results = {
        f"run-{n}": {mode: result(n + (0.5 + n / 10 if mode == "expected" else 0.0)) for mode in MODES} for n in range(3)
    }
    estimate = summarise(results)["differences"]["expected"]["judge_pairwise"]
    assert estimate.value == pytest.approx(0.6)
    assert estimate.high - estimate.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert REFERENCE not in summarise(results)["differences"]


def test_the_command_prints_json_and_names_what_is_missing(tmp_path: Path) -> None:
    run = finished_run(tmp_path, 3)
    done = CliRunner().invoke(app, ["lab", "judge-modes", str(run), "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(done.stdout)["modes"].keys() == MODES.keys()
    with pytest.raises(UsageError, match="round-1/model/checkpoint is missing"):
        compare_modes([run], tmp_path / "other", model="m2")
    with pytest.raises(UsageError, match=r"config\.json is missing"):
        compare_modes([tmp_path / "nowhere"], tmp_path / "other", sets_from=run)
