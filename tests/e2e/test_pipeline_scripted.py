"""The whole algorithm on a tiny model: real training, replies from a script, so that every stage has work to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfreward.artifacts import Run, RunDir, read_json, read_rows
from selfreward.config import Config
from selfreward.errors import DataError
from selfreward.pipeline import run_pipeline, stage_keys, stages
from selfreward.types import Completion, Judgement, PreferencePair, Prompt

TREES = Path(__file__).parents[2].parent / "shared" / "data" / "oasst_en_trees.jsonl"
SCORES = {"excellent": 5, "decent": 3, "poor": 1}
SETTINGS: dict[str, Any] = {
    "random_seed": 5,
    "num_rounds": 2,
    "sft": {"learning_rate": 1e-3, "final_learning_rate": 0.0, "batch_size": 4, "micro_batch_size": 4, "max_length": 1024},
    "propose": {"num_prompts": 5, "max_attempts": 40},
    "sample": {"max_tokens": 16},
    "judge": {"num_votes": 2, "max_tokens": 32},
    "replay": {"num_items": 3, "method": "pairs"},
    "dpo": {"learning_rate": 1e-3, "final_learning_rate": 0.0, "batch_size": 4, "micro_batch_size": 4, "max_length": 1024},
    "eval": {"num_votes": 1, "bootstrap_samples": 100},
}


def write_script(path: Path) -> Path:
    replies = [
        {"match": "Here are tasks that people gave", "reply": [" ".join(f"w{i}{c}" for c in "abcde") for i in range(61)]},
        {"match": "(?s)<response>.*excellent.*</response>", "reply": ["Fine. Score: 5", "Fine. Score: 4"]},
        {"match": "(?s)<response>.*decent.*</response>", "reply": ["Fair. Score: 3", "Fair, it says."]},
        {"match": "(?s)<response>.*poor.*</response>", "reply": ["Weak. Score: 1"]},
        {"match": "(?s)Verdict", "reply": ["Verdict: A", "Verdict: B", "Verdict: tie"]},
        {"match": ".", "reply": ["an excellent answer", "a decent answer", "a poor answer"]},
    ]
    path.write_text(json.dumps({"replies": replies, "default": None}), encoding="utf-8")
    return path


def write_seeds(folder: Path) -> Path:
    folder.mkdir(parents=True)
    ranked = [
        {"prompt": f"ranked {i}", "responses": [{"text": f"a {word} reply", "rank": rank} for rank, word in enumerate(SCORES)]}
        for i in range(2)
    ]
    rows: dict[str, list[Any]] = {
        "ift": [{"prompt": f"how does part {c} of it work", "response": f"like part {c} should"} for c in "abcdefghij"],
        "heldout_prompts": [{"prompt": f"held out question {i}"} for i in range(3)],
        "heldout_ranked": [{**row, "prompt": f"held out {row['prompt']}"} for row in ranked],
        "eft": [
            {"instruction": f"task {i}", "response": f"a {word} reply", "judgement": f"Seen. Score: {score}", "score": score}
            for i, (word, score) in enumerate((("excellent", 5), ("decent", 2), ("poor", 4)))
        ],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    return folder


@pytest.fixture
def config(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """`config(name=..., section={...})`: a config over the script and the seed files."""
    script, seeds = write_script(tmp_path / "script.json"), write_seeds(tmp_path / "seeds")

    def make(**changes: Any) -> Config:
        tree = {
            **SETTINGS,
            "engine": {"name": "scripted", "script": str(script)},
            "seed": {"sources": [{"format": "seed-folder"}], "path": str(seeds)},
        }
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        return make_config(**tree)

    return make


def finish(config: Config, until: str | None = None) -> RunDir:
    with Run.open(config) as run:
        run_pipeline(run, until)
        return run.dir


def outputs(directory: RunDir, config: Config) -> dict[str, Any]:
    """Stage -> hash of every file that it made."""
    return {key: read_json(directory.root / key / "record.json")["outputs"] for key in stage_keys(config)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Config, RunDir]:
    """One finished run, shared by the tests that only look."""
    from selfreward.config import parse_config

    folder = tmp_path_factory.mktemp("whole")
    tree = {
        **SETTINGS,
        "name": "whole",
        "run_dir": str(folder / "runs"),
        "model": {"path": str(tiny_model_dir)},
        "engine": {"name": "scripted", "script": str(write_script(folder / "script.json")), "threads": 1, "device": "cpu"},
        "seed": {"sources": [{"format": "seed-folder"}], "path": str(write_seeds(folder / "seeds"))},
    }
    config = parse_config(tree)
    return config, finish(config)


def record(directory: RunDir, key: str) -> dict[str, Any]:
    loaded: dict[str, Any] = read_json(directory.root / key / "record.json")
    return loaded


def test_every_stage_is_done_in_the_order_that_is_announced(whole: tuple[Config, RunDir]) -> None:
    config, directory = whole
    with Run.open(config) as run:
        assert [artifact.key for artifact in stages(run)] == stage_keys(config)
        assert run.num_stages == {"done": 0, "reused": len(stage_keys(config))}
    assert {path.parent.relative_to(directory.root).as_posix() for path in directory.root.rglob("record.json")} == set(
        stage_keys(config)
    )


def test_each_round_starts_from_the_model_of_the_round_before(whole: tuple[Config, RunDir]) -> None:
    _, directory = whole
    assert record(directory, "sft")["inputs"]["start"] == record(directory, "m0")["fingerprint"]
    assert record(directory, "m1")["inputs"]["start"] == record(directory, "m0")["fingerprint"]
    assert record(directory, "round-1/model")["inputs"]["start"] == record(directory, "m1")["fingerprint"]
    assert record(directory, "round-2/model")["inputs"]["start"] == record(directory, "round-1/model")["fingerprint"]
    assert record(directory, "round-2/model")["roles"] == {"policy": "m2", "reference": "m2", "trained": "m3"}
    assert record(directory, "round-2/judgements")["roles"] == {"policy": "m2", "judge": "m2"}


def test_each_model_is_another_one(whole: tuple[Config, RunDir]) -> None:
    _, directory = whole
    weights = [
        (directory.model_stage(name) / "checkpoint" / "model.safetensors").read_bytes() for name in ("sft", "m1", "m2", "m3")
    ]
    assert len(set(weights)) == 4


def test_the_rounds_pairs_and_only_they_were_trained_on(whole: tuple[Config, RunDir]) -> None:
    _, directory = whole
    for t in (1, 2):
        pairs = read_rows(directory.pairs(t) / "pairs.parquet", PreferencePair)
        replayed = read_rows(directory.replay(t) / "pairs.parquet", PreferencePair)
        notes = record(directory, f"round-{t}/model")["notes"]
        assert notes["num_answer_pairs"] == len(pairs) > 0
        assert notes["num_judgement_pairs"] == len(replayed) > 0
        prompts = {item.text for item in read_rows(directory.prompts(t) / "prompts.parquet", Prompt)}
        assert {item.messages[0].content for item in pairs} <= prompts
        assert record(directory, f"round-{t}/model")["counts"]["in"] == len(pairs) + len(replayed)


def test_better_judged_answers_are_chosen_and_lost_votes_are_missing(whole: tuple[Config, RunDir]) -> None:
    _, directory = whole
    pairs = read_rows(directory.pairs(1) / "pairs.parquet", PreferencePair)
    assert all(item.chosen_score > item.rejected_score for item in pairs)
    judgements = read_rows(directory.judgements(1) / "judgements.parquet", Judgement)
    texts = {item.id: item.text for item in read_rows(directory.samples(1) / "completions.parquet", Completion)}
    for item in judgements:
        if "decent" in texts[item.completion_id] and item.num_valid:
            assert item.score == 3.0


def test_eft_conversations_are_the_judges_own(whole: tuple[Config, RunDir]) -> None:
    _, directory = whole
    notes = record(directory, "m1")["notes"]
    assert (notes["num_ift"], notes["num_eft"], notes["num_examples"]) == (10, 3, 13)
    assert record(directory, "sft")["notes"]["num_examples"] == 10


def test_loss_curves_are_kept(whole: tuple[Config, RunDir]) -> None:
    _, directory = whole
    for key in ("sft", "m1", "round-1/model", "round-2/model"):
        history = read_json(directory.root / key / "history.json")
        assert len(history) >= 1
        assert {"step", "loss"} <= set(history[0])


def test_the_same_command_gives_the_same_files(config: Callable[..., Config], whole: tuple[Config, RunDir]) -> None:
    again = config(name="again")
    wanted = outputs(whole[1], whole[0])
    directory = finish(again)
    assert outputs(directory, again) == wanted
    shutil.rmtree(directory.model(2))
    assert outputs(finish(again), again) == wanted, "a deleted stage is done again alike"


def test_a_run_that_was_stopped_goes_on_to_the_same_end(config: Callable[..., Config], whole: tuple[Config, RunDir]) -> None:
    stopped = config(name="stopped")
    directory = finish(stopped, until="round-1/samples")
    assert not (directory.judgements(1) / "record.json").exists()
    # As if killed while judging: files, but no record.
    directory.judgements(1).mkdir()
    (directory.judgements(1) / "judgements.parquet").write_bytes(b"half")
    assert outputs(finish(stopped), stopped) == outputs(whole[1], whole[0])


def test_positives_only_and_no_eft(config: Callable[..., Config]) -> None:
    settings = config(mode="no-eft", num_rounds=1, replay={"num_items": 0}, dpo={"method": "positives-only"})
    directory = finish(settings)
    assert "eft" not in stage_keys(settings)
    assert not directory.eft.exists()
    trained = record(directory, "round-1/model")
    assert trained["roles"] == {"policy": "m1", "trained": "m2"}
    assert trained["notes"]["method"] == "positives-only"
    assert record(directory, "m1")["notes"]["num_examples"] == 10


def test_a_frozen_judge_is_not_the_live_model(config: Callable[..., Config]) -> None:
    settings = config(num_rounds=1, judge={"model": "scripted:random"}, replay={"num_items": 0})
    directory = finish(settings, until="round-1/judgements")
    assert record(directory, "round-1/judgements")["roles"] == {"policy": "m1", "judge": "scripted:random"}
    assert "model" not in record(directory, "round-1/judgements")["inputs"]


@pytest.mark.skipif(not TREES.is_file(), reason="needs ../shared/data/oasst_en_trees.jsonl beside the repository")
def test_real_trees_and_a_real_engine_reach_the_end(make_config: Callable[..., Config]) -> None:
    changes = {
        "engine": {"name": "hf", "batch_size": 16},
        "seed": {
            "sources": [{"format": "oasst-trees", "lang": "en"}],
            "path": str(TREES),
            "num_ift": 6,
            "num_eft": 6,
            "num_heldout_prompts": 2,
            "num_heldout_ranked": 1,
        },
        "eft": {"samples": 1, "min_targets": 0},
        "propose": {"num_prompts": 2, "max_attempts": 8, "max_tokens": 12},
        "sample": {"max_tokens": 8},
        "judge": {"num_votes": 1, "max_tokens": 8},
        "replay": {"num_items": 0},
        "pair": {"min_pairs": 0},
        "num_rounds": 1,
    }
    settings = make_config(**{**SETTINGS, **changes})
    directory = finish(settings)
    assert record(directory, "round-1/model")["counts"]["in"] == record(directory, "round-1/pairs")["counts"]["out"]
    assert all(record(directory, key)["fingerprint"] for key in stage_keys(settings))


def test_a_judge_that_cannot_judge_stops_the_run_with_the_reasons(config: Callable[..., Config], tmp_path: Path) -> None:
    mute = tmp_path / "mute.json"
    mute.write_text(json.dumps({"replies": [{"match": ".", "reply": "No verdict from me."}], "default": None}))
    settings = config(num_rounds=1, judge={"model": f"scripted:{mute}"})
    with pytest.raises(DataError, match=r"round 1 has 0 pairs.*too_few_candidates"):
        finish(settings)
