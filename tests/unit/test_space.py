"""preflight/space.py: what a run will write, what is there already, and whether the disk takes it."""

import re
from pathlib import Path
from typing import Any

import pytest
from check_bench import Shell
from hypothesis import given
from hypothesis import strategies as st

from selfreward.config import Config, parse_config
from selfreward.preflight.space import Plan, check_place, in_bytes, plan_writes, space_problem


def config(folder: Path, **settings: Any) -> Config:
    return parse_config({"name": "a", "run_dir": str(folder), **settings})


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")


def test_a_run_writes_a_model_a_round_and_two_before(tmp_path: Path) -> None:
    plan = plan_writes(config(tmp_path, num_rounds=3), 1000)
    assert (plan.num_models, plan.model_bytes, plan.state_bytes) == (5, 4000, 24_000)
    assert plan.total == 5 * 4000 + 24_000 + plan.table_bytes
    replay = plan_writes(config(tmp_path, num_rounds=3, replay={"num_items": 5}), 1000)
    assert replay.state_bytes == 24_000 + 4000, "the model between DPO and replay"


def test_more_work_is_more_to_write(tmp_path: Path) -> None:
    small = plan_writes(config(tmp_path), 0).table_bytes
    more: list[dict[str, Any]] = [
        {"propose": {"num_prompts": 2000}}, {"sample": {"num_candidates": 8}}, {"judge": {"num_votes": 6}}, {"num_rounds": 3},
        {"eval": {"num_votes": 9}}, {"eft": {"samples": 6}},
    ]  # fmt: skip
    assert all(plan_writes(config(tmp_path, **settings), 0).table_bytes > small for settings in more)


def test_what_is_finished_is_not_counted_again(tmp_path: Path) -> None:
    run = config(tmp_path)
    whole = plan_writes(run, 1000)
    for stage in ("sft", "m1", "eft", "round-1/model"):
        finish(tmp_path / "a" / stage)
    (tmp_path / "a" / "round-2" / "model").mkdir(parents=True)
    left = plan_writes(run, 1000)
    assert (whole.num_models, left.num_models) == (4, 1)
    assert left.table_bytes < whole.table_bytes
    finish(tmp_path / "a" / "round-2" / "model" / "again")
    (tmp_path / "a" / "round-2" / "model" / "record.json").write_text("{}")
    assert plan_writes(run, 1000).total == 0, "a finished run is read again on a full disk"


def test_the_message_names_both_sizes_and_the_settings(tmp_path: Path) -> None:
    run = config(tmp_path)
    plan = Plan(4, 28_000_000_000, 84_000_000_000, 5_000_000)
    assert space_problem(run, plan, plan.total) is None
    assert str(space_problem(run, plan, plan.total - 1)).replace(str(tmp_path), "DISK") == (
        "run_dir='DISK': the run still writes about 196 GB, but 196 GB is free: 4 models of 28.0 GB (num_rounds=2), 84.0 GB "
        "while training, 5.0 MB of tables (propose.num_prompts=1000, sample.num_candidates=4); make room, set another run_dir, "
        "or lower these"
    )


def test_a_check_and_a_run_stop_for_want_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path, monkeypatch, capsys)
    shell.write("name: a\nnum_rounds: 100000\n")
    for command in ("check", "run"):
        said = shell.run(command, "c.yaml")
        assert (said.code, said.out) == (2, "")
        assert re.fullmatch(
            r"error: run_dir='runs': the run still writes about 1[\d,]*\.\d TB, but [\d.,]+ [GT]B is free: 100,002 "
            r"models of 4\.4 MB \(num_rounds=100000\), 26\.2 MB while training, .* set another run_dir, or lower these\n",
            said.err.splitlines(keepends=True)[-1],
        )
    assert not (tmp_path / "runs").exists()


def test_the_place_is_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert check_place(config(tmp_path / "new" / "deep")) == tmp_path
    (tmp_path / "a").mkdir()
    assert check_place(config(tmp_path)) == tmp_path / "a"


@given(st.integers(0, 10**18))
def test_sizes_are_short(number: int) -> None:
    text = in_bytes(number)
    assert re.fullmatch(r"\d{1,3}(\.\d)? (bytes|kB|MB|GB)|[\d,]+\.\d TB|1000 \w+", text), text
