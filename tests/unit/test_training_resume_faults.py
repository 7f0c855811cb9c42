"""Checkpoints that are damaged or belong to another training, and trainings that break."""

import json
import shutil
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resume_bench import EVERY_STEP, SEED, Bench, Log, Steps

from selfreward.config import CheckpointConfig
from selfreward.errors import StoppedError, StorageError, TrainingError
from selfreward.stopping import Stop

FILES = ("checkpoint.json", "trainer_state.json", "state-00000.safetensors")
_WHOLE = []


@pytest.fixture
def bench(tiny_model_dir, tmp_path, make_config):
    bench = Bench("sft", tiny_model_dir, tmp_path, make_config)
    bench.changes |= {"num_epochs": 1}
    return bench


@pytest.fixture
def stopped(bench):
    """A training that was stopped after its second step of three; its checkpoint."""
    with pytest.raises(StoppedError):
        bench.stop_after(2)
    return bench.keep / "step-00000002"


@pytest.fixture
def whole(bench):
    """The outcome of the training that nobody disturbed."""
    if not _WHOLE:
        _WHOLE.append(bench.outcome(bench.train("whole", keep=False), "whole"))
    return _WHOLE[0]


def flip(file, place, bit):
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 1 << bit
    file.write_bytes(data)


DAMAGE = {
    "flipped": lambda file: flip(file, file.stat().st_size // 2, 3),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_named(name, damage, bench, whole, stopped):
    DAMAGE[damage](stopped / name)
    progress = Steps()
    assert bench.outcome(bench.train(progress=progress)) == whole
    first, second = bench.log.messages
    assert first.startswith("a checkpoint cannot be used: ")
    assert str(stopped / name) in first
    assert str(bench.keep / "aside-step-00000002") in first
    assert second == "no good checkpoint is left: training starts from the beginning"
    assert progress.tasks[-1] == (
        "fine-tuning (from the beginning: its checkpoint cannot be used, see run.log)",
        [1, 1, 1],
    )
    assert bench.kept() == ["aside-step-00000002"]


def test_no_flipped_bit_goes_unseen(bench, stopped):
    from selfreward.training._checkpoint import Checkpoints

    identity = json.loads((stopped / "checkpoint.json").read_text())["state"]["identity"]
    copy = bench.folder / "copy"

    @given(st.sampled_from(FILES), st.integers(0, 10**7), st.integers(0, 7))
    def check(name, place, bit):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bench.keep, copy)
        assert Checkpoints(copy, identity, CheckpointConfig(), Log().logger).load().step == 2
        flip(copy / stopped.name / name, place, bit)
        log = Log()
        loaded = Checkpoints(copy, identity, CheckpointConfig(), log.logger).load()
        if loaded is not None:  # white space between the values of a JSON file holds nothing
            assert name == "checkpoint.json"
            assert loaded.state == json.loads((stopped / name).read_text())["state"]
        else:
            assert name in log.messages[0]

    check()


def test_an_older_good_state_is_better_than_none(bench, stopped):
    """A process killed between putting a state in place and removing the one before leaves both."""
    shutil.copytree(stopped, bench.keep / "step-00000003")
    flip(bench.keep / "step-00000003" / FILES[2], 1000, 0)
    bench.train()
    assert "training resumed at step 2 of 3" in bench.log.messages


def test_a_half_written_state_is_cleared(bench, stopped):
    stopped.rename(bench.keep / ".tmp-step-00000002")
    bench.train()
    assert bench.kept() == []
    assert bench.log.messages == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": SEED + 1}, "seed was"),
        ({"learning_rate": 2e-3}, "options was"),
        ({"max_length": 40}, "options was"),
    ],
)
def test_another_trainings_state_is_never_continued(changes, named, bench, stopped):
    result = bench.train(**changes)
    assert named in bench.log.messages[0]
    assert bench.outcome(result) == bench.outcome(bench.train("whole", keep=False, **changes), "whole")


