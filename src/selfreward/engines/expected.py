"""Votes by expected score (`judge.mode=expected`): not the score that a judge happens to say, but the mean of all it might.

With `judge.justify` each vote first has a reply of its own, sampled as for `judge.mode=sampled` with the same seed. What
stands before its score is then given back to the judge, and the probabilities of the legal scores there are the vote. A
reply without a valid score of its own is asked for again (`judge.max_retries`) or fails under its own name, as a sampled vote
does. Without `judge.justify` the legal
scores are weighed right behind the rubric's verdict prefix, and nothing is sampled.
"""

from collections.abc import Callable, Sequence

from selfreward.artifacts import Stage
from selfreward.engines.asking import collect
from selfreward.engines.base import Engine
from selfreward.engines.voting import Judged, sampled_votes
from selfreward.judging import check_judge_mode, expected_vote, judge_messages, legal_scores
from selfreward.rubrics import Rubric
from selfreward.types import Request, Sampling, Vote


def expected_votes(
    stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[Judged], num_votes: int, seed: Callable[..., int]
) -> list[tuple[Vote, ...]]:
    """The votes on each item, in their order. Raises ConfigError for a rubric that does not serve, and EngineError."""
    check_judge_mode(rubric, stage.config)
    if not stage.config.judge.justify:
        return [(vote,) for vote in _weigh(stage, engine, rubric, [(item, None) for item in items], seed)]
    said = sampled_votes(stage, engine, rubric, items, num_votes, seed)
    votes = [vote for cast in said for vote in cast]
    owners = [item for item, cast in zip(items, said, strict=True) for _ in cast]
    scored = [number for number, vote in enumerate(votes) if vote.score is not None]
    weighed = _weigh(stage, engine, rubric, [(owners[number], votes[number]) for number in scored], seed)
    for number, vote in zip(scored, weighed, strict=True):
        votes[number] = vote
    return [tuple(votes[start : start + num_votes]) for start in range(0, len(votes), num_votes)]


def _weigh(
    stage: Stage,
    engine: Engine,
    rubric: Rubric,
    said: Sequence[tuple[Judged, Vote | None]],
    seed: Callable[..., int],
) -> list[Vote]:
    """One vote for each item: the legal scores weighed behind what the sampled vote says before its score."""
    requests = []
    for item, vote in said:
        index, prefix = 0, rubric.verdict_prefix
        if vote is not None:
            found = rubric.find_verdict(vote.text)
            assert found is not None, "a vote with a score has a place where it says so"
            index, prefix = vote.index, vote.text[: found.start]
        requests.append(
            Request(
                f"{item.id}/{index}/scores",
                judge_messages(rubric, item.prompt, item.text),
                Sampling(max_tokens=1),
                seed(item.id, index),
                reply_prefix=prefix.rstrip(),
                # The space is weighed with the score: tokenizers that merge the two and others then measure the same.
                choices=tuple(prefix[len(prefix.rstrip()) :] + str(score) for score in legal_scores(rubric)),
            )
        )
    replies = zip(collect(stage, engine, requests), said, strict=True)
    return [expected_vote(rubric, reply, vote, stage.config.judge.min_mass) for reply, (_, vote) in replies]
