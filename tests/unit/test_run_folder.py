"""artifacts.Run: opening a run folder, what describes it, its log and its lock."""

import json
import subprocess
import sys

import pytest

from selfreward.artifacts import Run, read_json
from selfreward.config import Config, EngineConfig
from selfreward.errors import ConfigError, DriftError
from selfreward.types import Counts, Prompt

PROMPTS = [Prompt(f"p{i}", f"text {i}", "file") for i in range(3)]


def open_run(tmp_path, **changes):
    return Run.open(Config(name="r", run_dir=str(tmp_path), **changes))


def nothing(stage):
    return Counts(0, 0)


def test_the_folder_tells_what_made_its_artifacts(tmp_path):
    def described():
        return [(tmp_path / "r" / name).read_bytes() for name in ("config.json", "environment.json")]

    with open_run(tmp_path) as run:
        run.stage("seed", {"a": 1}, {}, nothing)
    first = described()
    with open_run(tmp_path, random_seed=3) as run, pytest.raises(DriftError):
        run.stage("seed", {"a": 1}, {}, nothing)
    assert described() == first, "drift changes nothing"
    with open_run(tmp_path, num_rounds=5) as run:
        assert described() == first, "opening changes nothing"
        run.stage("seed", {"a": 1}, {}, nothing)
        assert described() == first, "reuse changes nothing"
        run.stage("m0", {}, {}, nothing)
    assert read_json(tmp_path / "r/config.json")["num_rounds"] == 5, "new work has new settings"


def test_open_writes_config_and_environment_and_a_log_that_is_json(tmp_path):
    config = Config(name="r", run_dir=str(tmp_path), engine=EngineConfig(threads=3))
    with Run.open(config) as run:
        run.stage("seed", {}, {}, lambda stage: Counts(0, 0))
        run.logger.info("with %s", "arguments", extra={"data": {"path": tmp_path}})
        handlers = list(run.logger.handlers)
    assert not run.logger.handlers
    assert all(handler.stream is None for handler in handlers), "the file is closed"
    with pytest.raises(KeyError), Run.open(config) as run:
        raise KeyError("x")
    assert Config.model_validate(read_json(tmp_path / "r/config.json")) == config
    environment = read_json(tmp_path / "r/environment.json")
    assert environment["threads"] == 3
    assert {"python", "versions", "commit", "cpu", "cores", "platform"} <= environment.keys()
    lines = [json.loads(line) for line in (tmp_path / "r/run.log").read_text().splitlines()]
    assert [line["message"] for line in lines] == [
        "run opened",
        "stage started",
        "stage finished",
        "with arguments",
        "run opened",
        "run stopped",
    ]
    assert all({"time", "level"} <= line.keys() for line in lines)


def test_two_open_runs_keep_their_logs_apart(tmp_path):
    with Run.open(Config(name="a", run_dir=str(tmp_path))) as a, Run.open(Config(name="b", run_dir=str(tmp_path))) as b:
        a.logger.info("only a")
        b.logger.info("only b")
    assert "only b" not in (tmp_path / "a/run.log").read_text()
    assert "only a" not in (tmp_path / "b/run.log").read_text()


def test_a_folder_with_foreign_files_is_not_taken_over(tmp_path):
    (tmp_path / "r/seed").mkdir(parents=True)
    (tmp_path / "r/seed/mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="holds files but no run"):
        open_run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "r").rglob("*")) == ["mine.txt", "seed"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        Run.open(Config(name="file", run_dir=str(tmp_path)))


def test_two_processes_never_work_in_one_run(tmp_path):
    code = (
        "from selfreward.artifacts import Run; from selfreward.config import Config;"
        f"Run.open(Config(name='r', run_dir={str(tmp_path)!r})).close()"
    )
    with open_run(tmp_path):
        blocked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: another process is working in" in blocked.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, "closing gives the run free"
    with open_run(tmp_path), open_run(tmp_path):
        pass


def test_what_a_kill_left_beside_finished_work_goes_when_the_run_goes_on(tmp_path):
    """A kill between a record and the clearing of its stage's parts, and one while config, summary or report were written."""

    def chunked(stage):
        return Counts(len(stage.chunks("texts", PROMPTS, 2, list, Prompt)), 3)

    with open_run(tmp_path) as run:
        run.stage("seed", {}, {}, chunked)
    parts = tmp_path / "r/seed/parts"
    assert not parts.exists()
    parts.mkdir()
    (parts / "texts-00000-0123456789abcdef.parquet").write_bytes(b"whole once")
    for name in ("summary.json", "report.html", "environment.json"):
        (tmp_path / f"r/.tmp-4711-{name}").write_bytes(b"half")
    with open_run(tmp_path) as run:
        run.stage("seed", {}, {}, chunked)
        assert run.num_stages == {"done": 0, "reused": 1}
    assert not parts.exists()
    assert not list((tmp_path / "r").rglob(".tmp-*"))
