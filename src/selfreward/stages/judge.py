"""LLM-as-a-judge (paper sections 2.1, 2.3): `judge.num_votes` sampled (`judge.mode`: or expected) scores of each candidate,
averaged.

In: the round's completions, the judge or the members of a panel. Out: judgements.parquet, all votes on every completion. A
failed vote is missing data: it is sampled again up to `judge.max_retries` times, then named and counted, never a number. A
candidate with fewer than `judge.min_votes` valid votes of any member has no score and leaves as `too_few_votes`; its votes
stay in the table.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import fsum
from typing import Any

from selfreward.artifacts import Artifact, Run, Stage, read_rows
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.engines.expected import expected_votes
from selfreward.engines.voting import sampled_votes
from selfreward.judging import judge_settings, judgement_of
from selfreward.stages._panel import Judge, cast_panel, roles_of
from selfreward.stages._roles import model_name
from selfreward.types import Completion, Counts, Drop, Judgement


def run(run: Run, t: int, model: Artifact, samples: Artifact) -> Artifact:
    """Judge every completion with who `judge.model` or `judge.panel` names."""
    judges = cast_panel(run, model)
    sections = {
        "judge": judge_settings(run.config.judge),
        "members": {str(number): judge.section(run.config.judge) for number, judge in enumerate(judges)},
    }
    inputs = {"samples": samples}
    for judge in judges:
        inputs |= judge.player.inputs

    def work(stage: Stage) -> Counts:
        stage.roles = {"policy": model_name(model), **roles_of(judges)}
        completions = read_rows(samples.path / "completions.parquet", Completion)
        judged = _combine(stage, judges, _tables(stage, judges, completions))
        drops = [_drop(item) for item in judged if item.score is None]
        stage.write_rows("judgements", judged, Judgement)
        stage.reject(drops)
        stage.notes |= {"judges": [judge.facts for judge in judges], **describe(judged)}
        return Counts(len(judged), len(judged) - len(drops), Counter(drop.reason for drop in drops))

    return run.stage(f"round-{t}/judgements", sections, inputs, work)


def judge_completions(stage: Stage, engine: Engine, judge: Judge, completions: Sequence[Completion]) -> list[Judgement]:
    """One member's votes on these completions, in their order; request ids are `<completion id>/<vote>`."""
    config = stage.config.judge

    def seed(item_id: str, index: int, *attempt: int) -> int:
        return stage.seed(item_id, judge.first_vote + index, *attempt)

    ask = expected_votes if config.mode == "expected" else sampled_votes
    cast = ask(stage, engine, judge.rubric, completions, judge.seat.num_votes, seed)
    rows = []
    for item, votes in zip(completions, cast, strict=True):
        named = [replace(vote, index=judge.first_vote + vote.index, member=judge.name) for vote in votes]
        rows.append(judgement_of(item.id, named, config.min_votes, config.aggregate))
    return rows


def _tables(stage: Stage, judges: Sequence[Judge], completions: Sequence[Completion]) -> list[list[Judgement]]:
    """Each member's judgements of all completions, in the order of the members. No model is loaded twice."""
    tables: dict[int, list[Judgement]] = {}
    for model in dict.fromkeys(judge.player.model for judge in judges):
        with open_engine(model, stage.config) as engine:
            for number, judge in enumerate(judges):
                if judge.player.model == model:
                    name = "votes" if len(judges) == 1 else f"votes-{number}"
                    size = max(1, stage.config.engine.chunk_size // judge.seat.num_votes)
                    work = partial(judge_completions, stage, engine, judge)
                    tables[number] = stage.chunks(name, completions, size, work, Judgement)
    return [tables[number] for number in range(len(judges))]


def _combine(stage: Stage, judges: Sequence[Judge], tables: Sequence[Sequence[Judgement]]) -> list[Judgement]:
    """One judgement of each completion from those of the members."""
    if len(judges) == 1:
        return list(tables[0])
    config = stage.config.judge
    weights = {judge.name: judge.seat.weight for judge in judges}
    rows = []
    for parts in zip(*tables, strict=True):
        votes = [vote for part in parts for vote in part.votes]
        rows.append(judgement_of(parts[0].completion_id, votes, config.min_votes, config.aggregate, weights))
    return rows


def describe(judgements: Iterable[Judgement]) -> dict[str, Any]:
    """Failed votes by reason, failed replies that were asked for again, the histogram of the votes' scores, the mean of
    the candidates' scores (None without), and the mean mass of expected scores."""
    scores: Counter[float] = Counter()
    failures: Counter[str] = Counter()
    retried: Counter[str] = Counter()
    means, masses, num_votes = [], [], 0
    for judgement in judgements:  # once: they may come from a file that memory does not hold
        num_votes += len(judgement.votes)
        means += [] if judgement.score is None else [judgement.score]
        masses += [vote.mass for vote in judgement.votes if vote.mass is not None]
        failures.update(vote.failure for vote in judgement.votes if vote.failure)
        retried.update(attempt.failure for vote in judgement.votes for attempt in vote.attempts)
        scores.update(vote.histogram_score for vote in judgement.votes if vote.histogram_score is not None)
    return {
        "num_votes": num_votes,
        "num_failed_votes": failures.total(),
        "failures": dict(sorted(failures.items())),
        "num_retries": retried.total(),
        "retried_failures": dict(sorted(retried.items())),
        "score_histogram": {f"{score:g}": scores[score] for score in sorted(scores)},
        "mean_score": fsum(means) / len(means) if means else None,
        **({"mean_mass": fsum(masses) / len(masses)} if masses else {}),
    }


def _drop(judgement: Judgement) -> Drop:
    return Drop(judgement.completion_id, "too_few_votes", json.dumps([vote.failure for vote in judgement.votes]))
