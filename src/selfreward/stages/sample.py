"""Candidate responses (paper section 2.3): N sampled replies of the live model to each new prompt.

In: the round's prompts, M_t. Out: completions.parquet. Dropped: `truncated` (reached `sample.max_tokens` or the
context's end, so its text is cut), `empty`, `prompt_too_long` (the prompt fills the context).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from selfreward.artifacts import Artifact, Run, Stage, read_rows
from selfreward.engines import open_engine
from selfreward.engines.asking import collect, refuse_engine_failure
from selfreward.engines.base import Engine
from selfreward.stages._roles import cast_role
from selfreward.types import Completion, Counts, Drop, Generation, Message, Prompt, Request, Sampling


def run(run: Run, t: int, model: Artifact, prompts: Artifact) -> Artifact:
    """Sample `sample.num_candidates` replies a prompt."""
    config = run.config
    player = cast_role("policy", model, config)
    sections = {"sample": config.sample, "player": player.section}

    def work(stage: Stage) -> Counts:
        stage.roles = {"policy": player.label}
        items = read_rows(prompts.path / "prompts.parquet", Prompt)
        size = max(1, config.engine.chunk_size // config.sample.num_candidates)
        with open_engine(player.model, config) as engine:
            completions = stage.chunks("candidates", items, size, partial(sample_candidates, stage, engine), Completion)
        drops = [drop for drop in map(drop_of, completions) if drop]
        gone = {drop.id for drop in drops}
        stage.write_rows("completions", [item for item in completions if item.id not in gone], Completion)
        stage.reject(drops)
        return Counts(len(completions), len(completions) - len(drops), Counter(drop.reason for drop in drops))

    return run.stage(f"round-{t}/samples", sections, {"prompts": prompts, **player.inputs}, work)


def sample_candidates(stage: Stage, engine: Engine, prompts: Sequence[Prompt]) -> list[Completion]:
    """All candidates of these prompts, by prompt and index; those that were cut or not generated included."""
    config = stage.config.sample
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    wanted = [(prompt, index) for prompt in prompts for index in range(config.num_candidates)]
    requests = [
        Request(f"{prompt.id}/{index}", (Message("user", prompt.text),), sampling, stage.seed(prompt.id, index))
        for prompt, index in wanted
    ]
    replies = collect(stage, engine, requests)
    return [
        _completion(prompt, index, reply)
        for (prompt, index), reply in zip(wanted, map(refuse_engine_failure, replies), strict=True)
    ]


def _completion(prompt: Prompt, index: int, reply: Generation) -> Completion:
    assert reply.num_tokens is not None, "only servers leave counts out, and none of them plays the policy"
    return Completion(reply.request_id, prompt.id, prompt.text, index, reply.text, reply.num_tokens, reply.finish_reason)


def drop_of(completion: Completion) -> Drop | None:
    """Why a candidate cannot be used, or None."""
    reasons = {"length": "truncated", "error": "prompt_too_long"}
    reason = reasons.get(completion.finish_reason) or (None if completion.text.strip() else "empty")
    return Drop(completion.id, reason, json.dumps(asdict(completion), ensure_ascii=False)) if reason else None
