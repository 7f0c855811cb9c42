"""Files that a disk, a copy or a hand damaged: a part is done again with a warning, a finished artifact is an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from stage_bench import Stages, model, record

from selfreward.artifacts import Artifact, Run, Stage, read_rows, write_rows
from selfreward.errors import CorruptArtifactError, ModelError
from selfreward.stages import m0
from selfreward.stages._training import start_path
from selfreward.types import Counts, Drop, Prompt

PROMPTS = [Prompt(f"p{place}", f"question {place}", "heldout") for place in range(12)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: float = 0.5) -> None:
    """One bit, and the time stays: as a failing disk does it."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))


def flip_header(path: Path) -> None:
    flip(path, 0.02)


def flip_footer(path: Path) -> None:
    flip(path, 0.95)


def other_rows(path: Path) -> None:
    write_rows(path, PROMPTS[:2], Prompt, {"prompt_tokens": "1", "generated_tokens": "1"})


def other_type(path: Path) -> None:
    write_rows(path, [Drop("d", "empty", "x")], Drop)


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [cut, empty, flip, flip_header, flip_footer, other_rows, other_type]


# --- parts ------------------------------------------------------------------------------------------------------------


def ask(run: Run, stop_after: int | None = None, asked: list[int] | None = None) -> Artifact:
    """A stage of three parts."""

    def work(stage: Stage) -> Counts:
        def answer(chunk: Any) -> list[Prompt]:
            if asked is not None:
                if len(asked) == stop_after:
                    raise KeyboardInterrupt
                asked.append(len(chunk))
            stage.spent.add_tokens(len(chunk), 10 * len(chunk))
            return list(chunk)

        stage.write_rows("answers", stage.chunks("answers", PROMPTS, 4, answer, Prompt))
        return Counts(12, 12)

    return run.stage("round-1/samples", {}, {}, work)


@pytest.fixture
def stopped(stages: Stages) -> Path:
    """The parts of a stage that was stopped after two of three."""
    run = stages.run()
    with pytest.raises(KeyboardInterrupt), run:
        ask(run, 2, [])
    return run.dir.samples(1) / "parts"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_part_is_set_aside_and_done_again(stages: Stages, stopped: Path, damage: Callable[[Path], None]) -> None:
    calm = ask(stages.run(name="calm"))
    first, _ = sorted(stopped.glob("*.parquet"))
    damage(first)
    run, asked = stages.run(), []
    seen: list[str] = []
    run.progress.say = seen.append  # type: ignore[method-assign]
    made = ask(run, None, asked)
    assert asked == [4, 4], "the damaged part and the one that was not there"
    assert record(made)["outputs"] == record(calm)["outputs"]
    assert record(made)["tokens"] == record(calm)["tokens"]
    assert record(made)["notes"] == {"num_damaged_parts": 1}
    assert seen == ["round-1/samples: a damaged part was set aside and is done again"]
    warnings = [line for line in map(json.loads, run.dir.log.read_text().splitlines()) if line["level"] == "warning"]
    assert [line["data"]["part"] for line in warnings] == [first.name]
    assert "not those that were written" in warnings[0]["data"]["error"]


def test_a_damaged_part_is_kept_as_long_as_its_stage_is_not_done(stages: Stages, stopped: Path) -> None:
    first, second = sorted(stopped.glob("*.parquet"))
    cut(first)
    damaged = first.read_bytes()
    run = stages.run()
    with pytest.raises(KeyboardInterrupt), run:
        ask(run, 1, [])
    assert first.with_name(first.name + ".damaged").read_bytes() == damaged
    # What a part's work took is stored with it, so that the same rows, made again, have another name.
    (again,) = stopped.glob(f"{first.stem.rpartition('-')[0]}-*.parquet")
    assert again.is_file()
    assert second.is_file()
    stages.close()
    asked: list[int] = []
    ask(stages.run(), None, asked)
    assert asked == [4]
    assert not stopped.exists()


def test_half_written_parts_are_no_parts(stages: Stages, stopped: Path) -> None:
    (stopped / ".tmp-99-answers-00002-0123456789abcdef-0123456789abcdef.parquet").write_bytes(b"half")
    asked: list[int] = []
    made = ask(stages.run(), None, asked)
    assert asked == [4]
    assert read_rows(made.path / "answers.parquet", Prompt) == PROMPTS


# --- finished artifacts -------------------------------------------------------------------------------------------------


def finish(run: Run) -> Artifact:
    def work(stage: Stage) -> Counts:
        stage.write_rows("answers", PROMPTS)
        stage.write_json("figures", {"n": 12})
        return Counts(12, 12)

    return run.stage("round-1/prompts", {}, {}, work)


@pytest.mark.parametrize("damage", [*DAMAGES, no_file], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["answers.parquet", "figures.json"])
def test_a_damaged_artifact_is_an_error_that_names_file_and_way_out(
    stages: Stages, name: str, damage: Callable[[Path], None]
) -> None:
    made = finish(stages.run())
    before = record(made)["outputs"]
    stages.close()
    damage(made.path / name)
    with pytest.raises(CorruptArtifactError, match=rf"'round-1/prompts' is finished but .*{name}.*; delete .*/round-1/prompts"):
        finish(stages.run())
    stages.close()
    for file in made.path.iterdir():
        file.rmdir() if file.is_dir() else file.unlink()
    assert record(finish(stages.run()))["outputs"] == before


