"""A training that was cut off goes on from its last checkpoint and gives the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resume_bench import EVERY_STEP, NEVER, NUM_STEPS, Bench, Steps

from selfreward.errors import StoppedError
from selfreward.stopping import Stop

KINDS = ["sft", "dpo"]
_WHOLE = {}


@pytest.fixture
def bench(request, tiny_model_dir, tmp_path, make_config):
    return Bench(request.param, tiny_model_dir, tmp_path, make_config)


@pytest.fixture
def whole(bench):
    """The outcome of the training that nobody disturbed."""
    if bench.kind not in _WHOLE:
        _WHOLE[bench.kind] = bench.outcome(bench.train("whole", keep=False), "whole")
    return _WHOLE[bench.kind]


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_stopped_after_any_step_it_gives_the_same_bits(bench, whole, step):
    with pytest.raises(StoppedError, match="a test"):
        bench.stop_after(step)
    assert bench.kept() == [f"step-{step:08d}"]
    assert not (bench.folder / "out").exists()
    progress = Steps()
    result = bench.train(progress=progress)
    assert bench.outcome(result) == whole
    assert bench.log.messages == [f"training resumed at step {step} of {NUM_STEPS}"]
    name, calls = progress.tasks[-1]
    assert name.endswith(f"(resumed at step {step})")
    assert calls == [step] + [1] * (NUM_STEPS - step), "the bar starts where the training does"
    assert result.earlier_seconds > 0


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_stopped_after_every_step_it_gives_the_same_bits(bench, whole):
    for step in range(1, NUM_STEPS):
        with pytest.raises(StoppedError):
            bench.stop_after(step)
    assert bench.outcome(bench.train()) == whole


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_storing_changes_nothing(bench, whole):
    assert bench.outcome(bench.train(checkpoints=EVERY_STEP)) == whole
    assert bench.kept() == [f"step-{NUM_STEPS - 1:08d}"], "the last step's state is the result"


@pytest.mark.parametrize("bench", KINDS, indirect=True)
def test_an_error_in_a_step_costs_that_step(bench, whole):
    def fail():
        raise RuntimeError("the machine went away")

    with pytest.raises(RuntimeError, match="went away"):
        bench.train(checkpoints=EVERY_STEP, progress=Steps(5, fail))
    assert bench.kept() == ["step-00000004"]
    assert bench.outcome(bench.train()) == whole


@pytest.mark.parametrize("bench", ["dpo"], indirect=True)
def test_a_killed_process_goes_on_from_its_last_state(bench, whole, tmp_path):
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from resume_bench import Bench, EVERY_STEP, Steps
from selfreward.config import parse_config

def make_config(**sections):
    return parse_config({{"name": "test", "engine": {{"threads": 1, "device": "cpu"}}, **sections}})

bench = Bench("dpo", Path({str(bench.start)!r}), Path({str(tmp_path)!r}), make_config)
bench.train(checkpoints=EVERY_STEP, progress=Steps(4, lambda: time.sleep(600)))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while "step-00000003" not in bench.kept():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert bench.outcome(bench.train()) == whole
    assert bench.log.messages == [f"training resumed at step 3 of {NUM_STEPS}"]


@pytest.mark.parametrize("bench", ["sft"], indirect=True)
def test_no_pickle_is_stored_or_loaded(bench, whole, monkeypatch):
    with pytest.raises(StoppedError):
        bench.stop_after(4)
    files = {file.name for file in bench.keep.rglob("*") if file.is_file()}
    assert files == {"checkpoint.json", "trainer_state.json", "state-00000.safetensors"}

    def load(*args, **kwargs):
        pytest.fail("torch.load was called")

    monkeypatch.setattr(torch, "load", load)
    assert bench.outcome(bench.train()) == whole


@pytest.mark.parametrize("bench", ["sft"], indirect=True)
def test_large_states_lie_in_several_files(bench, whole, monkeypatch):
    monkeypatch.setattr("selfreward.training._checkpoint._FILE_BYTES", 20_000)
    with pytest.raises(StoppedError):
        bench.stop_after(4)
    assert len(list(bench.keep.rglob("*.safetensors"))) > 5
    assert bench.outcome(bench.train()) == whole


@pytest.mark.parametrize("bench", ["sft"], indirect=True)
def test_tied_weights_stay_tied(bench, tiny_tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    bench.start = tmp_path / "tied"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), tie_word_embeddings=True, **shape, **ids))
    model.save_pretrained(bench.start)
    tiny_tokenizer.save_pretrained(bench.start)
    whole = bench.outcome(bench.train("whole", keep=False), "whole")
    with pytest.raises(StoppedError):
        bench.stop_after(4)
    assert bench.outcome(bench.train()) == whole


# --- when a state is stored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (NEVER, []),
        ({"every_seconds": 3600.0}, []),
        ({"every_seconds": 0, "max_share": 1e-9}, ["step-00000001"]),  # the first one cost too much for another
        (EVERY_STEP, [f"step-{NUM_STEPS - 1:08d}"]),
    ],
)
@pytest.mark.parametrize("bench", ["sft"], indirect=True)
def test_the_clock_and_the_cost_decide_when(bench, settings, kept):
    bench.train(checkpoints=settings)
    assert bench.kept() == kept


@pytest.mark.parametrize("bench", ["sft"], indirect=True)
def test_without_a_place_a_stop_still_stops(bench):
    with pytest.raises(StoppedError):
        bench.stop_after(2, keep=False)
    assert bench.kept() == []


@pytest.mark.parametrize("bench", ["dpo"], indirect=True)
def test_a_stop_need_not_wait_for_the_reference(bench):
    stop = Stop()
    progress = Steps(8, lambda: stop.ask("a test"), of="reference")
    with pytest.raises(StoppedError):
        bench.train(stop=stop, progress=progress)
    assert [name for name, _ in progress.tasks] == ["reference log-probabilities"]
    assert bench.kept() == []
