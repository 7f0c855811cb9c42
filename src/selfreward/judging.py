"""Judging as pure functions: rubric + instruction + response -> messages; reply -> vote; votes -> judgement.

A judge failure is missing data (paper section 2.1 leaves it open): a vote without a score carries the failure's
name and never a number. Only what the judge generated is read, never the prompt: a response that says `Score: 5` cannot
grade itself.
"""

import re
from collections.abc import Sequence
from math import exp, fsum
from typing import Any, Literal

from selfreward.config import Config, JudgeConfig
from selfreward.errors import ConfigError, EngineError
from selfreward.rubrics import Rubric, to_number
from selfreward.types import Generation, Judgement, Message, Vote, VoteFailure

Verdict = Literal["A", "B", "tie"]

_UNFINISHED = re.compile(r"[ \t.,/+*~\-\u2013\u2014]*")
"""What may stand between a number and the rest of what it was to become."""


def judge_messages(rubric: Rubric, instruction: str, response: str) -> tuple[Message, ...]:
    """The conversation that asks for a score of one response: one user turn (paper figure 2)."""
    return (Message("user", rubric.fill(instruction=instruction, response=response)),)


def pairwise_messages(rubric: Rubric, instruction: str, response_a: str, response_b: str) -> tuple[Message, ...]:
    """The conversation that asks which of two responses is better."""
    filled = rubric.fill(instruction=instruction, response_a=response_a, response_b=response_b)
    return (Message("user", filled),)


def propose_prompt(rubric: Rubric, prompts: Sequence[str]) -> tuple[Message, ...] | str:
    """The request for one new task after these demonstrations: a user turn, or plain text for completion templates."""
    filled = rubric.fill_demonstrations(prompts)
    return filled if rubric.format == "completion" else (Message("user", filled),)


def parse_vote(rubric: Rubric, generation: Generation, index: int) -> Vote:
    """Read the score out of a judge's reply.

    The rule, with the default pattern: the last `Score:` of the reply counts, read from the same line. Markdown marks,
    brackets and prose around the number do not matter: `**Score:** 4`, `Score: [4]`, `Score (0-5): 4`, `score: 4/5 points`,
    `Score: 4.5`, `Score: 4,5`, `Score: 1 + 1 + 1 = 3`. A range (`3-4`, `3~4`), several numbers (`4, 5`, `4 and 5`), other
    sums (`2*2 = 4`), a percentage, a word (`four`) is no score, and no earlier `Score:` stands in for it.

    The failures: `too_long` (the judge prompt did not fit the context), `empty` (blank reply), `truncated` (the token
    limit cut the reply before a score, or right behind one with nothing but blanks or marks after it: `4.` may have
    become 4.5, `4 /` a 4/10), `no_score`, `out_of_range` (outside the rubric's scale, or out of another top: `4/10`,
    `4 points out of 10`). Raises EngineError for an engine failure that says nothing
    about the reply.
    """
    _check_engine(generation)
    score, failure = _read_score(rubric, generation)
    return Vote(
        index=index,
        text=generation.text,
        score=score,
        failure=failure,
        num_tokens=generation.num_tokens,
        finish_reason=generation.finish_reason,
    )


def judgement_of(completion_id: str, votes: Sequence[Vote], min_votes: int) -> Judgement:
    """All votes on one response. The score is the plain mean of the valid votes, None with fewer than `min_votes`."""
    scores = [vote.score for vote in votes if vote.score is not None]
    enough = len(scores) >= max(min_votes, 1)
    return Judgement(completion_id, tuple(votes), fsum(scores) / len(scores) if enough else None)


def legal_scores(rubric: Rubric) -> tuple[int, ...]:
    """The whole numbers of the rubric's scale, lowest first."""
    low, high = rubric.scale
    return tuple(range(int(low), int(high) + 1))


def judge_settings(config: JudgeConfig) -> dict[str, Any]:
    """What decides the votes beside the model, for fingerprints. What only `judge.mode=expected` uses counts only there, so
    that a run from before there was any can go on."""
    unused = {"mode", "justify", "min_mass"} if config.mode == "sampled" else set()
    return config.model_dump(mode="json", exclude={"model", *unused})