@pytest.mark.parametrize("damage", [cut, empty], ids=lambda damage: damage.__name__)
def test_a_damaged_record_is_an_error_that_names_it(stages: Stages, damage: Callable[[Path], None]) -> None:
    made = finish(stages.run())
    stages.close()
    damage(made.path / "record.json")
    with pytest.raises(CorruptArtifactError, match=r"record\.json cannot be read: .*; delete its stage folder"):
        finish(stages.run())


# --- weights ------------------------------------------------------------------------------------------------------------


def train(run: Run) -> Artifact:
    def work(stage: Stage) -> Counts:
        (stage.path / "checkpoint").mkdir()
        save_file({"w": torch.arange(4096, dtype=torch.float32)}, stage.path / "checkpoint" / "model.safetensors")
        stage.write_json("history", [])
        return Counts(0, 0)

    return run.stage("m1", {}, {}, work)


def use(run: Run, trained: Artifact, done: list[str]) -> Artifact:
    def work(stage: Stage) -> Counts:
        done.append(stage.key)
        return Counts(0, 0)

    return run.stage("round-1/samples", {}, {"model": trained}, work)


def test_a_cut_checkpoint_is_found_at_reuse(stages: Stages) -> None:
    made = train(stages.run())
    stages.close()
    cut(made.checkpoint / "model.safetensors")
    with pytest.raises(CorruptArtifactError, match=r"'m1' is finished but checkpoint/model\.safetensors changed"):
        train(stages.run())


@pytest.mark.parametrize("damage", [flip, flip_header, flip_footer], ids=lambda damage: damage.__name__)
def test_no_stage_works_with_damaged_weights(stages: Stages, damage: Callable[[Path], None]) -> None:
    made = train(stages.run())
    stages.close()
    damage(made.checkpoint / "model.safetensors")
    run, done = stages.run(), []
    again = train(run)
    with pytest.raises(CorruptArtifactError) as caught:
        use(run, again, done)
    assert "checkpoint/model.safetensors is damaged or was changed: nothing was made from it" in str(caught.value)
    assert f"do the stage again with --from m1 (or delete {made.path})" in str(caught.value)
    assert done == []


@pytest.mark.parametrize("damage", [cut, empty, flip, Path.unlink], ids=["cut", "empty", "flip", "gone"])
def test_weights_that_change_or_vanish_while_the_run_goes_on(stages: Stages, damage: Callable[[Path], None]) -> None:
    run, done = stages.run(), []
    made = train(run)
    use(run, made, done)
    damage(made.checkpoint / "model.safetensors")
    run.config = run.config.model_copy(update={"random_seed": 9})
    with pytest.raises(CorruptArtifactError, match=r"checkpoint/model\.safetensors is (missing|damaged)"):
        run.stage("round-1/judgements", {}, {"model": made}, lambda stage: pytest.fail("worked with it"))


def test_damaged_rows_reach_no_stage_that_works(stages: Stages) -> None:
    run = stages.run()
    made = finish(run)
    flip(made.path / "answers.parquet")
    with pytest.raises(CorruptArtifactError, match=r"answers\.parquet is damaged"):
        use(run, made, [])


def test_a_checkpoint_without_its_record_is_made_again(stages: Stages) -> None:
    made = train(stages.run())
    weights = (made.checkpoint / "model.safetensors").read_bytes()
    stages.close()
    (made.path / "record.json").unlink()
    flip(made.checkpoint / "model.safetensors")
    again = train(stages.run())
    assert (again.checkpoint / "model.safetensors").read_bytes() == weights


def test_a_record_without_its_checkpoint_is_an_error(stages: Stages) -> None:
    made = train(stages.run())
    stages.close()
    (made.checkpoint / "model.safetensors").unlink()
    with pytest.raises(CorruptArtifactError, match=r"'m1' is finished but lacks checkpoint/model\.safetensors; delete .*/m1"):
        train(stages.run())


def test_records_without_sizes_are_read(stages: Stages) -> None:
    made = train(stages.run())
    stages.close()
    kept = record(made)
    del kept["sizes"]
    (made.path / "record.json").write_text(json.dumps(kept))
    assert train(stages.run()) == made


def test_a_folder_without_a_record_has_nothing_to_compare_with(stages: Stages) -> None:
    run, done = stages.run(), []
    use(run, model(run), done)
    assert done == ["round-1/samples"]


# --- the model that a run starts from -------------------------------------------------------------------------------------


def start(tmp_path: Path) -> Path:
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.zeros(4)}, folder / "model.safetensors")
    return folder


def test_a_start_model_that_changed_trains_nothing(stages: Stages, tmp_path: Path) -> None:
    folder = start(tmp_path)
    run = stages.run(model={"path": str(folder)})
    base = m0.run(run)
    assert start_path(base, run.config) == folder
    flip(folder / "model.safetensors", 0.9)
    with pytest.raises(ModelError, match=r"start' \(model\.path\) changed since this run recorded it"):
        start_path(base, run.config)


def test_a_start_model_that_vanished_is_named(stages: Stages, tmp_path: Path) -> None:
    folder = start(tmp_path)
    run = stages.run(model={"path": str(folder)})
    base = m0.run(run)
    folder.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"there is no model folder '.*/start'; set model\.path"):
        start_path(base, run.config)
    (tmp_path / "moved").rename(folder)
    assert start_path(base, run.config) == folder


@pytest.mark.parametrize("text", ["[]", "{}", '{"outputs": 3}'])
def test_an_input_with_a_record_that_is_none_is_an_error(stages: Stages, text: str) -> None:
    run = stages.run()
    made = train(run)
    (made.path / "record.json").write_text(text)
    with pytest.raises(CorruptArtifactError, match=r"record\.json is not a stage record; delete .*/m1 to make it again"):
        use(run, made, [])
