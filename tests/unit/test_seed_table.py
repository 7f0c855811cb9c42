"""The seed stage's record as a table for people."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import selfreward

from selfreward.report.seed_table import render_seed

SOURCE: dict[str, Any] = {
    "path": "/data/people.jsonl", "format": "alpaca", "detected": True, "rows": 1200, "stopped_at_cap": True,
    "kept": {"ift": 900, "prompts_heldout": 100}, "dropped": {"duplicate": 150, "lang": 50},
    "replies": {"in": 1000, "kept": 700, "dropped": {"unused": 250, "row_dropped": 50}},
    "languages": {"en": 1000}, "scores": {"1": 3, "4": 60},
    "words": {"prompts": {"min": 1.0, "5%": 3.0, "50%": 12.0, "95%": 80.0, "max": 2000.0}, "responses": {}},
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "sources": [SOURCE],
    "overlaps": {"ift": {"prompts_heldout": 7, "unused_heldout": 1}},
    "asked": {"ift": 3200, "eft_train": 1630, "ranked_train": 0, "prompts_heldout": 256, "ranked_heldout": 190},
    "counts": {"in": 1200, "out": 1000, "dropped": {"duplicate": 150, "lang": 50}},
    "num_ift": 900, "num_eft_train": 0, "num_ranked_train": 0, "num_prompts_heldout": 100, "num_ranked_heldout": 0,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_is_said_within_the_width(width: int) -> None:
    text = render_seed(SUMMARY, width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for said in (
        "source 1: /data/people.jsonl", "alpaca (detected)", "1,200, then its cap was reached",
        "IFT pairs 900, held-out prompts 100",
        "duplicate 150, lang 50", "1,000, kept 700", "unused 250, row_dropped 50", "en 1,000", "50% 12", "max 2,000",
        "IFT pairs 900 3,200", "1,200 rows in, 1,000 kept, 200 dropped",
        "left out of IFT pairs for an overlapping prompt: 7 with held-out prompts, 1 with unused held-out rows",
    ):  # fmt: skip
        assert said in flat
    assert "words, responses" not in text, "no quantiles of nothing"
    bars = {line.split()[1]: line.count("#") for line in text.splitlines() if line.strip().startswith("score ")}
    assert bars == {"1": 2, "4": 30}


def test_the_command_shows_the_table_and_needs_no_model(tmp_path: Path) -> None:
    command = ("seed", "configs/demo.yaml", f"run_dir='{tmp_path}'", "model.path=/nowhere")
    shown = selfreward(*command)
    assert shown.returncode == 0, shown.stderr
    assert "3,000 rows in, 2,050 kept, 950 dropped" in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 80
    again = selfreward(*command, "--json")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert summary["sources"][0]["format"] == "lab"
    assert summary["sources"][0]["scores"].keys() == {"0", "1", "2", "3", "4", "5"}
    assert summary["num_ift"] == 400


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("seed.path=/nowhere.jsonl", 2, "seed.sources[0]: '/nowhere.jsonl' is no file or folder here"),
        ("seed.sources=[{format: oasst}]", 2, "seed.sources[0].format='oasst'"),
        ("seed.sources=[{fromat: lab}]", 2, "unknown setting 'seed.sources[0].fromat'; did you mean 'format'?"),
        ("seed.max_overlap=0", 2, "seed.max_overlap=0"),
    ],
)
def test_wrong_use_is_one_clear_message(tmp_path: Path, override: str, code: int, said: str) -> None:
    result = selfreward("seed", "configs/oasst-smoke.yaml", f"run_dir='{tmp_path}'", override)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_the_command_reads_again_while_nothing_else_is_finished(tmp_path: Path) -> None:
    command = ("seed", "configs/demo.yaml", f"run_dir='{tmp_path}'")
    assert selfreward(*command).returncode == 0
    again = selfreward(*command, "seed.num_ift=20", "--json")
    assert again.returncode == 0, again.stderr
    assert "reading the seed data again" in again.stderr
    assert json.loads(again.stdout)["num_ift"] == 20
    (tmp_path / "demo" / "m0").mkdir()
    (tmp_path / "demo" / "m0" / "record.json").write_text("{}")
    refused = selfreward(*command, "seed.num_ift=30")
    assert refused.returncode == 1, refused.stdout
    assert "seed.num_ift was 20, is 30" in refused.stderr


def test_a_judge_that_will_not_be_measured_is_said() -> None:
    assert "! no held-out ranked sets" in render_seed({**SUMMARY, "num_ranked_heldout": 0})