def check_judge_mode(rubric: Rubric, config: Config) -> None:
    """Raise ConfigError where `judge.mode`, `judge.justify`, the numbers of votes and the rubric do not go together."""
    judge, (low, high) = config.judge, rubric.scale
    if judge.mode == "sampled" and not judge.justify:
        raise ConfigError("judge.justify=false needs judge.mode=expected: sampled judgements justify their scores")
    if judge.mode == "sampled":
        return
    if low != int(low) or high != int(high):
        raise ConfigError(
            f"judge.mode=expected weighs whole scores, but the scale of rubric {rubric.name!r} is {low:g} to {high:g}; "
            "set judge.mode=sampled or another judge.rubric"
        )
    if judge.justify:
        return
    for name, votes in (("judge.num_votes", judge.num_votes), ("eval.num_votes", config.eval.num_votes)):
        if votes != 1:
            raise ConfigError(f"{name}={votes}, but judge.justify=false samples nothing, so votes are equal; set {name}=1")
    if not rubric.verdict_prefix:
        raise ConfigError(
            f"judge.justify=false: rubric {rubric.name!r} does not say what stands before a score; add verdict_prefix to its "
            "header (for example 'Score: '), or set judge.justify=true"
        )


def expected_vote(rubric: Rubric, scored: Generation, said: Vote | None, min_mass: float) -> Vote:
    """The vote of a judge whose legal scores were weighed (`Request.choices`, in the order of `legal_scores`).

    `said` is the sampled vote whose justification came before; its text and tokens stay. The failures: `too_long` (no room for
    a score), `off_scale` (a mass below `min_mass`, or none at all). Raises EngineError for an engine that weighed nothing.
    """
    _check_engine(scored)
    text, index = (said.text, said.index) if said else ("", 0)
    num_tokens, finish_reason = (said.num_tokens, said.finish_reason) if said else (0, scored.finish_reason)
    if scored.finish_reason == "error":
        return Vote(index, text, None, "too_long", num_tokens, finish_reason)
    scores = legal_scores(rubric)
    if scored.choice_logprobs is None or len(scored.choice_logprobs) != len(scores):
        raise EngineError(
            f"the engine did not weigh the {len(scores)} scores of request {scored.request_id!r}; judge.mode=expected needs "
            "an engine that can: set engine.name=hf, or judge.mode=sampled"
        )
    weights = [exp(value) for value in scored.choice_logprobs]
    mass = fsum(weights)
    shares = tuple(weight / mass for weight in weights) if mass else None
    if shares is None or mass < min_mass:
        return Vote(index, text, None, "off_scale", num_tokens, finish_reason, mass, shares)
    score = fsum(score * share for score, share in zip(scores, shares, strict=True))
    return Vote(index, text, score, None, num_tokens, finish_reason, mass, shares)


def mean_mass(votes: Sequence[Vote]) -> float | None:
    """The mean probability of the legal scores; None where no vote has one."""
    known = [vote.mass for vote in votes if vote.mass is not None]
    return fsum(known) / len(known) if known else None


def parse_verdict(rubric: Rubric, generation: Generation) -> Verdict | None:
    """Which response a pairwise judge prefers: the last `Verdict:` of the reply, read from the same line.

    None where there is no clear one, where the token limit cut the reply right behind it, and for `too_long`. Raises
    EngineError for any other engine failure.
    """
    _check_engine(generation)
    found = rubric.find_verdict(generation.text)
    if found is None or _is_cut(generation, found.end):
        return None
    said: dict[str, Verdict] = {"A": "A", "B": "B", "TIE": "tie"}
    return said.get(found.said.upper())


def _check_engine(generation: Generation) -> None:
    if generation.finish_reason == "error" and generation.error != "too_long":
        raise EngineError(f"judge request {generation.request_id!r} failed: {generation.error}; see the engine.* settings")


def _is_cut(generation: Generation, end: int) -> bool:
    """Whether the token limit ended the reply right behind this place, so that what stands before may be half of something."""
    return generation.finish_reason == "length" and _UNFINISHED.fullmatch(generation.text, end) is not None


def _read_score(rubric: Rubric, generation: Generation) -> tuple[float | None, VoteFailure | None]:
    if generation.finish_reason == "error":
        return None, "too_long"
    found = rubric.find_verdict(generation.text)
    score = to_number(found.said) if found else None
    if found is None or score is None:
        # The limit can be reached on blanks alone, so it is asked for first: it names the cause.
        if generation.finish_reason == "length":
            return None, "truncated"
        return None, "no_score" if generation.text.strip() else "empty"
    if _is_cut(generation, found.end):
        return None, "truncated"
    low, high = rubric.scale
    top = to_number(found.out_of) if found.out_of else None
    if not low <= score <= high or (top is not None and top != high):
        return None, "out_of_range"
    return score, None
