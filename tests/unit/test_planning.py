"""planning.py: what a run would do is what it then does; drift, --from, accepted drift."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfreward.artifacts import Artifact, Run, RunDir, Stage, read_json, write_json
from selfreward.config import Config
from selfreward.errors import CorruptArtifactError, DriftError, StoppedError, UsageError
from selfreward.planning import Options, Plan, make_plan, prepare
from selfreward.storage import hash_file
from selfreward.types import Counts, Prompt

KEYS = ["seed", "m0", "sft", "sft/evals", "m1", "m1/evals", "round-1/prompts", "round-1/samples"]
INPUTS = {"sft": ["seed", "m0"], "sft/evals": ["sft"], "m1": ["m0"], "m1/evals": ["m1", "sft/evals"],
          "round-1/prompts": ["m1"], "round-1/samples": ["m1", "round-1/prompts"]}  # fmt: skip
ITEMS = [Prompt(f"p{i}", "x", "file") for i in range(6)]


class Bench:
    """A pipeline in small: each stage works through six items in chunks of two. It stops, as if killed, in `killed_in` after
    one chunk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = dict.fromkeys(KEYS, 1)
        self.seed = 0
        self.killed_in: str | None = None

    @property
    def config(self) -> Config:
        return Config(name="r", run_dir=str(self.folder), random_seed=self.seed)

    @property
    def directory(self) -> RunDir:
        return RunDir(self.folder / "r")

    def walk(self, run: Run) -> Iterator[Artifact]:
        made: dict[str, Artifact] = {}
        for key in KEYS:
            inputs = {name: made[name] for name in INPUTS.get(key, ())}
            made[key] = run.stage(key, {"it": {"setting": self.settings[key]}}, inputs, self.work)
            yield made[key]

    def work(self, stage: Stage) -> Counts:
        def chunk(items: Sequence[Prompt]) -> list[Prompt]:
            if self.killed_in == stage.key and items[0].id != "p0":
                raise KeyboardInterrupt
            return [Prompt(item.id, str(self.settings[stage.key]), "file") for item in items]

        rows = stage.chunks("it", ITEMS, 2, chunk, Prompt)
        stage.write_rows("rows", rows)
        return Counts(len(rows), len(rows))

    def plan(self, **options: Any) -> Plan:
        return make_plan(self.config, self.walk, KEYS, Options(**options))

    def run(self, **options: Any) -> dict[str, str]:
        """Stage -> what the log says that was done with it."""
        lines = len(self.log())
        with Run.open(self.config) as run:
            prepare(run, self.walk, KEYS, Options(**options))
            for artifact in self.walk(run):
                if artifact.key == options.get("until"):
                    break
        said = {"stage reused": "reused", "stage finished": "done"}
        return {line["data"]["stage"]: said[line["message"]] for line in self.log()[lines:] if line["message"] in said}

    def kill(self, key: str, **options: Any) -> None:
        self.killed_in = key
        with pytest.raises(KeyboardInterrupt):
            self.run(**options)
        self.killed_in = None

    def log(self) -> list[dict[str, Any]]:
        path = self.directory.log
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def record(self, key: str) -> dict[str, Any]:
        loaded: dict[str, Any] = read_json(self.directory.root / key / "record.json")
        return loaded

    def files(self) -> dict[str, bytes]:
        root = self.directory.root
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "run.log"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def actions(plan: Plan) -> dict[str, str]:
    return {stage.key: stage.action for stage in plan.stages}


def test_a_plan_of_nothing_makes_nothing(bench: Bench) -> None:
    plan = bench.plan()
    assert set(actions(plan).values()) == {"do"}
    assert [stage.key for stage in plan.stages] == KEYS
    assert not (bench.folder / "r").exists()


def test_a_second_run_reuses_everything(bench: Bench) -> None:
    assert set(bench.run().values()) == {"done"}
    before = bench.files()
    assert set(actions(bench.plan()).values()) == {"reuse"}
    assert bench.run() == dict.fromkeys(KEYS, "reused")
    assert bench.files() == before


def test_committed_parts_are_counted_and_gone_on_from(bench: Bench) -> None:
    bench.kill("m1")
    (stage,) = [stage for stage in bench.plan().stages if stage.state == "partly"]
    assert (stage.key, stage.action, stage.num_parts) == ("m1", "go on", 1)
    assert bench.run()["m1"] == "done"


@pytest.mark.parametrize("number", range(12))
def test_what_a_plan_says_is_what_the_run_does(bench: Bench, number: int) -> None:
    rng = random.Random(number)
    if rng.random() < 0.5:
        bench.kill(rng.choice(KEYS))
    else:
        bench.run(until=rng.choice(KEYS))
    for key in rng.sample(KEYS, rng.randrange(3)):
        shutil.rmtree(bench.directory.root / key, ignore_errors=True)
    for key in rng.sample(KEYS, rng.randrange(2)):
        bench.settings[key] = 2
    options: dict[str, Any] = {"accept_drift": rng.random() < 0.5}
    if rng.random() < 0.4:
        options["again_from"] = rng.choice(KEYS)
    before = bench.files()
    plan = bench.plan(**options)
    assert bench.files() == before, "a plan makes nothing"
    if any(stage.action == "stop" for stage in plan.stages):
        with pytest.raises(DriftError):
            bench.run(**options)
        assert bench.files() == before, "drift is found before any work"
        return
    wanted = {"reuse": "reused", "accept": "reused"}
    assert bench.run(**options) == {key: wanted.get(action, "done") for key, action in actions(plan).items()}


