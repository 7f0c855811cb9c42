"""An estimate of a whole run, rehearsed with a real engine and real trainers on a tiny model."""

import json
import re

import pytest

from selfreward.engines.loading import load_tokenizer
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import ConfigError
from selfreward.estimating import calibration, estimate_run
from selfreward.estimating.rehearsal import rehearse_replies
from selfreward.estimating.seed_texts import Shapes, read_seed
from selfreward.estimating.workload import Job, Planned
from selfreward.progress import NullProgress
from selfreward.rundir import RunDir

SMALL = {
    "seed": {"num_ift": 40, "num_eft": 30, "num_heldout_prompts": 10, "num_heldout_ranked": 5},
    "propose": {"template": "lab_self_instruct", "num_prompts": 20, "max_tokens": 40},
    "sample": {"max_tokens": 30},
    "judge": {"rubric": "lab_additive", "max_tokens": 60},
    "sft": {"num_epochs": 2, "max_length": 1024},
    "dpo": {"max_length": 1024},
    "eval": {"oracle": True, "head_to_head": "policy", "bootstrap_samples": 100},
    "num_rounds": 2,
}


def test_a_run_is_estimated_and_nothing_is_left_behind(make_config, tmp_path):
    config = make_config(**SMALL)
    found = estimate_run(config, NullProgress())
    json.dumps(found)
    rows = {row["stage"]: row for row in found["stages"]}
    assert list(rows) == [
        "sft", "sft/evals", "m1", "m1/evals",
        "round/prompts", "round/samples", "round/judgements", "round/model", "round/evals",
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in rows.values())
    for key in ("sft/evals", "round/samples", "round/judgements", "round/prompts"):
        assert 0 < rows[key]["read"] <= rows[key]["asked"]
        assert rows[key]["written"] > 0
    assert rows["round/samples"]["read"] <= rows["round/samples"]["asked"] / 3, "four candidates share a prompt"
    assert rows["m1"]["trained"] > rows["sft"]["trained"] > 0
    total = found["total"]
    assert total["low"] < total["seconds"] < total["high"]
    assert total["seconds"] == pytest.approx(sum(row["seconds"] for row in rows.values()) + found["start_seconds"], abs=1)
    assert {row["kind"] for row in found["speeds"]} == {
        "answer", "judge", "compare", "propose", "sft", "sft-judging", "dpo",
    }  # fmt: skip
    memory = found["memory"]
    assert memory["where"] == "RAM"
    assert memory["training_state"] == 16 * memory["num_parameters"]
    assert min(memory["generating"], memory["training"]) > 50 * 2**20
    assert not RunDir(tmp_path / "runs" / "test").root.exists(), "an estimate makes no run"


def test_seed_data_without_judgements_is_estimated_too(make_config, tmp_path):
    folder = tmp_path / "seeds"
    folder.mkdir()
    tables = {
        "ift": [{"prompt": f"tell of the town number {n}", "response": f"it lies by the sea, {n} miles"} for n in range(30)],
        "ranked": [
            {"prompt": f"name the river number {n}", "responses": [{"text": "one", "rank": 0}, {"text": "two", "rank": 1}]}
            for n in range(12)
        ],
        "heldout_prompts": [{"prompt": "what is asked only at the very end"}],
    }
    for name, items in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    seed = {**SMALL["seed"], "sources": [{"format": "seed-folder"}], "path": str(folder)}
    config = make_config(**{**SMALL, "seed": seed, "eval": {"head_to_head": "none"}})
    found = estimate_run(config, NullProgress())
    rows = {row["stage"]: row for row in found["stages"]}
    assert rows["eft"]["written"] > 0
    assert rows["m1"]["trained"] > rows["sft"]["trained"]
    assert any("half of judge.max_tokens=60 (30 tokens)" in line for line in found["assumed"])


def test_an_engine_without_a_model_is_refused(make_config):
    config = make_config(engine={"name": "scripted", "script": "echo"})
    with pytest.raises(ConfigError, match=r"engine\.name='scripted' has none; set engine\.name=hf"):
        estimate_run(config, NullProgress())


