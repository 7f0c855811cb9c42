"""A run in real processes: Ctrl-C and SIGTERM, once and twice, two at once; and what each kind of drift is called."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pipeline_scripted import SETTINGS, write_script, write_seeds

from selfreward.artifacts import Run, read_json
from selfreward.config import Config, parse_config
from selfreward.pipeline import plan_pipeline, run_pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
from endpoint_server import EndpointServer, serving

STAGE = "round-1/judgements"
DELAY_S = 0.15


def verdict(asked: str, seed: int) -> str:
    return f"Read. Score: {(len(asked) + seed) % 6}"


class Bench:
    """A run that is finished up to its first round's samples, copied for each test; a slow server judges the samples."""

    def __init__(self, made: Path, tree: dict[str, Any], folder: Path) -> None:
        self.runs = folder / "runs with blänks"
        shutil.copytree(made, self.runs)
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump({**tree, "run_dir": str(self.runs)}, allow_unicode=True), encoding="utf-8")
        self.stage = self.runs / "run" / STAGE

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "selfreward.cli", "stage", str(self.config), STAGE, *options]
        # A process in the background of a shell inherits an ignored SIGINT; people's have the default.
        return subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def parts(self) -> list[Path]:
        return sorted((self.stage / "parts").glob("*.parquet"))

    def wait_for_parts(self, process: subprocess.Popen[str], number: int = 1) -> None:
        deadline = time.monotonic() + 120
        while len(self.parts()) < number:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def finish(self) -> dict[str, str]:
        process = self.start()
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        outputs: dict[str, str] = read_json(self.stage / "record.json")["outputs"]
        return outputs


@pytest.fixture(scope="module")
def server() -> Iterator[EndpointServer]:
    pytest.importorskip("openai")
    with serving(verdict) as running:
        running.delay_of = lambda asked: DELAY_S
        yield running