def test_drift_names_each_field_once_its_stages_and_the_three_ways_on(bench: Bench) -> None:
    bench.run()
    bench.settings |= {"sft": 2, "round-1/samples": 3}
    before, log = bench.files(), len(bench.log())
    with pytest.raises(DriftError) as caught:
        bench.run()
    message = str(caught.value)
    assert "it.setting was 1, is 2 (sft)" in message
    assert "it.setting was 1, is 3 (round-1/samples)" in message
    assert "built on these: sft/evals, m1/evals" in message
    for way in ("another `name`", "--from sft", "--accept-drift"):
        assert way in message
    assert bench.files() == before
    assert not any("stage" in line["message"] for line in bench.log()[log:])


def test_another_seed_touches_all_stages_and_is_named_once(bench: Bench) -> None:
    bench.run()
    bench.seed = 7
    with pytest.raises(DriftError) as caught:
        bench.run()
    assert str(caught.value).count("random_seed") == 1
    assert "random_seed was 0, is 7 (all stages)" in str(caught.value)


def test_another_package_version_is_drift_and_another_commit_is_not(bench: Bench) -> None:
    bench.run()
    for key in ("m0", "sft"):
        record = bench.record(key)
        changed = {**record, "versions": {**record["versions"], "torch": "0.4.1"}, "commit": "another"}
        write_json(bench.directory.root / key / "record.json", changed)
    (change,) = bench.plan().drift
    assert (change.name, change.old, change.stages) == ("torch", "0.4.1", ("m0", "sft"))
    with pytest.raises(DriftError, match=r'torch was "0\.4\.1", is .* \(m0, sft\)'):
        bench.run()
    assert bench.run(accept_drift=True) == dict.fromkeys(KEYS, "reused")
    assert bench.record("sft")["accepted_drift"][0]["field"] == "versions.torch"


def test_begun_stages_of_other_settings_are_stale_too(bench: Bench) -> None:
    bench.kill("m1")
    bench.settings["m1"] = 2
    with pytest.raises(DriftError, match=r"it\.setting was 1, is 2 \(m1\)"):
        bench.run()
    bench.settings["m1"] = 1
    assert bench.run()["m1"] == "done", "the parts were left alone"


def test_accepted_drift_stands_in_every_record_from_then_on_and_stays_accepted(bench: Bench) -> None:
    bench.run(until="sft/evals")
    old = bench.record("sft")
    bench.settings["sft"] = 2
    done = bench.run(accept_drift=True)
    assert done == {key: "reused" if key in KEYS[:4] else "done" for key in KEYS}
    record = bench.record("sft")
    (entry,) = record["accepted_drift"]
    assert {name: entry[name] for name in ("stage", "field", "old", "new")} == {
        "stage": "sft", "field": "sections.it.setting", "old": 1, "new": 2,
    }  # fmt: skip
    assert entry["date"]
    assert {name: value for name, value in record.items() if name != "accepted_drift"} == old
    assert all(bench.record(key)["accepted_drift"] == [entry] for key in KEYS[4:])
    assert "accepted_drift" not in bench.record("seed"), "made before, and not touched"
    assert bench.run() == dict.fromkeys(KEYS, "reused"), "what was accepted is not asked again"
    assert bench.record("sft") == record
    bench.settings["sft"] = 3
    with pytest.raises(DriftError, match="was 1, is 3"):
        bench.run()


def test_parts_of_other_settings_are_moved_aside_when_drift_is_accepted(bench: Bench) -> None:
    bench.kill("m1")
    bench.settings["m1"] = 2
    said: list[str] = []
    assert bench.run(accept_drift=True, say=said.append)["m1"] == "done"
    (moved,) = (bench.directory.root / "superseded").iterdir()
    assert len(list((moved / "m1/parts").glob("*.parquet"))) == 1
    assert any("moved to" in line for line in said)


def test_parts_of_another_version_go_on_when_accepted_and_the_record_says_so(bench: Bench) -> None:
    bench.kill("m1")
    begun = bench.directory.root / "m1/parts/begun.json"
    noted = read_json(begun)
    write_json(begun, {**noted, "versions": {**noted["versions"], "numpy": "0.1"}})
    part = next((bench.directory.root / "m1/parts").glob("*.parquet")).read_bytes()
    assert part
    with pytest.raises(DriftError, match=r'numpy was "0\.1"'):
        bench.run()
    assert bench.run(accept_drift=True)["m1"] == "done"
    assert [item["field"] for item in bench.record("m1")["accepted_drift"]] == ["versions.numpy"]


