"""A model's responses against the previous model's on the same held-out prompts (paper section 3.2).

A judge sees each pair of responses in both orders; orders that disagree make a tie. A verdict that cannot be read
makes the comparison missing, never a win or a loss. The oracle needs no orders: it compares two scores.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from selfreward.artifacts import Stage
from selfreward.engines.asking import collect
from selfreward.engines.base import Engine
from selfreward.judging import pairwise_messages, parse_verdict, verdict_failure
from selfreward.rubrics import Rubric
from selfreward.statistics import sign_test
from selfreward.types import EvalOutput, FinishReason, Generation, Measure, Request, Sampling, VerdictFailure

Choice = Literal["new", "old", "tie"]
Order = Literal["new_first", "old_first"]


@dataclass(frozen=True, slots=True)
class Contest:
    """One prompt with both models' responses."""

    prompt_id: str
    prompt: str
    new: str
    old: str


@dataclass(frozen=True, slots=True)
class PairVote:
    """A judge's reply to a contest in one order: its raw text, and a choice or a named failure."""

    order: Order
    text: str
    choice: Choice | None
    failure: VerdictFailure | None
    num_tokens: int | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Comparison:
    """One contest decided. `new_first` and `old_first` are the judge's choices in the two orders (None = unreadable, or
    not asked); `outcome` is the new model's, None = missing. `votes` are the replies, none where nobody was asked."""

    prompt_id: str
    new_first: Choice | None
    old_first: Choice | None
    outcome: Literal["win", "tie", "lose"] | None
    votes: tuple[PairVote, ...] = ()

    @property
    def failures(self) -> list[VerdictFailure]:
        """Why verdicts are missing, in the order in which they were asked for."""
        return [vote.failure for vote in self.votes if vote.failure is not None]


def contests(new: Sequence[EvalOutput], old: Sequence[EvalOutput]) -> list[Contest]:
    """Pairs up the sampled responses to the prompts that both models answered."""
    others = {output.prompt_id: output for output in old if output.kind == "sampled"}
    return [
        Contest(output.prompt_id, output.prompt, output.text, others[output.prompt_id].text)
        for output in new
        if output.kind == "sampled" and output.prompt_id in others
    ]


def compare_by_oracle(new: Sequence[EvalOutput], old: Sequence[EvalOutput]) -> list[Comparison]:
    """Higher oracle score wins; missing where either response has none."""
    others = {output.prompt_id: output.oracle for output in old if output.kind == "sampled"}
    return [
        by_scores(output.prompt_id, output.oracle, others[output.prompt_id])
        for output in new
        if output.kind == "sampled" and output.prompt_id in others
    ]


def by_scores(prompt_id: str, new: float | None, old: float | None) -> Comparison:
    """The comparison that two scores make, without any judge."""
    if new is None or old is None:
        return Comparison(prompt_id, None, None, None)
    return Comparison(prompt_id, None, None, "tie" if new == old else "win" if new > old else "lose")


def compare_by_judge(stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[Contest]) -> list[Comparison]:
    """Asks the engine's model in both orders, greedily. Equal responses tie without being asked."""
    return [row for rows in stream_comparisons(stage, engine, rubric, items, len(items)) for row in rows]


def stream_comparisons(
    stage: Stage, engine: Engine, rubric: Rubric, items: Iterable[Contest], num_items: int
) -> Iterator[list[Comparison]]:
    """The same for contests that come one by one: a chunk's comparisons at a time."""
    size = max(1, stage.config.engine.chunk_size // 2)
    return stage.stream("comparisons", items, size, partial(_ask, stage, engine, rubric), Comparison, num_items)


def decide(new_first: Choice | None, old_first: Choice | None) -> Literal["win", "tie", "lose"] | None:
    """The outcome for the new model from the choices in the two orders."""
    if new_first is None or old_first is None:
        return None
    if new_first != old_first or new_first == "tie":
        return "tie"
    return "win" if new_first == "new" else "lose"


def comparison_measures(comparisons: Sequence[Comparison]) -> list[Measure]:
    """`win_rate`, `tie_rate_head_to_head`, `lose_rate` over the decided contests, and `first_position`: of the
    decisive verdicts, how many chose the response shown first (1/2 = no position bias). Unit = prompt."""
    names = {"win_rate": "win", "tie_rate_head_to_head": "tie", "lose_rate": "lose"}
    rows = []
    for item in comparisons:
        if item.outcome is not None:
            rows += [Measure(name, item.prompt_id, float(item.outcome == outcome), 1) for name, outcome in names.items()]
        first = [item.new_first == "new"] if item.new_first in ("new", "old") else []
        first += [item.old_first == "old"] if item.old_first in ("new", "old") else []
        if first:
            rows.append(Measure("first_position", item.prompt_id, sum(first) / len(first), len(first)))
    return rows


def count_failures(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """Missing verdicts by reason, most frequent first."""
    return {str(reason): number for reason, number in Counter(f for row in comparisons for f in row.failures).most_common()}


def describe(comparisons: Sequence[Comparison], judge: str, opponent: str, num_prompts: int) -> Mapping[str, Any]:
    """Counts for `evals.json`. `not_compared`: prompts that one of the two models has no response to."""
    outcomes = [item.outcome for item in comparisons]
    wins, losses = outcomes.count("win"), outcomes.count("lose")
    return {
        "judge": judge,
        "opponent": opponent,
        "wins": wins,
        "ties": outcomes.count("tie"),
        "losses": losses,
        "missing": outcomes.count(None),
        "failed_verdicts": count_failures(comparisons),
        "not_compared": num_prompts - len(comparisons),
        "orders_disagree": sum(
            None not in (item.new_first, item.old_first) and item.new_first != item.old_first for item in comparisons
        ),
        "sign_test_p": sign_test(wins, losses),
    }


def _ask(stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[Contest]) -> list[Comparison]:
    sampling = Sampling(stage.config.judge.max_tokens, temperature=0.0, top_p=1.0, stop=rubric.stop)
    requests = []
    for item in items:
        if item.new != item.old:
            for order, (first, second) in (("new_first", (item.new, item.old)), ("old_first", (item.old, item.new))):
                messages = pairwise_messages(rubric, item.prompt, first, second)
                seed = stage.seed("comparison", item.prompt_id, order)
                requests.append(Request(f"{item.prompt_id}/{order}", messages, sampling, seed))
    replies = iter(collect(stage, engine, requests))
    rows = []
    for item in items:
        if item.new == item.old:
            rows.append(Comparison(item.prompt_id, None, None, "tie"))
            continue
        votes = _vote(rubric, next(replies), "new_first"), _vote(rubric, next(replies), "old_first")
        new_first, old_first = (vote.choice for vote in votes)
        rows.append(Comparison(item.prompt_id, new_first, old_first, decide(new_first, old_first), votes))
    return rows


def _vote(rubric: Rubric, reply: Generation, order: Order) -> PairVote:
    verdict = parse_verdict(rubric, reply)
    choice = _choice(verdict, *(("new", "old") if order == "new_first" else ("old", "new")))
    failure = verdict_failure(reply) if verdict is None else None
    return PairVote(order, reply.text, choice, failure, reply.num_tokens, reply.finish_reason)


def _choice(verdict: Literal["A", "B", "tie"] | None, first: Choice, second: Choice) -> Choice | None:
    """A verdict about what was shown, as a choice between the models."""
    if verdict is None:
        return None
    return "tie" if verdict == "tie" else first if verdict == "A" else second
