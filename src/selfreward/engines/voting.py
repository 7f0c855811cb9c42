"""Votes by sampled judgements: ask a judge about responses, and again where a vote failed (`judge.max_retries`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.artifacts import Stage
from selfreward.engines.asking import collect
from selfreward.engines.base import Engine
from selfreward.judging import RETRIED, asked_again, judge_messages, parse_vote
from selfreward.rubrics import Rubric
from selfreward.types import Generation, Request, Sampling, Vote


class Judged(Protocol):
    """A response to judge."""

    @property
    def id(self) -> str:
        """Unique among the responses judged together."""
        ...

    @property
    def prompt(self) -> str:
        """What was asked."""
        ...

    @property
    def text(self) -> str:
        """What was answered."""
        ...


@dataclass(frozen=True, slots=True)
class JudgedText:
    """The plain form of `Judged`."""

    id: str
    prompt: str
    text: str


def sampled_votes(
    stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[Judged], num_votes: int, seed: Callable[..., int]
) -> list[tuple[Vote, ...]]:
    """`num_votes` votes on each item, in the order of the items.

    The first reply's seed is `seed(item id, vote index)`, that of retry r `seed(item id, vote index, r)`, so that votes
    without a failure are the same with and without retries. All retries of these items are asked together. Every reply's
    tokens count. Raises EngineError.
    """
    config = stage.config.judge
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p, stop=rubric.stop)
    messages = {item.id: judge_messages(rubric, item.prompt, item.text) for item in items}
    asked = [(item.id, index) for item in items for index in range(num_votes)]

    def ask(numbers: Sequence[int], attempt: tuple[int, ...]) -> list[Generation]:
        requests = []
        for item_id, index in (asked[number] for number in numbers):
            name = "/".join(map(str, (item_id, index, *attempt)))
            requests.append(Request(name, messages[item_id], sampling, seed(item_id, index, *attempt)))
        return collect(stage, engine, requests)

    replies = ask(range(len(asked)), ())
    votes = [parse_vote(rubric, reply, index) for reply, (_, index) in zip(replies, asked, strict=True)]
    for attempt in range(1, config.max_retries + 1):
        failed = [number for number, vote in enumerate(votes) if vote.failure in RETRIED]
        if not failed:
            break
        for number, reply in zip(failed, ask(failed, (attempt,)), strict=True):
            votes[number] = asked_again(votes[number], parse_vote(rubric, reply, votes[number].index))
    return [tuple(votes[start : start + num_votes]) for start in range(0, len(votes), num_votes)]
