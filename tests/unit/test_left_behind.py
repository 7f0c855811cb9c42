"""What a kill, a bad disk or another process leaves in a run folder, and what the next run makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfreward.artifacts import Run, Stage, write_json
from selfreward.config import Config
from selfreward.errors import ConfigError, CorruptArtifactError
from selfreward.planning import Plan, PlannedStage
from selfreward.preflight.space import check_place
from selfreward.report.status import run_status
from selfreward.reuse import BEGUN, clear_temporary, read_begun
from selfreward.rundir import RunDir
from selfreward.types import Counts, Prompt

PROMPTS = [Prompt(str(number), "text", "ift") for number in range(4)]


def open_run(folder: Path) -> Run:
    return Run.open(Config(name="r", run_dir=str(folder)))


def half(stage: Stage) -> Counts:
    stage.chunks("x", PROMPTS, 2, list, Prompt)
    raise KeyboardInterrupt


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A stage with two committed parts."""
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as run:
        run.stage("seed", {}, {}, half)
    return tmp_path / "r" / "seed"


@pytest.mark.parametrize("content", ['{"stage"', '{"stag": 1}', "[]", ""])
def test_a_damaged_note_of_what_was_begun_loses_no_part(tmp_path: Path, begun: Path, content: str) -> None:
    (begun / BEGUN).write_text(content)
    assert read_begun(begun) is None
    asked = []

    def work(stage: Stage) -> Counts:
        stage.chunks("x", PROMPTS, 2, lambda chunk: asked.append(1) or list(chunk), Prompt)
        return Counts(4, 4)

    with open_run(tmp_path) as run:
        run.stage("seed", {}, {}, work)
    assert asked == []
    assert "a damaged note of what was begun" in (tmp_path / "r" / "run.log").read_text()


def test_status_counts_a_damaged_part_without_its_cost(begun: Path) -> None:
    first = next((begun / "parts").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-9])
    (row,) = [row for row in run_status(begun.parent) if row["stage"] == "seed"]
    assert row["parts"] == 2


def test_half_written_files_of_a_living_process_stay(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = [f".tmp-{other.pid}-report.html", f".tmp-{os.getpid()}-config.json", ".tmp-999999999-summary.json"]
    for name in names:
        (tmp_path / name).touch()
    clear_temporary(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == names[:1]
    other.communicate(b"\n")
    clear_temporary(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_record_without_outputs_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        made = run.stage("seed", {}, {}, lambda stage: Counts(0, 0))
    write_json(made.path / "record.json", {"fingerprint": made.fingerprint, "outputs": None, "stage": "seed", "sections": {},
                                           "inputs": {}, "random_seed": 0})  # fmt: skip
    with open_run(tmp_path) as run, pytest.raises(CorruptArtifactError, match="is not a stage record"):
        run.stage("seed", {}, {}, lambda stage: Counts(0, 0))


def test_what_was_accepted_is_listed_once() -> None:
    item = {"stage": "sft", "field": "x", "old": 1, "new": 2, "date": "d"}
    fields = PlannedStage.__dataclass_fields__
    stages = [object.__new__(PlannedStage) for _ in range(3)]
    for stage in stages:
        for name in fields:
            object.__setattr__(stage, name, (item,) if name == "accepted" else None)
    assert Plan(RunDir("r"), tuple(stages), (), {}, {}).accepted == [item]


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
def test_a_path_that_is_too_long_is_a_wrong_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run_dir=.*the path is too long"):
        check_place(Config(name="r", run_dir=str(tmp_path / name)))
