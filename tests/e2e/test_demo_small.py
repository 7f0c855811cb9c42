"""The demo and the seeds code as a person starts them, shrunk: embedded model, hf engine, TRL, oracle, report."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfreward.experiments import VARIANTS

REPO = Path(__file__).parents[2]
SMALL = (
    "seed.num_heldout_prompts=10", "seed.num_heldout_ranked=6", "seed.num_ift=32", "seed.num_eft=30", "sft.num_epochs=1",
    "propose.num_prompts=16", "replay.num_items=12", "pair.min_pairs=0", "engine.threads=1",
)  # fmt: skip


def selfreward(*args: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "selfreward.cli", *args], cwd=REPO, capture_output=True, text=True, check=False, timeout=550,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    return result.stdout


def output_hashes(root: Path) -> dict[str, Any]:
    records = sorted(root.rglob("record.json"))
    return {str(path.relative_to(root)): json.loads(path.read_text())["outputs"] for path in records}


def test_demo_ends_with_its_table_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    shown = selfreward("demo", "--run-dir", str(tmp_path / "a"), *SMALL)
    assert max(map(len, shown.splitlines())) <= max(80, len(str(tmp_path)) + 40)
    for name in ("SFT", "M1", "M2", "M3"):
        assert f" {name} " in shown
    root = tmp_path / "a" / "demo"
    summary = json.loads((root / "summary.json").read_text())
    assert [row["model"] for row in summary["models"]] == ["SFT", "M1", "M2", "M3"]
    for row in summary["models"]:
        assert row["oracle_mean"].keys() == {"value", "low", "high", "n"}
        assert row["oracle_mean"]["n"] == 10
    page = (root / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    heldout = {json.loads(line)["prompt"] for line in (root / "seed/source/heldout_prompts.jsonl").read_text().splitlines()}
    for t in (1, 2):
        from selfreward.artifacts import read_rows
        from selfreward.types import Prompt

        proposed = {item.text for item in read_rows(root / f"round-{t}/prompts/prompts.parquet", Prompt)}
        assert proposed
        assert not proposed & heldout

    selfreward("demo", "--run-dir", str(tmp_path / "b"), *SMALL)
    assert output_hashes(root) == output_hashes(tmp_path / "b" / "demo")
    # A second start of a finished run does nothing again.
    before = {path: path.stat().st_mtime_ns for path in root.rglob("record.json")}
    assert selfreward("demo", "--run-dir", str(tmp_path / "a"), *SMALL) == shown
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("record.json")}


@pytest.mark.timeout(900)
def test_every_variant_of_the_seeds_runs(tmp_path: Path) -> None:
    names = ",".join(VARIANTS)
    printed = selfreward(
        "lab", "seeds", "--out", str(tmp_path), "--seeds", "7", "--jobs", "1", "--variants", names, "--json", *SMALL
    )
    summary = json.loads(printed)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["seeds"]["7"]) == set(VARIANTS)
    assert set(summary["controls"]) == {"random_judge", "positives_only", "same_pairs"}
    for name in VARIANTS:
        first = summary["seeds"]["7"][name]["models"]
        assert [row["model"] for row in first][-1] == ("M7" if name == "rounds_6" else "M3")
    root = tmp_path / "seed-7"
    # Each round of the same pairs begins with the main run's own model, and the first is the control's first.
    main, same, own = (root / name / "round-1/model/record.json" for name in ("self_rewarding", "same_pairs", "positives_only"))
    assert json.loads(same.read_text())["outputs"] == json.loads(own.read_text())["outputs"]
    later = root / "same_pairs/round-2/model/record.json"
    assert json.loads(later.read_text())["inputs"]["start"] == json.loads(main.read_text())["fingerprint"]
    # Variants that share a stage with the main run hold the same bytes.
    for name, variant in VARIANTS.items():
        for key in variant.shared:
            if (root / "self_rewarding" / key / "record.json").is_file():
                old, new = (json.loads((root / one / key / "record.json").read_text()) for one in ("self_rewarding", name))
                assert old["outputs"] == new["outputs"], (name, key)
