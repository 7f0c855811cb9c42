"""Preference training of one round (paper section 2.4): M_t + its own pairs -> M_{t+1}.

In: M_t, the round's pairs, judgement pairs where replay is on. Out: checkpoint/, history.json. The reference is M_t
itself, frozen. `dpo.method: positives-only` is the paper's control: SFT on the chosen answers, same optimizer settings.
"""

import shutil

from selfreward.artifacts import Artifact, Run, Stage, read_json, read_rows
from selfreward.errors import DataError
from selfreward.stages._roles import model_name
from selfreward.stages._training import context_of, record_training
from selfreward.training import SftExample
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft
from selfreward.types import Counts, PreferencePair


def run(run: Run, t: int, model: Artifact, pairs: Artifact, replay: Artifact | None) -> Artifact:
    """Train M_{t+1}. Raises DataError when there are fewer than `pair.min_pairs` pairs.

    A round without pairs (`pair.min_pairs=0`) passes M_t on unchanged; the record says `trained: false`.
    """
    config = run.config
    inputs = {"start": model, "pairs": pairs} | ({"replay": replay} if replay else {})

    def work(stage: Stage) -> Counts:
        answers = read_rows(pairs.path / "pairs.parquet", PreferencePair)
        if len(answers) < config.pair.min_pairs:
            counts = read_json(pairs.path / "record.json")["counts"]
            raise DataError(
                f"round {t} has {len(answers)} pairs, pair.min_pairs={config.pair.min_pairs}; prompts without one: "
                f"{counts['dropped']} (too_few_candidates: answers were cut or votes failed, see rejects.parquet of the "
                "round's samples and judgements). Lower pair.min_pairs or pair.min_margin, or ask for more with "
                "propose.num_prompts, sample.num_candidates or judge.num_votes"
            )
        stage.roles = {"policy": model_name(model), "reference": model_name(model), "trained": f"m{t + 1}"}
        if not answers:
            return _pass_on(stage, model)
        judgements = read_rows(replay.path / "pairs.parquet", PreferencePair) if replay else []
        stage.notes |= {"num_answer_pairs": len(answers), "num_judgement_pairs": len(judgements), "method": config.dpo.method}
        return _train(stage, model, [*answers, *judgements])

    return run.stage(f"round-{t}/model", {"dpo": config.dpo}, inputs, work)


def _train(stage: Stage, model: Artifact, pairs: list[PreferencePair]) -> Counts:
    options, output = stage.config.dpo, stage.path / "checkpoint"
    if options.method == "positives-only":
        del stage.roles["reference"]
        examples = [SftExample(pair.id, pair.messages, pair.chosen) for pair in pairs]
        result = train_sft(model.checkpoint, examples, output, options, context_of(stage))
    else:
        result = train_dpo(model.checkpoint, pairs, output, options, context_of(stage))
    return record_training(stage, result, len(pairs))


def _pass_on(stage: Stage, model: Artifact) -> Counts:
    stage.logger.warning("no pairs: the model is passed on unchanged", extra={"data": {"stage": stage.key}})
    shutil.copytree(model.checkpoint, stage.path / "checkpoint")
    stage.write_json("history", [])
    stage.notes["trained"] = False
    return Counts(0, 0)
