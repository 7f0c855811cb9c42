"""stages/replay.py: judgement pairs from wrong votes, and a round that has no others."""

import shutil
from pathlib import Path

from stage_bench import Stages, model, record, write_script

from selfreward.artifacts import Artifact, hash_file, read_rows, write_rows
from selfreward.stages import dpo, eft, replay, seed
from selfreward.types import PreferencePair


def test_replay_pairs_targets_over_the_models_wrong_votes(stages: Stages) -> None:
    run = stages.run(replay={"num_items": 3, "method": "pairs"})
    targets = eft.run(run, model(run, "sft"), seed.run(run))
    made = replay.run(run, 1, model(run), targets)
    pairs = read_rows(made.path / "pairs.parquet", PreferencePair)
    assert {(item.chosen, item.rejected) for item in pairs} == {
        ("Seen. Score: 2", "That is decent.\nScore: 3"),
        ("Seen. Score: 4", "That is poor.\nScore: 1"),
    }
    assert record(made)["counts"] == {"in": 3, "out": 2, "dropped": {"agrees": 1}}


def test_wrong_votes_beyond_the_limit_are_counted(stages: Stages, tmp_path: Path) -> None:
    said = [f"Seen {i}. Score: 0" for i in range(50)]
    script = write_script(tmp_path / "many.json", replies=[{"match": ".", "reply": said}])
    notes = []
    for name, limit in (("few", 1), ("all", 4)):
        settings = {"num_items": 3, "method": "pairs", "num_votes": 4, "max_pairs_per_item": limit}
        run = stages.run(name=name, replay=settings, engine={"script": script})
        made = replay.run(run, 1, model(run), eft.run(run, model(run, "sft"), seed.run(run)))
        notes.append(record(made)["notes"])
    few, everything = notes
    assert few["num_pairs"] == 3
    assert everything["num_pairs_over_limit"] == 0
    assert few["num_pairs_over_limit"] == everything["num_pairs"] - 3 > 0


def test_judgement_pairs_are_trained_on_without_answer_pairs(stages: Stages, tmp_path: Path, tiny_model_dir: Path) -> None:
    training = {"learning_rate": 1e-3, "final_learning_rate": 0.0, "batch_size": 4, "micro_batch_size": 4}
    run = stages.run(
        pair={"min_pairs": 0}, replay={"num_items": 3, "method": "pairs"}, dpo=training, engine={"threads": 1, "device": "cpu"},
        model={"path": str(tiny_model_dir)},
    )  # fmt: skip
    replayed = replay.run(run, 1, model(run), eft.run(run, model(run, "sft"), seed.run(run)))
    none = Artifact("round-1/pairs", tmp_path / "none", "f")
    write_rows(none.path / "pairs.parquet", [], PreferencePair)
    start = Artifact("m1", tmp_path / "start", "s")
    shutil.copytree(tiny_model_dir, start.checkpoint)
    made = dpo.run(run, 1, start, none, replayed)
    assert record(made)["notes"]["trained"] is True
    assert record(made)["notes"]["num_judgement_pairs"] == 2
    assert record(made)["counts"] == {"in": 2, "out": 2, "dropped": {}}


def test_sft_replay_draws_targets_and_trains_on_them_after_dpo(stages: Stages, tmp_path: Path, tiny_model_dir: Path) -> None:
    training = {"learning_rate": 1e-3, "final_learning_rate": 0.0, "batch_size": 4, "micro_batch_size": 4}
    run = stages.run(
        pair={"min_pairs": 0}, replay={"num_items": 2, "method": "sft", "learning_rate": 1e-3}, dpo=training, sft=training,
        engine={"threads": 1, "device": "cpu"}, model={"path": str(tiny_model_dir)},
    )  # fmt: skip
    replayed = replay.run(run, 1, model(run), eft.run(run, model(run, "sft"), seed.run(run)))
    assert record(replayed)["counts"] == {"in": 2, "out": 2, "dropped": {}}
    none = Artifact("round-1/pairs", tmp_path / "none", "f")
    write_rows(none.path / "pairs.parquet", [], PreferencePair)
    start = Artifact("m1", tmp_path / "start", "s")
    shutil.copytree(tiny_model_dir, start.checkpoint)
    made = dpo.run(run, 1, start, none, replayed)
    assert record(made)["notes"]["num_replayed"] == 2
    assert hash_file(made.checkpoint / "model.safetensors") != hash_file(start.checkpoint / "model.safetensors")
    assert not (made.path / "before-replay").exists()
