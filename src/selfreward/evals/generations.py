"""One sampled and one greedy response of a model to each held-out prompt."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Literal

from selfreward.artifacts import Stage
from selfreward.engines.asking import collect, refuse_engine_failure
from selfreward.engines.base import Engine
from selfreward.lab import oracle
from selfreward.types import Drop, EvalOutput, Generation, Measure, Message, Prompt, Request, Sampling


def generate_outputs(stage: Stage, engine: Engine, prompts: Sequence[Prompt]) -> tuple[list[EvalOutput], list[Drop]]:
    """Sampled outputs (the settings of `sample`), then greedy ones, each in the order of `prompts`.

    A response that hits the token limit is kept as it stands and counted. A prompt that does not fit the context leaves
    with the reason `too_long`. Raises EngineError when the engine fails in any other way.
    """
    config = stage.config.sample
    kinds: dict[Literal["sampled", "greedy"], Sampling] = {
        "sampled": Sampling(config.max_tokens, config.temperature, config.top_p),
        "greedy": Sampling(config.max_tokens, temperature=0.0, top_p=1.0),
    }
    outputs: list[EvalOutput] = []
    drops: list[Drop] = []
    for kind, sampling in kinds.items():
        work = partial(_answer, stage, engine, kind, sampling)
        for output in stage.chunks(kind, prompts, stage.config.engine.chunk_size, work, EvalOutput):
            if output.finish_reason == "error":
                drops.append(Drop(f"{output.prompt_id}/{kind}", "too_long", json.dumps(output.prompt, ensure_ascii=False)))
            else:
                outputs.append(output)
    return outputs, drops


def length_measures(outputs: Sequence[EvalOutput]) -> list[Measure]:
    """`mean_length` in characters (the paper's unit), `mean_tokens`, `truncated_rate`; of the sampled responses."""
    rows = []
    for output in outputs:
        if output.kind == "sampled":
            rows.append(Measure("mean_length", output.prompt_id, len(output.text), 1))
            rows.append(Measure("mean_tokens", output.prompt_id, output.num_tokens, 1))
            rows.append(Measure("truncated_rate", output.prompt_id, float(output.finish_reason == "length"), 1))
    return rows


def _answer(
    stage: Stage, engine: Engine, kind: Literal["sampled", "greedy"], sampling: Sampling, prompts: Sequence[Prompt]
) -> list[EvalOutput]:
    requests = [
        Request(prompt.id, (Message("user", prompt.text),), sampling, stage.seed("outputs", kind, prompt.id))
        for prompt in prompts
    ]
    replies = map(refuse_engine_failure, collect(stage, engine, requests))
    return [_output(prompt, kind, reply, stage.config.eval.oracle) for prompt, reply in zip(prompts, replies, strict=True)]


def _output(prompt: Prompt, kind: Literal["sampled", "greedy"], reply: Generation, use_oracle: bool) -> EvalOutput:
    if reply.finish_reason == "error":
        return EvalOutput(prompt.id, prompt.text, kind, "", 0, "error", None)
    assert reply.num_tokens is not None, "only servers leave counts out, and none of them plays the policy"
    value = oracle.score(prompt.text, reply.text) if use_oracle else None
    return EvalOutput(prompt.id, prompt.text, kind, reply.text, reply.num_tokens, reply.finish_reason, value)