def test_from_does_a_stage_and_all_behind_it_again_and_keeps_the_old(bench: Bench) -> None:
    bench.run()
    bench.directory.report.write_text("old report")
    outputs = {key: bench.record(key)["outputs"] for key in KEYS}
    said: list[str] = []
    done = bench.run(again_from="sft/evals", say=said.append)
    assert done == {key: "reused" if key in KEYS[:3] else "done" for key in KEYS}
    (moved,) = (bench.directory.root / "superseded").iterdir()
    assert moved.name.endswith("-sft-evals")
    assert {key: read_json(moved / key / "record.json")["outputs"] for key in KEYS[3:]} == {k: outputs[k] for k in KEYS[3:]}
    assert (moved / "report.html").read_text() == "old report"
    assert (moved / "config.json").is_file()
    assert {key: bench.record(key)["outputs"] for key in KEYS} == outputs
    assert str(moved) in said[0]
    assert bench.run() == dict.fromkeys(KEYS, "reused")


def test_from_takes_other_settings_behind_it_but_not_before_it(bench: Bench) -> None:
    bench.run()
    bench.settings |= {"m1": 2, "round-1/samples": 2}
    assert bench.run(again_from="m1")["m1"] == "done"
    bench.settings["sft"] = 2
    before = bench.files()
    with pytest.raises(DriftError, match=r"\(sft\)"):
        bench.run(again_from="m1")
    assert bench.files() == before
    assert bench.run(again_from="m1", accept_drift=True)["sft"] == "reused"


def test_from_twice_within_a_second_keeps_both(bench: Bench) -> None:
    bench.run()
    for _ in range(3):
        bench.run(again_from="round-1/samples")
    assert len(list((bench.directory.root / "superseded").iterdir())) == 3


def test_from_moves_stages_that_are_not_asked_for_any_more(bench: Bench) -> None:
    bench.run()
    shutil.copytree(bench.directory.root / "round-1/samples", bench.directory.root / "round-2/samples")
    said: list[str] = []
    assert bench.plan().extra == ("round-2/samples",)
    bench.run(say=said.append)
    assert "round-2/samples" in said[0]
    bench.run(again_from="m1")
    assert bench.plan().extra == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"again_from": "nothing"}, "unknown stage 'nothing'"),
        ({"until": "nothing"}, "unknown stage 'nothing'"),
        ({"until": "seed", "again_from": "m1"}, "--from m1 comes after seed"),
    ],
)
def test_options_that_cannot_be_meant(bench: Bench, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bench.plan(**options)


def test_a_damaged_stage_stops_before_any_work(bench: Bench) -> None:
    bench.run()
    shutil.rmtree(bench.directory.root / "m1")
    (bench.directory.root / "sft/rows.parquet").write_bytes(b"flipped")
    assert actions(bench.plan())["sft"] == "stop"
    with pytest.raises(CorruptArtifactError, match=r"rows\.parquet changed since.*--from sft"):
        bench.run()
    assert not (bench.directory.root / "m1").exists()
    assert bench.run(again_from="sft")["sft"] == "done"


def test_nothing_is_moved_aside_for_work_on_damaged_weights(bench: Bench) -> None:
    bench.run()
    weights = bench.directory.root / "sft/model.safetensors"
    record = json.loads((weights.parent / "record.json").read_text())
    weights.write_bytes(b"whole")
    record["outputs"]["model.safetensors"] = hash_file(weights)
    (weights.parent / "record.json").write_text(json.dumps(record))
    weights.write_bytes(b"wrong")
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors is damaged.*--from sft"):
        bench.run(again_from="m1")
    assert (bench.directory.root / "m1/record.json").is_file()
    assert not (bench.directory.root / "superseded").exists()


def test_no_clock_decides_anything(bench: Bench) -> None:
    bench.kill("round-1/samples")
    for number, path in enumerate(sorted(bench.directory.root.rglob("*"))):
        os.utime(path, (10**9 * (number % 3), 10**9 * (5 - number % 3)))  # before and after each other, some in the future
    for key, year in zip(KEYS[:-1], (2999, 1970, 2500, 1999, 2026, 1980, 2100), strict=True):
        changed = {**bench.record(key), "started": f"{year}-01-01T00:00:00+00:00", "seconds": -5.0}
        write_json(bench.directory.root / key / "record.json", changed)
    assert bench.run() == {key: "reused" if key != KEYS[-1] else "done" for key in KEYS}


def test_a_wanted_stop_ends_the_run_between_stages_and_loses_nothing(bench: Bench) -> None:
    with Run.open(bench.config) as run:
        walk: Callable[[], Artifact] = bench.walk(run).__next__
        walk()
        run.stop.ask("SIGTERM")
        with pytest.raises(StoppedError):
            walk()
    assert actions(bench.plan())["seed"] == "reuse"
    assert set(bench.run().values()) == {"reused", "done"}
