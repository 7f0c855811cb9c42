"""The command line: exit codes, one clear line an error, no traceback, quick start-up."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def selfreward(*args: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "selfreward.cli", *args], capture_output=True, text=True, cwd=cwd, check=False, timeout=300
    )


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, selfreward.cli; print([m for m in ('torch','transformers','trl','pyarrow','scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    best = min(_seconds("--help") for _ in range(3))
    bare = min(_python_seconds() for _ in range(3))
    # 0.5 s on an idle machine; the interpreter's own start-up is the yardstick on a busy one.
    assert best < max(0.5, 25 * bare)


def _seconds(*args: str) -> float:
    started = time.perf_counter()
    assert selfreward(*args).returncode == 0
    return time.perf_counter() - started


def _python_seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["run", "nowhere.yaml"], 2, "config file 'nowhere.yaml' does not exist"),
        (["check", "configs/demo.yaml", "judge.numvotes=3"], 2, "did you mean 'num_votes'"),
        (["check", "configs/demo.yaml", "judge.num_votes=zero"], 2, "judge.num_votes='zero'"),
        (["check", "configs/demo.yaml", "rounds"], 2, "must look like section.key=value"),
        (["check", "configs/demo.yaml", "model.path=/nowhere"], 2, "model.path='/nowhere' is no folder"),
        (["check", "configs/demo.yaml", "judge.rubric=nowhere"], 2, "nowhere"),
        (["check", "configs/paper.yaml"], 2, "model.path"),
        (["stage", "configs/demo.yaml", "round-9/pairs"], 2, "unknown stage 'round-9/pairs'"),
        (["judge", "nowhere.jsonl", "--model", "scripted:random", "--out", "x.parquet"], 2, "nowhere.jsonl"),
        (["judge", "README.md", "--model", "policy", "--out", "x.parquet"], 2, "--model policy is a part of a run"),
        (["status", "nowhere"], 2, "nowhere is not a run folder"),
        (["report", "nowhere"], 2, "nowhere is not a run folder"),
        (["lab", "seeds", "--out", "x", "--seeds", "1,one"], 2, "--seeds '1,one'"),
        (["lab", "seeds", "--out", "x", "--seeds", "1", "--variants", "magic"], 2, "unknown variants magic"),
        (["lab", "data", "--out", "x", "--heldout", "all"], 2, "must be dev or test"),
        (["nonsense"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
    ],
)
def test_wrong_use_is_one_clear_message(args: list[str], code: int, said: str) -> None:
    result = selfreward(*args)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_check_says_what_will_be_used() -> None:
    result = selfreward("check", "configs/demo.yaml")
    assert result.returncode == 0, result.stderr
    assert "the embedded model" in result.stdout
    assert "lab_additive" in result.stdout
    assert "selfreward check --estimate" in result.stdout, "who wants to know what it costs is told how"


def test_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    result = selfreward("check", "configs/demo.yaml", f"model.path={tmp_path}")
    assert result.returncode == 2
    assert "no .safetensors weights" in result.stderr


def test_lab_data_writes_seed_files(tmp_path: Path) -> None:
    result = selfreward("lab", "data", "--out", str(tmp_path / "seed data"), "--heldout", "dev")
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "seed data").iterdir())
    assert names == ["eft.jsonl", "heldout_prompts.jsonl", "heldout_ranked.jsonl", "ift.jsonl"]


def test_ctrl_c_says_how_to_go_on() -> None:
    script = (
        "import os, signal, sys, time, selfreward.cli as cli, selfreward.config as config\n"
        # A job started in the background of a shell inherits an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def slow(*args):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "config.load_config = slow\n"
        "sys.argv = ['selfreward', 'check', 'configs/demo.yaml']\n"
        "cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50)
    assert result.returncode == 1
    assert result.stderr.strip() == "interrupted; the same command goes on from the last finished part"


def test_unexpected_error_is_kept_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from selfreward import cli

    def broken() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "unexpected error: RuntimeError: boom" in said
    assert "Traceback" not in said
    path = Path(said.split()[-1])
    assert "boom" in path.read_text()
    path.unlink()
