"""Supervised fine-tuning of M0 (paper section 2.1): IFT alone -> the SFT baseline, IFT + EFT -> M1.

In: M0, the seed data, EFT targets (M1 only). Out: checkpoint/, history.json (loss curve). An EFT example is the filled
judge prompt with the judgement as its answer: the very conversation that the judge meets in the rounds.
"""

from typing import Literal

from selfreward.artifacts import Artifact, Run, Stage, read_rows
from selfreward.judging import judge_messages
from selfreward.rubrics import load_rubric
from selfreward.stages._training import context_of, need_room, record_training, start_path
from selfreward.training import SftExample
from selfreward.training.sft import train_sft
from selfreward.types import Counts, Demonstration, EftExample, Message


def run(run: Run, key: Literal["sft", "m1"], start: Artifact, seed: Artifact, eft: Artifact | None) -> Artifact:
    """Train and store a model under `key`; without `eft` on IFT alone. Raises TrainingError as training does."""
    config = run.config
    rubric = load_rubric(config.judge.rubric, "pointwise") if eft else None
    sections = {"sft": config.sft, "rubric": rubric.content_hash if rubric else None}
    inputs = {"start": start, "seed": seed} | ({"eft": eft} if eft else {})

    def work(stage: Stage) -> Counts:
        examples = [ift_example(item) for item in read_rows(seed.path / "ift.parquet", Demonstration)]
        stage.notes["num_ift"] = len(examples)
        if eft and rubric:
            targets = read_rows(eft.path / "eft_train.parquet", EftExample)
            stage.notes["num_eft"] = len(targets)
            examples += [
                SftExample(item.id, judge_messages(rubric, item.instruction, item.response), item.judgement) for item in targets
            ]
        stage.roles = {"start": start.key, "trained": key}
        path = start_path(start, config)
        need_room(stage, path)
        result = train_sft(path, examples, stage.path / "checkpoint", config.sft, context_of(stage, "sft"))
        return record_training(stage, result, len(examples))

    return run.stage(key, sections, inputs, work)


def ift_example(item: Demonstration) -> SftExample:
    """One IFT pair as a conversation."""
    return SftExample(item.id, (Message("user", item.prompt),), item.response)
