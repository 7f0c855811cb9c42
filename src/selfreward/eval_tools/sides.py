"""A side of a comparison: a model that answers instructions, or outputs that somebody's model has given already."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selfreward.artifacts import Artifact, Run, Stage, fingerprint, read_rows
from selfreward.config import ENDPOINT_PREFIX, SCRIPTED_PREFIX, Config, endpoint_name
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.errors import UsageError
from selfreward.eval_tools.answering import ask, is_answered
from selfreward.eval_tools.small import check_names, do_stage
from selfreward.evals.outputs import EVALUATION_TABLE, OUTPUT_KEYS, Instruction, ModelOutput, evaluated_model, read_outputs
from selfreward.preflight import check_writer
from selfreward.stages._roles import Player, frozen_player
from selfreward.types import Counts, Drop, Message, Request, Sampling


@dataclass(frozen=True)
class Side:
    """`name` is what tables and files call it. Either `outputs` are there, or `player` gives them."""

    option: str
    name: str
    outputs: Sequence[ModelOutput] | None
    player: Player | None


def open_side(option: str, value: str, config: Config, name: str | None = None, keys: Sequence[str] = OUTPUT_KEYS) -> Side:
    """What an option names: a model (a folder, `lab`, endpoint:NAME, scripted:NAME), a file of outputs, or the evals folder of
    a run's model. Raises UsageError, ConfigError, DataError."""
    path = Path(value)
    if path.is_file() or (path / EVALUATION_TABLE).is_file():
        outputs = read_outputs(path, keys)
        known = {row.generator for row in outputs}
        return Side(option, name or (known.pop() if len(known) == 1 else path.stem), outputs, None)
    check_names(config, {option: value})
    is_named = value == "lab" or value.startswith((ENDPOINT_PREFIX, SCRIPTED_PREFIX))
    if not (is_named or path.is_dir() or config.model.allow_download):
        raise UsageError(
            f"{option} {value!r} is neither a file of outputs, nor a folder here, nor lab or endpoint:NAME; "
            "for a hub id set model.allow_download=true"
        )
    check_writer(config, option, value)
    return Side(option, name or model_label(value, config), None, frozen_player(value, config))


def model_label(model: str, config: Config) -> str:
    """A short name of a model: the endpoint's model, `NAME-m2` for a checkpoint of a run, else the folder's name."""
    endpoint = endpoint_name(model)
    if endpoint is not None:
        return config.endpoints[endpoint].model
    path = Path(model)
    if path.name != "checkpoint":
        return path.stem if model.startswith(SCRIPTED_PREFIX) else path.name or model
    stage = path.absolute().parent
    if stage.name == "model" and stage.parent.name.startswith("round-"):
        return f"{stage.parent.parent.name}-{evaluated_model(stage)}"
    return f"{stage.parent.name}-{stage.name}"


def outputs_of(run: Run, key: str, side: Side, instructions: Sequence[Instruction] | None) -> list[ModelOutput]:
    """The side's outputs, all or those to the instructions; a model's are generated as stage `key`, in which drops are kept.

    Raises UsageError where a model has no instructions to answer, or where outputs that are there lack one.
    """
    if side.player is not None:
        if instructions is None:
            raise UsageError(f"{side.option} names a model, which needs instructions to answer: give --prompts FILE")
        made = generate(run, key, side, instructions)
        return read_rows(made.path / EVALUATION_TABLE, ModelOutput)
    assert side.outputs is not None, "a side has outputs or a player"
    if instructions is None:
        return list(side.outputs)
    texts = {row.text for row in instructions}
    missing = texts - {row.instruction for row in side.outputs}
    if missing:
        raise UsageError(
            f"{side.option} holds no output to {len(missing)} of {len(texts)} instructions of --prompts, such as "
            f"{min(missing)[:60]!r}; give outputs to all of them, or a model"
        )
    return [row for row in side.outputs if row.instruction in texts]


def generate(run: Run, key: str, side: Side, instructions: Sequence[Instruction]) -> Artifact:
    """A stage: one sampled output to each instruction, by the settings of `sample`."""
    assert side.player is not None, "only a model generates"
    sections = {
        "sample": run.config.sample.model_dump(mode="json", exclude={"num_candidates"}),
        "player": side.player.section,
        "generator": side.name,
        "data": fingerprint(list(instructions)),
    }
    return do_stage(run, key, sections, side.player.inputs, partial(_generate, side.player, side.name, instructions))


def _generate(player: Player, name: str, instructions: Sequence[Instruction], stage: Stage) -> Counts:
    stage.roles = {"policy": player.label}
    with open_engine(player.model, stage.config) as engine:
        work = partial(_answer, stage, engine, name)
        rows = stage.chunks("outputs", instructions, stage.config.engine.chunk_size, work, ModelOutput)
    kept = [row for row in rows if is_answered(row)]
    drops = [
        Drop(row.id, str(row.finish_reason), json.dumps(row.instruction, ensure_ascii=False))
        for row in rows
        if not is_answered(row)
    ]
    stage.write_rows("outputs", kept, ModelOutput)
    stage.notes = {"num_truncated": sum(row.finish_reason == "length" for row in kept)}
    stage.reject(drops)
    return Counts(len(rows), len(kept), Counter(drop.reason for drop in drops))


def _answer(stage: Stage, engine: Engine, name: str, instructions: Sequence[Instruction]) -> list[ModelOutput]:
    config = stage.config.sample
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    requests = [Request(row.id, (Message("user", row.text),), sampling, stage.seed("outputs", row.id)) for row in instructions]
    return [
        ModelOutput(row.id, row.text, answer.text, name, row.dataset, answer.num_tokens, answer.finish_reason)
        for row, answer in zip(instructions, ask(stage, engine, requests), strict=True)
    ]
