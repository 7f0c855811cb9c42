"""Judging as pure functions: rubric + instruction + response -> messages; reply -> vote; votes -> judgement.

A judge failure is missing data (paper section 2.1 leaves it open): a vote without a score carries the failure's
name and never a number. Only what the judge generated is read, never the prompt: a response that says `Score: 5` cannot
grade itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, fsum
from statistics import median
from typing import Any, Literal, cast

from selfreward.config import Config, JudgeConfig
from selfreward.errors import ConfigError, DataError, EngineError
from selfreward.rubrics import Preference, Rubric
from selfreward.rubrics.reading import to_number
from selfreward.types import (
    REQUEST_ERRORS,
    Attempt,
    EftExample,
    Generation,
    Judgement,
    Message,
    RequestError,
    VerdictFailure,
    Vote,
    VoteFailure,
)

Aggregate = Literal["mean", "median", "trimmed-mean"]

RETRIED: frozenset[VoteFailure] = frozenset({"no_score", "out_of_range", "truncated", "empty"})
"""Failures of one reply, which another one may not have. A prompt that is too long stays too long."""

MAX_CHOICES = 1000
"""Scores that are weighed for one vote: each is a row of the model's batch."""
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

    The rules stand in docs/judging.md, with a table that a test checks. In short, with the default pattern: the last `Score:`
    that is no quotation counts, with the number on its line. Marks, brackets and prose around the number do not matter; a
    range, several numbers, a percentage or a word is no score, and no earlier `Score:` stands in for it.

    The failures: `too_long` (the judge prompt did not fit the context), `content_filter` (the judge's server withheld the
    reply), `empty` (blank reply), `truncated` (the token
    limit cut the reply before a score, or right behind one with nothing but blanks or marks after it: `4.` may have
    become 4.5, `4 /` a 4/10), `no_score`, `out_of_range` (not on the rubric's scale, or out of another top: `4/10`,
    `4 points out of 10`). Raises EngineError for an engine failure that says nothing about the reply.
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


def asked_again(vote: Vote, answer: Vote) -> Vote:
    """The new answer to a failed vote's question, with the failed one among its attempts."""
    assert vote.failure is not None, "a vote with a score is final"
    failed = Attempt(vote.text, vote.failure, vote.num_tokens, vote.finish_reason)
    return replace(answer, attempts=(*vote.attempts, failed))


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """One score for several. `trimmed-mean` leaves out one lowest and one highest score where there are three or more."""
    if how == "median":
        return float(median(scores))
    if how == "trimmed-mean" and len(scores) >= 3:
        scores = sorted(scores)[1:-1]
    return fsum(scores) / len(scores)


def judgement_of(
    completion_id: str,
    votes: Sequence[Vote],
    min_votes: int,
    how: Aggregate = "mean",
    weights: Mapping[str, float] | None = None,
) -> Judgement:
    """All votes on one response, and the score that they give together: None with fewer than `min_votes` valid ones.

    With `weights` (member -> weight) the votes come from a panel: its score is the weighted mean of its members' scores, and
    None when one of them has fewer than `min_votes`. Without that member it would be the score of another panel, and scores
    of different panels must not be compared.
    """
    if weights is None:
        return Judgement(completion_id, tuple(votes), _score_of(votes, min_votes, how))
    assert {vote.member for vote in votes} <= weights.keys(), f"{completion_id}: votes of strangers, members are {set(weights)}"
    parts = [
        (weight, _score_of([vote for vote in votes if vote.member == member], min_votes, how))
        for member, weight in weights.items()
    ]
    known = [(weight, score) for weight, score in parts if score is not None]
    if len(known) < len(parts):
        return Judgement(completion_id, tuple(votes), None)
    total = fsum(weight * score for weight, score in known) / fsum(weight for weight, _ in known)
    return Judgement(completion_id, tuple(votes), total)


def _score_of(votes: Sequence[Vote], min_votes: int, how: Aggregate) -> float | None:
    scores = [vote.score for vote in votes if vote.score is not None]
    return aggregate(scores, how) if len(scores) >= max(min_votes, 1) else None


def legal_scores(rubric: Rubric) -> tuple[int, ...]:
    """The whole numbers of the rubric's scale, lowest first."""
    low, high = rubric.scale
    return tuple(range(int(low), int(high) + 1))


def judge_settings(config: JudgeConfig) -> dict[str, Any]:
    """What decides the votes beside who gives them, for fingerprints. What only `judge.mode=expected` uses counts only there:
    it changes no sampled vote."""
    unused = {"mode", "justify", "min_mass"} if config.mode == "sampled" else set()
    return config.model_dump(mode="json", exclude={"model", "panel", *unused})


def rubric_identity(rubric: Rubric, config: JudgeConfig) -> str:
    """What identifies a rubric for fingerprints of votes: its content hash, and where nothing is sampled before the score
    (`judge.justify=false`) also the prefix that the judge is given then."""
    at_once = config.mode == "expected" and not config.justify
    return f"{rubric.content_hash} {rubric.verdict_prefix!r}" if at_once else rubric.content_hash