def test_a_rehearsal_grows_until_it_is_a_batch_or_its_time_is_used(make_config):
    from selfreward.engines.hf import HfEngine

    config = make_config(**SMALL)
    texts = read_seed(config, NullProgress())
    with HfEngine.open(config.model.path, config) as engine:
        shapes = Shapes(config, texts, engine.tokenizer)
        whole = rehearse_replies(engine, shapes, "judge", 3, (24, 60), seconds=60.0)
        cut = rehearse_replies(engine, shapes, "judge", 3, (24, 60), seconds=0.0)
    assert (whole.rows, whole.is_cut) == (24, False)
    assert (cut.rows, cut.is_cut) == (8, True)
    assert 1 / 24 < whole.read_share < 1 / 3, "three votes share a prompt, and all prompts their rubric"
    assert whole.seconds_read > 0 < whole.seconds_written


def test_prompts_that_are_too_long_are_left_out_and_told(make_config, tmp_path):
    """A judge prompt with a reply of the seed data that fills the context: the run counts it and goes on."""
    folder = tmp_path / "seeds"
    folder.mkdir()
    long = " ".join(f"{n} miles" for n in range(2000))
    tables = {
        "ift": [{"prompt": f"tell of the town number {n}", "response": f"it lies by the sea, {n} miles"} for n in range(30)],
        "ranked": [
            {"prompt": f"name river {n}", "responses": [{"text": text, "rank": 0}, {"text": "two", "rank": 1}]}
            for n, text in enumerate([long, "one"] * 6)
        ],
        "heldout_prompts": [{"prompt": "what is asked only at the very end"}],
    }
    for name, items in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    seed = {**SMALL["seed"], "sources": [{"format": "seed-folder"}], "path": str(folder)}
    config = make_config(**{**SMALL, "seed": seed, "num_rounds": 0, "eval": {"head_to_head": "none"}})
    found = estimate_run(config, NullProgress())
    (line,) = [line for line in found["assumed"] if "too_long" in line]
    number, tried = map(int, re.search(r"; (\d+) of (\d+) requests of kind judge were left out", line).groups())
    assert 0 < number < tried
    (judge,) = [row for row in found["speeds"] if row["kind"] == "judge"]
    assert judge["rows"] == tried - number
    assert {row["stage"]: row for row in found["stages"]}["eft"]["seconds"] > 0


def test_where_no_prompt_fits_nothing_is_made_up(make_config):
    config = make_config(**SMALL)
    texts = read_seed(config, NullProgress())
    with ScriptedEngine("short", lambda asked, seed: "a b", context_length=1) as engine:
        shapes = Shapes(config, texts, load_tokenizer(config.model.path, config))
        speed = rehearse_replies(engine, shapes, "judge", 3, (24, 60), seconds=5.0)
    assert (speed.rows, speed.num_too_long, speed.prompt_tokens, speed.seconds_read) == (0, 24, 0.0, 0.0)


def test_memory_for_training_is_needed_where_training_is_left(make_config, monkeypatch):
    monkeypatch.setattr(calibration, "available_memory", lambda: 1000)
    config = make_config(**SMALL)
    texts = read_seed(config, NullProgress())
    replies = Planned("sft/evals", (Job("open", 1), Job("answer", 8)))
    found, _ = calibration.calibrate(config, texts, [replies], NullProgress())
    assert found.training_peak == 0
    with pytest.raises(ConfigError, match="take a smaller model"):
        calibration.calibrate(config, texts, [replies, Planned("sft", (Job("sft", 8),))], NullProgress())


def test_rehearsed_requests_have_the_seeds_shape(make_config):
    config = make_config(**SMALL)
    texts = read_seed(config, NullProgress())
    shapes = Shapes(config, texts, load_tokenizer(config.model.path, config))
    prompts = {item.prompt for item in texts.ift}
    answers = shapes.requests("answer", 12, 4, longest=9)
    assert len({request.prompt for request in answers}) == 3
    assert all(request.prompt[0].content in prompts for request in answers)
    assert all(1 <= request.sampling.max_tokens <= 9 and request.sampling.ignore_eos for request in answers)
    assert len({request.id for request in answers}) == 12
    assert shapes.mean_reply("judge", 100.0) == config.judge.max_tokens, "no reply is longer than its setting"
    assert len(shapes.examples("dpo", 200)) == 200, "a small table is used again"
    assert [request.prompt for request in shapes.requests("answer", 12, 4, 9)] == [request.prompt for request in answers]
