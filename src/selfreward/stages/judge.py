"""LLM-as-a-judge (paper sections 2.1, 2.3): `judge.num_votes` sampled (`judge.mode`: or expected) scores of each candidate,
averaged.

In: the round's completions, the judge. Out: judgements.parquet, all votes on every completion. A failed vote is missing
data: it is named and counted, never a number. A candidate with fewer than `judge.min_votes` valid votes has no score
and leaves as `too_few_votes`; its votes stay in the table.
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import fsum
from typing import Any

from selfreward.artifacts import Artifact, Run, Stage, read_rows
from selfreward.engines import open_engine
from selfreward.engines.asking import collect
from selfreward.engines.base import Engine
from selfreward.engines.expected import expected_votes
from selfreward.judging import judge_messages, judge_settings, judgement_of, mean_mass, parse_vote
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import cast_role, model_name
from selfreward.types import Completion, Counts, Drop, Judgement, Request, Sampling


def run(run: Run, t: int, model: Artifact, samples: Artifact) -> Artifact:
    """Judge every completion with the model that `judge.model` names."""
    config = run.config
    rubric = load_rubric(config.judge.rubric, "pointwise")
    player = cast_role(config.judge.model, model, config)
    sections = {
        "judge": judge_settings(config.judge),
        "rubric": rubric.content_hash,
        "player": player.section,
    }

    def work(stage: Stage) -> Counts:
        stage.roles = {"policy": model_name(model), "judge": player.label}
        completions = read_rows(samples.path / "completions.parquet", Completion)
        size = max(1, config.engine.chunk_size // config.judge.num_votes)
        with open_engine(player.model, config) as engine:
            judged = stage.chunks("votes", completions, size, partial(judge_completions, stage, engine, rubric), Judgement)
        drops = [_drop(item) for item in judged if item.score is None]
        stage.write_rows("judgements", judged, Judgement)
        stage.reject(drops)
        stage.notes |= {"rubric": rubric.name, **describe(judged)}
        return Counts(len(judged), len(judged) - len(drops), Counter(drop.reason for drop in drops))

    return run.stage(f"round-{t}/judgements", sections, {"samples": samples, **player.inputs}, work)


def judge_completions(stage: Stage, engine: Engine, rubric: Rubric, completions: Sequence[Completion]) -> list[Judgement]:
    """All votes on these completions, in their order; request ids are `<completion id>/<vote>`."""
    config = stage.config.judge
    if config.mode == "expected":
        votes = expected_votes(stage, engine, rubric, completions, config.num_votes, stage.seed)
        return [judgement_of(item.id, cast, config.min_votes) for item, cast in zip(completions, votes, strict=True)]
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p, stop=rubric.stop)
    requests = []
    for item in completions:
        messages = judge_messages(rubric, item.prompt, item.text)
        for index in range(config.num_votes):
            requests.append(Request(f"{item.id}/{index}", messages, sampling, stage.seed(item.id, index)))
    replies = iter(collect(stage, engine, requests))
    return [
        judgement_of(item.id, [parse_vote(rubric, next(replies), index) for index in range(config.num_votes)], config.min_votes)
        for item in completions
    ]


def describe(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Failed votes by reason, the histogram of the votes' scores, the mean of the candidates' scores (None without), and the
    mean mass of expected scores."""
    votes = [vote for judgement in judgements for vote in judgement.votes]
    scores = Counter(vote.histogram_score for vote in votes if vote.histogram_score is not None)
    mass = mean_mass(votes)
    means = [judgement.score for judgement in judgements if judgement.score is not None]
    return {
        "num_votes": len(votes),
        "num_failed_votes": sum(vote.failure is not None for vote in votes),
        "failures": dict(sorted(Counter(str(vote.failure) for vote in votes if vote.failure).items())),
        "score_histogram": {f"{score:g}": scores[score] for score in sorted(scores)},
        "mean_score": fsum(means) / len(means) if means else None,
        **({} if mass is None else {"mean_mass": mass}),
    }


def _drop(judgement: Judgement) -> Drop:
    return Drop(judgement.completion_id, "too_few_votes", json.dumps([vote.failure for vote in judgement.votes]))