def test_other_start_weights_are_told_apart(bench, stopped, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(bench.start, start)
    flip(start / "model.safetensors", 5000, 1)
    bench.start = start
    bench.train()
    assert "start was" in bench.log.messages[0]


def test_a_gradient_that_breaks_later_keeps_the_last_good_state(bench):
    for attempt in range(2):
        with pytest.raises(TrainingError, match=r"gradient norm is nan at step 2 of 3.*The state after step 1 is kept in "):
            bench.train(checkpoints=EVERY_STEP, learning_rate=1e25, warmup_ratio=0.0)
        assert bench.kept() == ["step-00000001"]
        assert bench.log.messages == ["training resumed at step 1 of 3"] * attempt
    assert not (bench.folder / "out").exists()


def test_a_loss_that_breaks_later_keeps_the_last_good_state(bench, whole, monkeypatch):
    from selfreward.training import _trl

    def load_broken(*args):
        base, calls = load_base(*args), []

        def break_third_step(module, inputs, output):
            calls.extend([0] * output.requires_grad)
            return output * (float("nan") if len(calls) == 5 else 1.0)  # steps have two micro-batches, the last one has one

        base.model.model.norm.register_forward_hook(break_third_step)
        return base

    load_base = _trl.load_base
    monkeypatch.setattr(_trl, "load_base", load_broken)
    with pytest.raises(TrainingError, match=r"loss is nan at step 3 of 3.*The state after step 2 is kept in "):
        bench.train(checkpoints=EVERY_STEP)
    monkeypatch.undo()
    assert bench.outcome(bench.train()) == whole
    assert bench.log.messages == ["training resumed at step 2 of 3"]


def test_a_step_that_breaks_the_weights_is_never_a_good_state(bench):
    with pytest.raises(TrainingError, match=r"weight .* is not finite after step 1 of 3.*No earlier state is kept"):
        bench.train(checkpoints=EVERY_STEP, learning_rate=1e39, warmup_ratio=0.0)
    assert bench.kept() == []


def test_a_trainer_that_restores_nothing_is_stopped(bench, stopped, monkeypatch):
    from selfreward.training._checkpoint import ResumingMixin

    monkeypatch.setattr(ResumingMixin, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    with pytest.raises(TrainingError, match="did not restore its optimizer"):
        bench.train()


@pytest.mark.parametrize("part", ["_load_optimizer_and_scheduler", "_load_from_checkpoint"])
def test_one_that_restores_nothing_is_stopped_after_its_last_step_too(part, bench, monkeypatch):
    from selfreward.training._checkpoint import ResumingMixin

    with pytest.raises(StoppedError):
        bench.stop_after(3)
    monkeypatch.setattr(ResumingMixin, part, lambda self, *args: None)
    with pytest.raises(TrainingError, match=r"did not restore its (optimizer|weights) from"):
        bench.train()
    assert not (bench.folder / "out").exists()


@pytest.mark.parametrize("keep", [True, False])
def test_a_last_step_that_breaks_the_weights_gives_no_result(keep, bench):
    with pytest.raises(TrainingError, match=r"weight .* is not finite after step 1 of 1"):
        bench.train(keep=keep, batch_size=10, learning_rate=1e39, warmup_ratio=0.0)
    assert not (bench.folder / "out").exists()


# --- a disk that takes no state -----------------------------------------------------------------------------------


@contextmanager
def full_disk():
    """Gives two functions: after the first every long file fails like on a full disk, after the second none does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)), free
    finally:
        free()


class Acts(Steps):
    """Progress that calls the action of a step once that many steps are done."""

    def __init__(self, actions):
        super().__init__()
        self._actions = actions

    @contextmanager
    def task(self, description, total):
        with super().task(description, total) as advance:
            done = []

            def advance_and_act(count):
                advance(count)
                done.append(count)
                self._actions.get(sum(done), lambda: None)()

            yield advance_and_act


def test_a_full_disk_costs_a_healthy_training_nothing(bench):
    bench.changes["num_epochs"] = 2
    whole = bench.outcome(bench.train("whole", keep=False), "whole")
    with full_disk() as (fill, free):
        progress = Acts({2: fill, 4: free})
        result = bench.train(checkpoints=EVERY_STEP, progress=progress)
    assert bench.outcome(result) == whole
    assert bench.kept() == ["step-00000005"], "it tried again when the next was due"
    assert [message.split(" cannot be stored in ")[0] for message in bench.log.messages] == [
        f"the training's state after step {step}" for step in (2, 3)
    ]
    assert progress.said == bench.log.messages[:1]
    assert "raise the limit" in progress.said[0]
    assert f"The state after step 1 is kept in {bench.keep}. The training goes on" in progress.said[0]


def test_a_folder_that_no_state_fits_into_is_warned_of_too(bench, whole):
    """An error that says nothing about the disk: the folder's name is taken by a link to itself."""
    bench.keep.symlink_to(bench.keep)
    assert bench.outcome(bench.train(checkpoints=EVERY_STEP)) == whole
    assert len(bench.log.messages) == 2
    assert all("No earlier state is kept" in message for message in bench.log.messages)


def test_a_stop_without_room_for_its_state_is_one_clear_error(bench, whole):
    stop = Stop()
    with full_disk() as (fill, _):
        progress = Acts({2: lambda: (fill(), stop.ask("a test"))})
        with pytest.raises(StorageError, match=r"after step 2 cannot be stored in .*raise the limit.*after step 1 is kept"):
            bench.train(checkpoints=EVERY_STEP, progress=progress, stop=stop)
    assert bench.kept() == ["step-00000001"]
    assert progress.said == []
    assert bench.outcome(bench.train()) == whole
