"""artifacts.py and rundir.py: paths, records, reuse, drift, resume."""

from dataclasses import replace
from pathlib import Path

import pytest

from selfreward.artifacts import (
    Artifact,
    Run,
    RunDir,
    derive_seed,
    hash_file,
    read_json,
    read_rows,
)
from selfreward.config import Config
from selfreward.errors import CorruptArtifactError, DataError, DriftError, UsageError
from selfreward.progress import NullProgress
from selfreward.types import Counts, Drop, Judgement, Prompt

PROMPTS = [Prompt(f"p{i}", f"text {i}", "file") for i in range(10)]


def open_run(tmp_path, **changes):
    return Run.open(Config(name="r", run_dir=str(tmp_path), **changes))


# --- paths


def test_paths():
    run = RunDir("runs/x")
    assert run.pairs(2) == Path("runs/x/round-2/pairs")
    assert [run.model_stage(name).as_posix() for name in ("sft", "m1", "m2", "m3")] == [
        "runs/x/sft",
        "runs/x/m1",
        "runs/x/round-1/model",
        "runs/x/round-2/model",
    ]
    assert [run.evals(name).as_posix() for name in ("sft", "m1", "m2")] == [
        "runs/x/sft/evals",
        "runs/x/m1/evals",
        "runs/x/round-1/evals",
    ]
    for bad in ("M1", "model", "m", "m01"):
        with pytest.raises(UsageError, match=bad):
            run.model_stage(bad)
    with pytest.raises(UsageError):
        run.round(0)


# --- stages


def write_prompts(stage):
    stage.write_rows("prompts", PROMPTS)
    stage.reject([Drop("x", "short"), Drop("y", "short"), Drop("z", "long")])
    stage.spent.add_tokens(prompt=7, generated=3)
    stage.roles["policy"] = "m1"
    stage.notes["reached"] = "num_prompts"
    return Counts(13, 10, {"short": 2, "long": 1, "never": 0})


def test_a_stage_leaves_a_record(tmp_path):
    config = Config(name="r", run_dir=str(tmp_path), random_seed=5)
    with Run.open(config) as run:
        start = run.stage("m0", {}, {}, lambda stage: Counts(0, 0))
        artifact = run.stage("round-1/prompts", {"judge": config.judge, "rubric": "abc"}, {"model": start}, write_prompts)
    assert artifact == Artifact("round-1/prompts", tmp_path / "r/round-1/prompts", artifact.fingerprint)
    assert artifact.checkpoint == artifact.path / "checkpoint"
    record = read_json(artifact.path / "record.json")
    assert record["stage"] == "round-1/prompts"
    assert record["fingerprint"] == artifact.fingerprint
    assert record["sections"] == {"judge": config.judge.model_dump(mode="json"), "rubric": "abc"}
    assert record["inputs"] == {"model": start.fingerprint}
    assert record["random_seed"] == 5
    assert record["counts"] == {"in": 13, "out": 10, "dropped": {"long": 1, "short": 2}}
    assert record["tokens"] == {"prompt": 7, "generated": 3}
    assert record["roles"] == {"policy": "m1"}
    assert record["notes"] == {"reached": "num_prompts"}
    assert record["seconds"] >= 0
    assert record["versions"]["selfreward"]
    assert {"commit", "started"} <= record.keys()
    assert record["outputs"] == {name: hash_file(artifact.path / name) for name in ("prompts.parquet", "rejects.parquet")}


def test_a_finished_stage_is_reused_and_rejects_always_exist(tmp_path):
    calls = []

    def work(stage):
        calls.append(stage.key)
        return Counts(0, 0)

    for _ in range(2):
        with open_run(tmp_path) as run:
            artifact = run.stage("seed", {"a": (1, 2)}, {}, work)
    assert calls == ["seed"]
    assert read_rows(artifact.path / "rejects.parquet", Drop) == []


def test_reuse_does_not_depend_on_the_runs_name_or_place(tmp_path):
    prints = set()
    for name in ("a", "b"):
        with Run.open(Config(name=name, run_dir=str(tmp_path / name))) as run:
            prints.add(run.stage("seed", {}, {}, lambda stage: Counts(0, 0)).fingerprint)
    assert len(prints) == 1


def test_other_settings_stop_and_name_every_difference(tmp_path):
    work = lambda stage: Counts(0, 0)  # noqa: E731
    with open_run(tmp_path) as run:
        first = run.stage("seed", {}, {}, work)
        run.stage("sft", {"sft": {"learning_rate": 1e-5, "num_epochs": 1}, "old": [1]}, {"seed": first}, work)
    other = replace(first, fingerprint="0" * 16)
    with open_run(tmp_path, random_seed=3) as run, pytest.raises(DriftError) as caught:
        run.stage("sft", {"sft": {"learning_rate": 2e-5, "num_epochs": 1}, "new": "x"}, {"seed": other}, work)
    message = str(caught.value)
    for part in (
        "sections.sft.learning_rate was 1e-05, is 2e-05",
        "sections.old was [1], is (absent)",
        'sections.new was (absent), is "x"',
        "the contents of inputs.seed changed",
        "random_seed was 0, is 3",
        "another `name`",
        f"delete {tmp_path / 'r' / 'sft'}",
    ):
        assert part in message
    assert "num_epochs" not in message


def test_a_finished_stage_that_lost_a_file_is_not_reused(tmp_path):
    with open_run(tmp_path) as run:
        artifact = run.stage("round-1/prompts", {}, {}, write_prompts)
        (artifact.path / "prompts.parquet").unlink()
        with pytest.raises(CorruptArtifactError, match=r"lacks prompts\.parquet"):
            run.stage("round-1/prompts", {}, {}, write_prompts)


def test_a_finished_stage_with_a_changed_file_is_not_reused(tmp_path):
    with open_run(tmp_path) as run:
        artifact = run.stage("round-1/prompts", {}, {}, write_prompts)
        file = artifact.path / "prompts.parquet"
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(CorruptArtifactError, match=r"prompts\.parquet changed since"):
            run.stage("round-1/prompts", {}, {}, write_prompts)


def test_weights_are_not_hashed_again(tmp_path):
    def train(stage):
        (stage.path / "checkpoint").mkdir()
        (stage.path / "checkpoint/model.safetensors").write_bytes(b"weights")
        return Counts(0, 0)

    with open_run(tmp_path) as run:
        artifact = run.stage("m1", {}, {}, train)
        (artifact.checkpoint / "model.safetensors").write_bytes(b"WEIGHTS")
        assert run.stage("m1", {}, {}, train) == artifact, "a stage that reads them finds it: test_faults_damage.py"


@pytest.mark.parametrize("text", ["", '{"stage": "seed"', "{}", "[]"])
def test_a_damaged_record_is_named(tmp_path, text):
    with open_run(tmp_path) as run:
        artifact = run.stage("seed", {}, {}, lambda stage: Counts(0, 0))
        (artifact.path / "record.json").write_text(text)
        with pytest.raises(CorruptArtifactError, match=r"record\.json"):
            run.stage("seed", {}, {}, lambda stage: Counts(0, 0))


def test_a_failed_stage_leaves_no_record_and_its_leftovers_do_not_survive(tmp_path):
    def fail(stage):
        stage.write_json("stale", 1)
        (stage.path / "checkpoint").mkdir()
        (stage.path / "checkpoint" / "model.safetensors").write_bytes(b"half")
        raise DataError("no rows")

    with open_run(tmp_path) as run:
        with pytest.raises(DataError):
            run.stage("seed", {}, {}, fail)
        assert not (tmp_path / "r/seed/record.json").exists()
        artifact = run.stage("seed", {}, {}, write_prompts)
    assert sorted(read_json(artifact.path / "record.json")["outputs"]) == ["prompts.parquet", "rejects.parquet"]
    assert not (artifact.path / "stale.json").exists()


def test_a_stage_inside_a_stages_folder_is_its_own(tmp_path):
    with open_run(tmp_path) as run:
        run.stage("m1", {}, {}, write_prompts)
        evals = run.stage("m1/evals", {}, {}, write_prompts)
        (tmp_path / "r/m1/record.json").unlink()
        again = run.stage("m1", {}, {}, write_prompts)
        assert sorted(read_json(again.path / "record.json")["outputs"]) == ["prompts.parquet", "rejects.parquet"]
        assert run.stage("m1/evals", {}, {}, lambda stage: pytest.fail("done already")) == evals


def test_optimizer_states_and_half_written_files_are_no_outputs(tmp_path):
    def train(stage):
        folder = stage.path / "checkpoint"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", ".tmp-1-config.json"):
            (folder / name).write_bytes(b"x")
        return Counts(0, 0)

    with open_run(tmp_path) as run:
        record = read_json(run.stage("m1", {}, {}, train).path / "record.json")
    assert sorted(record["outputs"]) == ["checkpoint/model.safetensors", "rejects.parquet"]


@pytest.mark.parametrize(
    "drops", [[], [Drop("a", "short")], [Drop("a", "short"), Drop("b", "long")], [Drop("a", "long"), Drop("b", "long")]]
)
def test_drops_that_are_not_kept_are_a_defect(tmp_path, drops):
    def work(stage):
        stage.reject(drops)
        return Counts(4, 2, {"short": 2})

    with open_run(tmp_path) as run, pytest.raises(AssertionError, match="kept"):
        run.stage("seed", {}, {}, work)


def test_counts_must_add_up():
    with pytest.raises(AssertionError, match="do not add up"):
        Counts(3, 2, {"short": 2})


@pytest.mark.parametrize("key", ["", "../x", "/x", "a//b", "A", "a/"])
def test_keys_stay_inside_the_run(tmp_path, key):
    with open_run(tmp_path) as run, pytest.raises(UsageError):
        run.stage(key, {}, {}, lambda stage: Counts(0, 0))


def test_stage_seeds_depend_on_run_seed_stage_and_parts_alone(tmp_path):
    seen = {}

    def work(stage):
        seen[stage.config.name, stage.config.random_seed, stage.key] = stage.seed("p1", 0)
        assert stage.seed("p1", 0) != stage.seed("p1", 1)
        return Counts(0, 0)

    for name, random_seed in (("a", 0), ("b", 0), ("c", 1)):
        with Run.open(Config(name=name, run_dir=str(tmp_path), random_seed=random_seed)) as run:
            run.stage("sft", {}, {}, work)
            run.stage("m1", {}, {}, work)
    assert seen["a", 0, "sft"] == seen["b", 0, "sft"] == derive_seed(0, "sft", "p1", 0)
    assert len(set(seen.values())) == 4


# --- chunks


class StopError(Exception):
    pass


def judge(stage, calls, fail_at=None):
    def work(chunk):
        calls.append([prompt.id for prompt in chunk])
        if len(calls) == fail_at:
            raise StopError
        stage.spent.add_tokens(prompt=len(chunk), generated=2 * len(chunk), num_untold=len(chunk) % 4)
        return [Judgement(prompt.id, (), stage.seed(prompt.id) % 7) for prompt in chunk]

    judgements = stage.chunks("judgements", PROMPTS, 4, work, Judgement)
    stage.write_rows("judgements", judgements)
    stage.write_json("scores", [judgement.score for judgement in judgements])
    return Counts(len(judgements), len(judgements))


def test_a_restart_redoes_one_chunk_and_changes_no_byte(tmp_path):
    calls: list[list[str]] = []
    with open_run(tmp_path / "broken") as run, pytest.raises(StopError):
        run.stage("round-1/judgements", {}, {}, lambda stage: judge(stage, calls, fail_at=3))
    with open_run(tmp_path / "broken") as run:
        resumed = run.stage("round-1/judgements", {}, {}, lambda stage: judge(stage, calls))
    assert [len(chunk) for chunk in calls] == [4, 4, 2, 2], "two chunks were committed, one was redone"
    with open_run(tmp_path / "whole") as run:
        whole = run.stage("round-1/judgements", {}, {}, lambda stage: judge(stage, []))
    one, other = (read_json(artifact.path / "record.json") for artifact in (resumed, whole))
    assert one["outputs"] == other["outputs"]
    assert one["tokens"] == other["tokens"] == {"prompt": 10, "generated": 20}
    assert one["notes"] == other["notes"] == {"num_replies_without_token_counts": 2}
    assert [row.completion_id for row in read_rows(whole.path / "judgements.parquet", Judgement)] == [p.id for p in PROMPTS]
    assert not (resumed.path / "parts").exists()


@pytest.mark.parametrize("change", ["settings", "items"])
def test_chunks_of_other_settings_or_items_are_not_reused(tmp_path, change):
    calls: list[int] = []

    def attempt(sections, items):
        def work(stage):
            stage.chunks("x", items, 4, lambda chunk: calls.append(len(chunk)) or list(chunk), Prompt)
            raise StopError

        with open_run(tmp_path) as run, pytest.raises(StopError):
            run.stage("seed", sections, {}, work)

    attempt({"rubric": 1}, PROMPTS)
    attempt({"rubric": 1}, PROMPTS)
    assert calls == [4, 4, 2]
    if change == "settings":
        attempt({"rubric": 2}, PROMPTS)
        assert calls == [4, 4, 2, 4, 4, 2]
    else:
        attempt({"rubric": 1}, [*PROMPTS[:5], replace(PROMPTS[5], text="new"), *PROMPTS[6:]])
        assert calls == [4, 4, 2, 4]


def test_chunks_may_map_items_to_any_number_of_rows(tmp_path):
    def work(stage):
        assert stage.chunks("none", PROMPTS, 3, lambda chunk: [], Prompt) == []
        assert stage.chunks("empty", [], 3, lambda chunk: pytest.fail("no items"), Prompt) == []
        assert len(stage.chunks("twice", PROMPTS, 3, lambda chunk: [*chunk, *chunk], Prompt)) == 20
        return Counts(0, 0)

    with open_run(tmp_path) as run:
        run.stage("seed", {}, {}, work)


def test_progress_counts_items(tmp_path):
    done = []

    class Recorder(NullProgress):
        def task(self, description, total):
            done.append((description, total))
            return super().task(description, total)

    with Run.open(Config(name="r", run_dir=str(tmp_path)), Recorder()) as run:
        run.stage("seed", {}, {}, lambda stage: stage.chunks("x", PROMPTS, 4, list, Prompt) and Counts(0, 0))
    assert done == [("seed: x", 10)]
