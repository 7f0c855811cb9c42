"""Preference training of one round (paper section 2.4): M_t + its own pairs -> M_{t+1}.

In: M_t, the round's pairs, judgement pairs or EFT items where replay is on. Out: checkpoint/, history.json. The reference is
M_t itself, frozen. `dpo.method: positives-only` is the paper's control: SFT on the chosen answers, same optimizer settings.
With `replay.method=sft` one epoch of fine-tuning on the round's EFT items and chosen answers follows (replay.json).
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, Run, Stage, read_json, read_rows
from selfreward.errors import DataError
from selfreward.judging import judge_messages
from selfreward.rubrics import load_rubric
from selfreward.stages._roles import model_name
from selfreward.stages._training import context_of, need_room, record_training, training_folder
from selfreward.texts import counted
from selfreward.training import SftExample, TrainResult
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft
from selfreward.types import Counts, EftExample, PreferencePair


def run(run: Run, t: int, model: Artifact, pairs: Artifact, replay: Artifact | None) -> Artifact:
    """Train M_{t+1}. Raises DataError when there are fewer than `pair.min_pairs` pairs.

    `pair.min_pairs=0` lets a round go on without answer pairs: it trains on its judgement pairs alone, and without those
    too it passes M_t on unchanged; the record then says `trained: false`.
    """
    config = run.config
    inputs = {"start": model, "pairs": pairs} | ({"replay": replay} if replay else {})

    def work(stage: Stage) -> Counts:
        answers = read_rows(pairs.path / "pairs.parquet", PreferencePair)
        if len(answers) < config.pair.min_pairs:
            counts = read_json(pairs.path / "record.json")["counts"]
            raise DataError(
                f"round {t} has {counted(len(answers), 'pair')}, pair.min_pairs={config.pair.min_pairs}; prompts without one: "
                f"{counts['dropped']} (too_few_candidates: answers were cut or votes failed, see rejects.parquet of the "
                "round's samples and judgements). Lower pair.min_pairs or pair.min_margin, or ask for more with "
                "propose.num_prompts, sample.num_candidates or judge.num_votes"
            )
        stage.roles = {"policy": model_name(model), "reference": model_name(model), "trained": f"m{t + 1}"}
        need_room(stage, model.checkpoint)
        stage.notes |= {"num_answer_pairs": len(answers), "method": config.dpo.method}
        if replay and config.replay.method == "sft":
            return _train_and_replay(stage, model, answers, read_rows(replay.path / "examples.parquet", EftExample))
        judgements = read_rows(replay.path / "pairs.parquet", PreferencePair) if replay else []
        stage.notes["num_judgement_pairs"] = len(judgements)
        if not answers and not judgements:
            return _pass_on(stage, model)
        pairs_now = [*answers, *judgements]
        return record_training(stage, _train(stage, model, pairs_now, stage.path / "checkpoint"), len(pairs_now))

    sections: dict[str, Any] = {"dpo": config.dpo}
    if replay and config.replay.method == "sft":
        sections |= {
            "replay": config.replay,
            "sft": config.sft,
            "rubric": load_rubric(config.judge.rubric, "pointwise").content_hash,
        }
    return run.stage(f"round-{t}/model", sections, inputs, work)


def _train_and_replay(stage: Stage, model: Artifact, pairs: list[PreferencePair], items: list[EftExample]) -> Counts:
    """Preference training, then one epoch of SFT on the EFT items and the chosen answers, at `replay.learning_rate`."""
    config = stage.config
    # What the first training gives lies beside its checkpoints: it outlives an interruption of the second one.
    between = training_folder(stage, "dpo") / "model"
    first = _train(stage, model, pairs, between) if pairs else None
    rate = config.replay.learning_rate
    options = config.sft.model_copy(
        update={"learning_rate": rate, "final_learning_rate": min(config.sft.final_learning_rate, rate), "num_epochs": 1}
    )
    rubric = load_rubric(config.judge.rubric, "pointwise")
    examples = [SftExample(item.id, judge_messages(rubric, item.instruction, item.response), item.judgement) for item in items]
    # The chosen answers come along: judgements alone pull the answers back to where SFT left them.
    examples += [SftExample(pair.id, pair.messages, pair.chosen) for pair in pairs]
    context = context_of(stage, "replay")
    second = train_sft(between if first else model.checkpoint, examples, stage.path / "checkpoint", options, context)
    stage.write_json("replay", list(second.history))
    stage.notes["num_replayed"] = second.num_examples
    both = second
    if first:
        both = replace(
            first,
            num_examples=first.num_examples + second.num_examples,
            dropped=(*first.dropped, *second.dropped),
            num_tokens=first.num_tokens + second.num_tokens,
            earlier_seconds=first.earlier_seconds + second.earlier_seconds,
        )
    return record_training(stage, both, len(pairs) + len(examples))


def _train(stage: Stage, model: Artifact, pairs: list[PreferencePair], output: Path) -> TrainResult:
    options = stage.config.dpo
    if options.method == "positives-only":
        del stage.roles["reference"]
        examples = [SftExample(pair.id, pair.messages, pair.chosen) for pair in pairs]
        return train_sft(model.checkpoint, examples, output, options, context_of(stage, "dpo"))
    return train_dpo(model.checkpoint, pairs, output, options, context_of(stage, "dpo"))


def _pass_on(stage: Stage, model: Artifact) -> Counts:
    stage.logger.warning("no pairs: the model is passed on unchanged", extra={"data": {"stage": stage.key}})
    shutil.copytree(model.checkpoint, stage.path / "checkpoint")
    stage.write_json("history", [])
    stage.notes["trained"] = False
    return Counts(0, 0)
