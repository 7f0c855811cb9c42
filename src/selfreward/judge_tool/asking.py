"""The stage's work: votes on every response by one judge or a panel, or verdicts on every ordered pair."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from selfreward.artifacts import Stage, iter_rows, writing_rows
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.engines.expected import expected_votes
from selfreward.engines.voting import sampled_votes
from selfreward.evals.head_to_head import Comparison, stream_comparisons
from selfreward.evals.judging import RankedResponse, stream_judgements
from selfreward.judge_tool.data import Data
from selfreward.judging import judgement_of
from selfreward.rubrics import Rubric
from selfreward.stages._panel import Judge, roles_of
from selfreward.stages._roles import Player
from selfreward.stages.judge import describe
from selfreward.types import Counts, Drop, Judgement


def score(player: Player, rubric: Rubric, data: Data, stage: Stage) -> Counts:
    """Votes on every response, as an evaluation asks for them."""
    stage.roles = {"judge": player.label}
    table = stage.path / "votes.parquet"
    with (
        open_engine(player.model, stage.config) as engine,
        stage.rejecting() as reject,
        writing_rows(table, Judgement) as write,
    ):
        responses = data.responses(reject)
        for judgements in stream_judgements(stage, engine, rubric, responses, data.scan.num_asked):
            for item in judgements:
                write(item)
                if item.score is None:
                    reject(_drop(item))
    stage.notes |= describe(iter_rows(table, Judgement))
    return _counted(stage, data.scan.num_drops + data.scan.num_responses)


def score_by_panel(judges: Sequence[Judge], data: Data, stage: Stage) -> Counts:
    """Votes of every member on every response, as a round's panel gives them; a model that sits there twice is loaded once."""
    stage.roles = roles_of(judges)
    tables = [stage.path / f"votes-{number}.parquet" for number in range(len(judges))]
    for model in dict.fromkeys(judge.player.model for judge in judges):
        with open_engine(model, stage.config) as engine:
            for number, judge in enumerate(judges):
                if judge.player.model == model:
                    _ask_member(stage, engine, judge, data, tables[number])
    whole, config = stage.path / "votes.parquet", stage.config.judge
    weights = {judge.name: judge.seat.weight for judge in judges}
    with stage.rejecting() as reject, writing_rows(whole, Judgement) as write:
        for _ in data.responses(reject):
            pass  # the rows that left are kept once
        for parts in zip(*(iter_rows(table, Judgement) for table in tables), strict=True):
            votes = [vote for part in parts for vote in part.votes]
            item = judgement_of(parts[0].completion_id, votes, config.min_votes, config.aggregate, weights)
            write(item)
            if item.score is None:
                reject(_drop(item))
    for table in tables:
        table.unlink()  # all in the one table now
    stage.notes |= {"judges": [judge.facts for judge in judges], **describe(iter_rows(whole, Judgement))}
    return _counted(stage, data.scan.num_drops + data.scan.num_responses)


def compare(player: Player, rubric: Rubric, data: Data, stage: Stage) -> Counts:
    """Verdicts on every pair that the ranks order, in both orders."""
    stage.roles = {"judge": player.label}
    with (
        open_engine(player.model, stage.config) as engine,
        stage.rejecting() as reject,
        writing_rows(stage.path / "comparisons.parquet", Comparison) as write,
    ):
        pairs = data.contests(reject)
        for rows in stream_comparisons(stage, engine, rubric, pairs, data.scan.num_pairs):
            for row in rows:
                write(row)
                if row.outcome is None:
                    reject(Drop(row.prompt_id, row.failures[0], json.dumps(row.failures)))
    return _counted(stage, data.scan.num_drops + data.scan.num_pairs)


def _ask_member(stage: Stage, engine: Engine, judge: Judge, data: Data, table: Path) -> None:
    number = int(table.stem.partition("-")[2])
    size = max(1, stage.config.engine.chunk_size // judge.seat.num_votes)
    work = partial(_member_votes, stage, engine, judge)
    responses = data.responses(lambda drop: None)
    with writing_rows(table, Judgement) as write:
        for rows in stage.stream(f"responses-{number}", responses, size, work, Judgement, data.scan.num_asked):
            for row in rows:
                write(row)


def _member_votes(stage: Stage, engine: Engine, judge: Judge, items: Sequence[RankedResponse]) -> list[Judgement]:
    """One member's votes; they have numbers and seeds of their own among all of the panel."""
    config = stage.config.judge

    def seed(item_id: str, index: int, *attempt: int) -> int:
        return stage.seed("vote", item_id, judge.first_vote + index, *attempt)

    ask = expected_votes if config.mode == "expected" else sampled_votes
    cast = ask(stage, engine, judge.rubric, items, judge.seat.num_votes, seed)
    return [
        judgement_of(
            item.id,
            [replace(vote, index=judge.first_vote + vote.index, member=judge.name) for vote in votes],
            config.min_votes,
            config.aggregate,
        )
        for item, votes in zip(items, cast, strict=True)
    ]


def _drop(item: Judgement) -> Drop:
    return Drop(item.completion_id, "too_few_votes", json.dumps([vote.failure for vote in item.votes]))


def _counted(stage: Stage, num_in: int) -> Counts:
    dropped = dict(stage.num_rejects or ())
    return Counts(num_in, num_in - sum(dropped.values()), dropped)
