"""What `check --estimate` says of a run, beside what the run then takes: embedded model, real engine, real trainers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import Config, load_config
from selfreward.estimating import estimate_run
from selfreward.progress import NullProgress

REPO = Path(__file__).parents[2]
SMALL = (
    "num_rounds=1", "seed.num_heldout_prompts=40", "seed.num_heldout_ranked=20", "seed.num_ift=120", "seed.num_eft=100",
    "sft.num_epochs=1", "dpo.num_epochs=1", "propose.num_prompts=64", "replay.num_items=60", "pair.min_pairs=0",
    "eval.bootstrap_samples=200",
)  # fmt: skip


def selfreward(*args: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "selfreward.cli", *args], cwd=REPO, capture_output=True, text=True, check=False, timeout=550,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def config_of(run_dir: Path) -> Config:
    return load_config(REPO / "configs" / "demo.yaml", [*SMALL, f"run_dir={run_dir}"])


def usage(root: Path, key: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((root / key / "record.json").read_text())
    return {**record["usage"], **record["tokens"], "seconds": record["seconds"]}


@pytest.mark.timeout(900)
def test_an_estimate_foretells_the_run(tmp_path: Path) -> None:
    shown = selfreward("check", "configs/demo.yaml", *SMALL, f"run_dir={tmp_path}", "--estimate")
    table = shown[shown.index(" stage ") :]
    assert max(map(len, table.splitlines())) <= 80
    assert "time: about" in table
    assert not (tmp_path / "demo").exists()
    foretold = {row["stage"]: row for row in estimate_run(config_of(tmp_path), NullProgress())["stages"]}

    selfreward("run", "configs/demo.yaml", *SMALL, f"run_dir={tmp_path}")
    root = tmp_path / "demo"
    for key, name in (("sft/evals", "sft/evals"), ("m1/evals", "m1/evals"), ("round-1/judgements", "round/judgements")):
        told = usage(root, key)
        assert foretold[name]["asked"] == pytest.approx(told["prompt"], rel=0.3), key
        assert foretold[name]["written"] == pytest.approx(told["generated"], rel=0.3), key
    for key, name in (("sft", "sft"), ("m1", "m1")):
        assert foretold[name]["trained"] == pytest.approx(usage(root, key)["trained_tokens"], rel=0.1), key
    # Other work on the machine moves times, not by an order of magnitude.
    seconds = sum(usage(root, key)["seconds"] for key in ("sft/evals", "m1/evals", "round-1/judgements"))
    ratio = sum(foretold[name]["seconds"] for name in ("sft/evals", "m1/evals", "round/judgements")) / seconds
    assert 0.2 < ratio < 5

    shown = selfreward("check", "configs/demo.yaml", *SMALL, f"run_dir={tmp_path}", "--estimate")
    assert "are finished: nothing is left to estimate" in shown
    summary = json.loads((root / "summary.json").read_text())
    assert summary["cost"]["total"]["trained_tokens"] > foretold["m1"]["trained"]
    assert summary["cost"]["total"]["num_unknown"] == 0
