"""A model as judge of the held-out ranked sets: its votes, and the scored sets that the metrics need."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from selfreward.artifacts import Stage
from selfreward.engines.base import Engine
from selfreward.engines.expected import expected_votes
from selfreward.engines.voting import sampled_votes
from selfreward.evals.judge_quality import ScoredSet
from selfreward.judging import judgement_of
from selfreward.rubrics import Rubric
from selfreward.types import Judgement, RankedSet


@dataclass(frozen=True, slots=True)
class RankedResponse:
    """One response of a ranked set; `id` is `<set id>/<index>`."""

    id: str
    prompt: str
    text: str


def judge_ranked(stage: Stage, engine: Engine, rubric: Rubric, sets: Sequence[RankedSet]) -> list[Judgement]:
    """`eval.num_votes` judgements of each response by the engine's model, in the order of sets and responses."""
    return judge_responses(stage, engine, rubric, responses_of(sets))


def responses_of(sets: Sequence[RankedSet]) -> list[RankedResponse]:
    """All responses, in the order of sets and responses."""
    return [
        RankedResponse(f"{ranked.id}/{index}", ranked.prompt, text)
        for ranked in sets
        for index, text in enumerate(ranked.responses)
    ]


def judge_responses(stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[RankedResponse]) -> list[Judgement]:
    """`eval.num_votes` judgements of each response by the engine's model, in their order."""
    return [row for rows in stream_judgements(stage, engine, rubric, items, len(items)) for row in rows]


def stream_judgements(
    stage: Stage, engine: Engine, rubric: Rubric, items: Iterable[RankedResponse], num_items: int
) -> Iterator[list[Judgement]]:
    """The same for responses that come one by one: a chunk's judgements at a time."""
    size = max(1, stage.config.engine.chunk_size // stage.config.eval.num_votes)
    return stage.stream("responses", items, size, partial(_judge, stage, engine, rubric), Judgement, num_items)


def scored_sets(sets: Sequence[RankedSet], judgements: Sequence[Judgement]) -> list[ScoredSet]:
    """Human ranks beside the judge's scores."""
    scores = {judgement.completion_id: judgement.score for judgement in judgements}
    return [
        ScoredSet(ranked.id, ranked.ranks, tuple(scores[f"{ranked.id}/{index}"] for index in range(len(ranked.responses))))
        for ranked in sets
    ]


def count_failures(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Failed votes by reason, most frequent first."""
    failures = Counter(vote.failure for judgement in judgements for vote in judgement.votes if vote.failure)
    return {str(reason): count for reason, count in failures.most_common()}


def _judge(stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[RankedResponse]) -> list[Judgement]:
    config = stage.config
    ask = expected_votes if config.judge.mode == "expected" else sampled_votes
    cast = ask(stage, engine, rubric, items, config.eval.num_votes, partial(stage.seed, "vote"))
    return [
        judgement_of(item.id, votes, config.judge.min_votes, config.judge.aggregate)
        for item, votes in zip(items, cast, strict=True)
    ]