@pytest.fixture(scope="module")
def made(server: EndpointServer, tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with a model, a rubric, seeds, and a run finished up to its first round's samples; the run's settings."""
    folder = tmp_path_factory.mktemp("control")
    shutil.copytree(tiny_model_dir, folder / "model")
    rubric = Path(str(files("selfreward.rubrics"))) / "additive.md"
    shutil.copy(rubric, folder / "rubric.md")
    tree = {
        **SETTINGS,
        "name": "run",
        "run_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model")},
        "engine": {
            "name": "scripted",
            "script": str(write_script(folder / "script.json")),
            "threads": 1,
            "device": "cpu",
            "chunk_size": 2,
        },
        "seed": {"sources": [{"format": "seed-folder"}], "path": str(write_seeds(folder / "seeds"))},
        "judge": {**SETTINGS["judge"], "model": "endpoint:slow", "rubric": str(folder / "rubric.md")},
        "endpoints": {"slow": server.settings(max_concurrency=1)},
    }
    with Run.open(parse_config(tree)) as run:
        run_pipeline(run, "round-1/samples")
    return folder, tree


@pytest.fixture(scope="module")
def make_bench(made: tuple[Path, dict[str, Any]]) -> Callable[[Path], Bench]:
    folder, tree = made
    return lambda target: Bench(folder / "runs", tree, target)


@pytest.fixture(scope="module")
def whole(make_bench: Callable[[Path], Bench], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted run makes."""
    return make_bench(tmp_path_factory.mktemp("whole")).finish()


def test_one_signal_finishes_the_part_and_the_same_command_goes_on(
    make_bench: Callable[[Path], Bench], whole: dict[str, str], tmp_path: Path
) -> None:
    bench = make_bench(tmp_path)
    process = bench.start()
    bench.wait_for_parts(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Ctrl-C: finishing the current part, then stopping; once more: stop now" in said
    assert said.strip().splitlines()[-1] == "stopped (Ctrl-C); the same command goes on from here"
    assert "Traceback" not in said
    assert 1 <= len(bench.parts()) < 20
    assert not (bench.stage / "record.json").exists()
    assert not (bench.runs / "run/run.lock").exists()
    assert not list((bench.runs / "run").rglob(".tmp-*"))
    committed = {part.name: part.stat().st_mtime_ns for part in bench.parts()}
    assert "run stopped as asked" in (bench.runs / "run/run.log").read_text()
    again = bench.start()
    bench.wait_for_parts(again, len(committed) + 1)
    assert committed.items() <= {part.name: part.stat().st_mtime_ns for part in bench.parts()}.items(), "nothing is redone"
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert read_json(bench.stage / "record.json")["outputs"] == whole


def test_two_signals_stop_at_once_and_lose_one_part_at_most(
    make_bench: Callable[[Path], Bench], whole: dict[str, str], server: EndpointServer, tmp_path: Path
) -> None:
    bench = make_bench(tmp_path)
    process = bench.start()
    bench.wait_for_parts(process)
    server.delay_of = lambda asked: 20.0  # the part at work would take long
    try:
        time.sleep(3 * DELAY_S)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "once more" not in process.stderr.readline():
            pass
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert time.monotonic() - started < 10, "not the end of the part"
    finally:
        server.delay_of = lambda asked: DELAY_S
    assert process.returncode == 1, said
    assert "interrupted; the same command goes on from the last finished part" in said
    assert "Traceback" not in said
    assert bench.parts()
    assert not (bench.stage / "record.json").exists()
    assert bench.finish() == whole


def test_a_killed_run_is_not_running_and_two_at_once_are_refused(
    make_bench: Callable[[Path], Bench], server: EndpointServer, tmp_path: Path
) -> None:
    bench = make_bench(tmp_path)
    process = bench.start()
    bench.wait_for_parts(process)
    server.delay_of = lambda asked: 60.0
    second = bench.start()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"another process is working in {bench.runs / 'run'}: process {process.pid} on " in said
    status = selfreward("status", str(bench.runs / "run"), "--json")
    assert f"process {process.pid}" in status["running"]
    assert {row["stage"]: row["state"] for row in status["stages"]}[STAGE] == "running"
    server.delay_of = lambda asked: DELAY_S
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    status = selfreward("status", str(bench.runs / "run"), "--json")
    (row,) = [row for row in status["stages"] if row["stage"] == STAGE]
    assert status["running"] is None
    assert (row["state"], row["action"], row["parts"]) == ("partly", "go on", len(bench.parts()))
    assert status["next"].startswith(f"9 stages reused; goes on {STAGE}"), status["next"]
    bench.finish()
    assert "stale lock file taken over" in (bench.runs / "run/run.log").read_text()


def test_after_from_the_way_on_is_another_command(make_bench: Callable[[Path], Bench], tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    process = bench.start("--from", "round-1/samples")
    bench.wait_for_parts(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "round-1/samples: moved to " in said
    assert said.strip().splitlines()[-1] == "stopped (SIGTERM); the same command without --from goes on from here"


@contextmanager
def edited(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    """A text file that is another one inside the block."""
    before = path.read_bytes()
    path.write_text(edit(before.decode()), encoding="utf-8")
    try:
        yield
    finally:
        path.write_bytes(before)


def more(text: str) -> str:
    return text.rstrip("\n") + " \n"


def older_torch(text: str) -> str:
    record = json.loads(text)
    return json.dumps({**record, "versions": {**record["versions"], "torch": "1.0"}})


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> Config:
    copy = json.loads(json.dumps(tree))
    for name, value in changes.items():
        *sections, field = name.split(".")
        place = copy
        for section in sections:
            place = place[section]
        place[field] = value
    return parse_config(copy)


ALL = ["seed", "m0", "sft", "sft/evals", "eft", "m1", "m1/evals", "round-1/prompts", "round-1/samples"]
EVALS = ["sft/evals", "m1/evals"]
DRIFT: list[tuple[str, dict[str, Any], dict[str, list[str]]]] = [
    ("", {}, {}),
    ("", {"num_rounds": 1}, {}),
    ("", {"num_rounds": 4}, {}),
    ("", {"judge.num_votes": 5}, {}),  # no stage that is there was made with it
    ("", {"random_seed": 9}, {"random_seed was 5, is 9": ALL}),
    ("", {"sft.learning_rate": 0.5}, {"sft.learning_rate was 0.001, is 0.5": ["sft", "m1"]}),
    ("", {"judge.temperature": 0.1}, {"judge.temperature was 0.7, is 0.1": EVALS}),
    ("", {"sample.num_candidates": 7}, {"sample.num_candidates was 4, is 7": ["round-1/samples"]}),
    ("", {"mode": "no-eft", "replay.num_items": 0}, {'mode was "self-rewarding", is "no-eft"': ["m1"]}),
    ("", {"judge.rubric": "concise"}, {'judge.rubric was "RUBRIC", is "concise"': ["sft/evals", "eft", "m1", "m1/evals"]}),
    ("rubric.md", {}, {"the contents of judge.rubric changed": ["sft/evals", "eft", "m1", "m1/evals"]}),
    ("seeds/ift.jsonl", {}, {"the contents of the seed file ift.jsonl (seed.sources[0]) changed": ["seed"]}),
    ("model/config.json", {}, {"the contents of model.path changed": ["m0"]}),
    ("script.json", {}, {"the contents of engine.script changed": [*EVALS, "round-1/prompts", "round-1/samples"]}),
]  # fmt: skip


@pytest.mark.parametrize(("file", "changes", "named"), DRIFT)
def test_each_kind_of_drift_is_named_with_its_stages(
    made: tuple[Path, dict[str, Any]], file: str, changes: dict[str, Any], named: dict[str, list[str]]
) -> None:
    folder, tree = made
    config = changed(tree, changes)
    with edited(folder / file, more) if file else nullcontext():
        plan = plan_pipeline(config)
    wanted = {said.replace("RUBRIC", str(folder / "rubric.md")): stages for said, stages in named.items()}
    assert {str(change): list(change.stages) for change in plan.drift} == wanted
    assert plan.problem is None
    assert {stage.key for stage in plan.stages if stage.state == "stale"} == {key for keys in named.values() for key in keys}


def test_another_package_version_is_drift(made: tuple[Path, dict[str, Any]]) -> None:
    folder, tree = made
    with edited(folder / "runs/run/m0/record.json", older_torch):
        (change,) = plan_pipeline(parse_config(tree)).drift
    assert str(change).startswith('torch was "1.0", is ')
    assert change.stages == ("m0",)


def test_a_dry_run_makes_nothing(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, tree = made
    fresh = tmp_path / "fresh.yaml"
    fresh.write_text(yaml.safe_dump({**tree, "run_dir": str(tmp_path / "nowhere")}))
    status = selfreward("run", str(fresh), "--dry-run", "--json")
    assert status["next"] == f"begins seed, then {len(status['stages']) - 1} more"
    assert {row["action"] for row in status["stages"]} == {"do"}
    assert not (tmp_path / "nowhere").exists()


def selfreward(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "selfreward.cli", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded
