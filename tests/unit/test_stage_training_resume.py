"""A training stage that is cut off in any of its trainings: what was finished is kept, and the artifacts are the same."""

import json
import shutil

import pytest
from resume_bench import Steps
from training_reference import examples, pairs

from selfreward.artifacts import Artifact, Run, read_json, write_json, write_rows
from selfreward.errors import StoppedError
from selfreward.stages import dpo
from selfreward.types import EftExample

TRAINING = {"learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 2, "max_length": 1024}


@pytest.fixture
def stage(make_config, tiny_model_dir, tmp_path):
    """`stage(name, progress)`: (the run, what does its round-1/model stage), with replay after the preference training."""
    model = Artifact("m1", tmp_path / "m1", "0123456789abcdef")
    shutil.copytree(tiny_model_dir, model.checkpoint)
    chosen, replayed = (
        Artifact("round-1/pairs", tmp_path / "pairs", "1" * 16),
        Artifact("replay", tmp_path / "replay", "2" * 16),
    )
    write_rows(chosen.path / "pairs.parquet", pairs(9))
    write_json(chosen.path / "record.json", {"counts": {"dropped": {}}, "outputs": {}})
    items = [EftExample(item.id, item.messages[0].content, item.answer, "Seen. Score: 3", 3.0) for item in examples(3)]
    write_rows(replayed.path / "examples.parquet", items)

    def make(name, progress, **changes):
        config = make_config(
            name=name,
            checkpoints={"every_seconds": 0, "max_share": 1.0},
            dpo=TRAINING | {"final_learning_rate": 0.0},
            sft=TRAINING | {"final_learning_rate": 0.0},
            replay={"num_items": 3, "learning_rate": 1e-3},
            **changes,
        )
        run = Run.open(config, progress)
        return run, lambda: dpo.run(run, 1, model, chosen, replayed)

    return make


def record_of(artifact):
    return json.loads((artifact.path / "record.json").read_text())


def parts(artifact_path):
    return sorted(path.name for path in (artifact_path / "parts").glob("*/*"))


def test_a_finished_first_training_outlives_a_stop_in_the_second(stage):
    run, work = stage("whole", Steps())
    with run:
        whole = record_of(work())
    progress = Steps()
    run, work = stage("cut", progress)
    folder = run.dir.model(1)

    def stop_in(training, step):
        def advance():
            if progress.tasks[-1][0].startswith(f"round-1/model: {training}"):
                run.stop.ask("a test")

        progress.after, progress.then = step, advance

    with run:
        stop_in("preference training", 2)
        with pytest.raises(StoppedError):
            work()
        assert parts(folder) == ["step-00000002"]
    for number, step in enumerate((1, 2)):
        progress = Steps()
        run, work = stage("cut", progress)
        with run:
            stop_in("fine-tuning", step)
            with pytest.raises(StoppedError):
                work()
            trainings = [name for name, _ in progress.tasks if "log-probabilities" not in name]
            assert trainings[:-1] == ["round-1/model: preference training (resumed at step 2)"] * (number == 0), (
                "done once, kept"
            )
            assert parts(folder) == ["finished.json", "model", f"step-{step:08d}"]
            assert not (folder / "record.json").exists()
            assert not (folder / "checkpoint").exists()
    (stored,) = folder.glob("parts/*-replay/step-00000002/checkpoint.json")
    (finished,) = folder.glob("parts/*-dpo/finished.json")
    spent = read_json(stored)["state"]["seconds"] + read_json(finished)["state"]["result"]["earlier_seconds"]
    progress = Steps()
    run, work = stage("cut", progress)
    with run:
        artifact = work()
    assert [name for name, _ in progress.tasks] == ["round-1/model: fine-tuning (resumed at step 2)"]
    record = record_of(artifact)
    assert record["outputs"] == whole["outputs"]
    assert record["notes"] == whole["notes"]
    assert record["seconds"] > spent, "the attempts before count"
    usage = record["usage"]
    assert usage["trained_tokens"] == record["notes"]["num_tokens"]
    assert spent < usage["training_seconds"] < record["seconds"]
    assert not (artifact.path / "parts").exists()


@pytest.mark.parametrize("name", ["model/model.safetensors", "finished.json"])
def test_a_damaged_result_of_the_first_training_is_made_again(name, stage):
    progress = Steps()
    run, work = stage("cut", progress)
    progress.after, progress.then = 1, lambda: progress.tasks[-1][0] == "round-1/model: fine-tuning" and run.stop.ask("a test")
    with run, pytest.raises(StoppedError):
        work()
    (file,) = run.dir.model(1).glob(f"parts/*/{name}")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    progress = Steps()
    run, work = stage("cut", progress)
    with run:
        cut = record_of(work())
    assert "round-1/model: preference training" in [name for name, _ in progress.tasks]
    messages = [json.loads(line) for line in run.dir.log.read_text().splitlines()]
    (warning,) = [line["message"] for line in messages if line["level"] == "warning"]
    assert warning.startswith("a finished training cannot be used and is done again: ")
    assert str(file) in warning
    run, work = stage("whole", Steps())
    with run:
        assert record_of(work())["outputs"] == cut["outputs"]


def test_a_model_without_its_record_is_made_again(stage):
    run, work = stage("cut", Steps())
    with run:
        artifact = work()
    before = record_of(artifact)
    (artifact.path / "record.json").unlink()
    run, work = stage("cut", Steps())
    with run:
        assert record_of(work())["outputs"] == before["outputs"]


def test_how_often_states_are_stored_is_no_drift(stage, make_config):
    run, work = stage("same", Steps())
    with run:
        first = work()
    run, work = stage("same", Steps())
    run.config = run.config.model_copy(update={"checkpoints": make_config().checkpoints})
    with run:
        assert work() == first
        assert run.num_stages == {"done": 0, "reused": 1}
