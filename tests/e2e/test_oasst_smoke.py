"""The real path: Open Assistant trees, a local Llama folder, every stage, a report. Quality means nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_llama import make

REPO = Path(__file__).parents[2]
TREES = REPO.parent / "shared" / "data" / "oasst_en_trees.jsonl"


@pytest.mark.skipif(not TREES.is_file(), reason="the Open Assistant trees are not at ../shared/data")
def test_a_run_on_real_data_reaches_its_report(tmp_path: Path) -> None:
    model = make(TREES, tmp_path / "small llama")
    command = [
        sys.executable, "-m", "selfreward.cli", "run", "configs/oasst-smoke.yaml",
        f"seed.path={TREES}", f"model.path='{model}'", f"run_dir='{tmp_path / 'runs'}'", "engine.threads=1", "--json",
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads(result.stdout)
    assert [row["model"] for row in summary["models"]] == ["SFT", "M1", "M2", "M3"]
    root = tmp_path / "runs" / "oasst-smoke"
    assert (root / "report.html").stat().st_size > 10_000
    for record in root.rglob("record.json"):
        counts = json.loads(record.read_text())["counts"]
        assert counts["in"] == counts["out"] + sum(counts["dropped"].values()), record
    for row in summary["models"]:
        assert row["oracle_mean"] is None, "there is no oracle outside the lab"
    judged = json.loads((root / "round-1" / "judgements" / "record.json").read_text())
    assert judged["notes"]["num_votes"] > 0
    assert judged["roles"]["judge"] == "m1"