def check_judge_mode(rubric: Rubric, config: Config) -> None:
    """Raise ConfigError where `judge.mode` and `judge.justify` do not go with the rubric."""
    judge, (low, high) = config.judge, rubric.scale
    if judge.mode == "sampled":
        return
    if low != int(low) or high != int(high):
        raise ConfigError(
            f"judge.mode=expected weighs whole scores, but the scale of rubric {rubric.name!r} is {low:g} to {high:g}; "
            "set judge.mode=sampled or another judge.rubric"
        )
    if high - low >= MAX_CHOICES:
        raise ConfigError(
            f"judge.mode=expected weighs each whole score, at most {MAX_CHOICES}, but the scale of rubric {rubric.name!r} is "
            f"{low:g} to {high:g}; set judge.mode=sampled or another judge.rubric"
        )
    if judge.justify:
        return
    if not rubric.verdict_prefix:
        raise ConfigError(
            f"judge.justify=false: rubric {rubric.name!r} does not say what stands before a score; add verdict_prefix to its "
            "header (for example 'Score: '), or set judge.justify=true"
        )


def expected_vote(rubric: Rubric, scored: Generation, said: Vote | None, min_mass: float) -> Vote:
    """The vote of a judge whose legal scores were weighed (`Request.choices`, in the order of `legal_scores`).

    `said` is the sampled vote whose justification came before; its text, tokens and attempts stay. The failures: those of the
    request (`too_long`: no room for a score), `off_scale` (a mass below `min_mass`, or none at all). Raises EngineError for an
    engine that weighed nothing.
    """
    _check_engine(scored)
    said = said or Vote(0, "", None, None, 0, scored.finish_reason)
    if scored.finish_reason == "error":
        return replace(said, score=None, failure=cast(RequestError, scored.error))
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
        return replace(said, score=None, failure="off_scale", mass=mass, distribution=shares)
    score = fsum(score * share for score, share in zip(scores, shares, strict=True))
    return replace(said, score=score, failure=None, mass=mass, distribution=shares)


def mean_mass(votes: Sequence[Vote]) -> float | None:
    """The mean probability of the legal scores; None where no vote has one."""
    known = [vote.mass for vote in votes if vote.mass is not None]
    return fsum(known) / len(known) if known else None


def parse_verdict(rubric: Rubric, generation: Generation) -> Preference | None:
    """Which response a pairwise judge prefers: the last `Verdict:` of the reply that is no quotation, read
    from the same line.

    None where there is no clear one, where the token limit cut the reply right behind it, and for the request errors
    `too_long` and `content_filter`. Raises EngineError for any other engine failure.
    """
    _check_engine(generation)
    found = rubric.find_verdict(generation.text)
    if found is None or _is_cut(generation, found.end):
        return None
    return rubric.preference(found.said)


def verdict_failure(generation: Generation) -> VerdictFailure:
    """Why this reply, in which `parse_verdict` found none, has no verdict."""
    if generation.finish_reason == "error":
        return cast(RequestError, generation.error)
    if generation.finish_reason == "length":
        return "truncated"
    return "no_verdict" if generation.text.strip() else "empty"


def check_targets(rubric: Rubric, targets: Sequence[EftExample]) -> None:
    """Raise DataError for a ready EFT target whose text does not say its score in the rubric's words."""
    for target in targets:
        vote = parse_vote(rubric, Generation(target.id, target.judgement, 0, 0, "stop"), 0)
        if vote.score is None or abs(vote.score - target.score) > 1e-6:
            found = vote.failure if vote.score is None else f"{vote.score:g}"
            raise DataError(
                f"EFT target {target.id!r}: rubric {rubric.name!r} reads {found} from its judgement, "
                f"but its score is {target.score:g}; correct the row, or set judge.rubric to its format"
            )


def _check_engine(generation: Generation) -> None:
    if generation.finish_reason == "error" and generation.error not in REQUEST_ERRORS:
        raise EngineError(f"judge request {generation.request_id!r} failed: {generation.error}; see the engine.* settings")


def _is_cut(generation: Generation, end: int) -> bool:
    """Whether the token limit ended the reply right behind this place, so that what stands before may be half of something."""
    return generation.finish_reason == "length" and _UNFINISHED.fullmatch(generation.text, end) is not None


def _read_score(rubric: Rubric, generation: Generation) -> tuple[float | None, VoteFailure | None]:
    if generation.finish_reason == "error":
        return None, cast(RequestError, generation.error)  # _check_engine lets no other name pass
    found = rubric.find_verdict(generation.text)
    score = to_number(found.said) if found else None
    if found is None or score is None:
        # The limit can be reached on blanks alone, so it is asked for first: it names the cause.
        if generation.finish_reason == "length":
            return None, "truncated"
        return None, "no_score" if generation.text.strip() else "empty"
    if _is_cut(generation, found.end):
        return None, "truncated"
    if not rubric.allows(score) or any(top != rubric.scale[1] for top in found.tops):
        return None, "out_of_range"
    return score, None
