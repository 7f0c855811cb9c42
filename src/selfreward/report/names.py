"""How figures are called and written for people; shared by the table and the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfreward.report.reading import estimate
from selfreward.report.svg import NUMBER, RATIO, SCORE, SHARE


@dataclass(frozen=True)
class Name:
    """`label` is short, `meaning` says what it is, `unit` how it is written."""

    label: str
    meaning: str
    unit: Literal["score", "share", "number", "ratio"]


NAMES: dict[str, Name] = {
    "oracle_mean": Name("oracle", "mean oracle score of sampled answers", "score"),
    "oracle_exact": Name("exact", "sampled answers that the oracle finds exactly right", "share"),
    "greedy_oracle_mean": Name("greedy oracle", "mean oracle score of greedy answers", "score"),
    "greedy_oracle_exact": Name("greedy exact", "greedy answers that the oracle finds exactly right", "share"),
    "judge_pairwise": Name("pairs right", "human-ordered pairs that the judge orders alike; equal scores count 1/2", "share"),
    "judge_pairwise_strict": Name("pairs right, strict", "the same with equal scores counting 0", "share"),
    "judge_tied": Name("pairs tied", "human-ordered pairs with equal judge scores", "share"),
    "judge_scored": Name("scored", "held-out ranked responses that got a score", "share"),
    "judge_exact_match": Name("order right", "sets whose whole order is right", "share"),
    "judge_spearman": Name("Spearman", "rank correlation with the human order, per set", "ratio"),
    "judge_kendall": Name("Kendall", "Kendall tau-b with the human order, per set", "ratio"),
    "judge_five_best": Name("5-best", "responses scored at the top that humans rank first", "share"),
    "mean_length": Name("length", "characters of a sampled answer", "number"),
    "mean_tokens": Name("tokens", "tokens of a sampled answer", "number"),
    "truncated_rate": Name("cut", "sampled answers that hit the token limit", "share"),
    "distinct_1": Name("distinct-1", "different words among all words of the sampled answers", "ratio"),
    "distinct_2": Name("distinct-2", "different word pairs among all word pairs", "ratio"),
    "win_rate": Name("wins", "prompts on which it beats the model before", "share"),
    "tie_rate_head_to_head": Name("ties", "prompts on which neither is better", "share"),
    "lose_rate": Name("loses", "prompts on which the model before beats it", "share"),
    "first_position": Name("first shown", "decisive verdicts for the answer shown first; 50 % = no position bias", "share"),
    "judge_mean": Name("own score", "mean score that the model gives the held-out ranked responses", "score"),
    "parse_failure_rate": Name("no score", "its votes on them without a score", "share"),
    "round_judge_mean": Name("own score", "mean judge score of the round's candidates", "score"),
    "tie_rate": Name("prompts tied", "prompts whose candidates all got the same score", "share"),
    "round_parse_failure_rate": Name("no score", "judge votes without a score", "share"),
    "pair_yield": Name("pairs", "pairs per prompt", "share"),
    "pairs_truly_better": Name("truly better", "pairs whose chosen answer the oracle finds better", "share"),
    "pairs_truly_worse": Name("truly worse", "pairs whose chosen answer the oracle finds worse", "share"),
    "round_oracle_mean": Name("oracle of candidates", "mean oracle score of the round's candidates", "score"),
}

UNITS = {"score": SCORE, "share": SHARE, "number": NUMBER, "ratio": RATIO}

FAILURES = {
    "no_score": "no score in the reply",
    "out_of_range": "score outside the scale",
    "truncated": "cut by the token limit",
    "empty": "empty reply",
    "too_long": "prompt too long for the context",
    "content_filter": "withheld by the judge's server",
    "off_scale": "legal scores improbable",
    "no_verdict": "no clear verdict in the reply",
}
"""Names of failed votes and verdicts in plain words."""

SHORT_FAILURES = {
    "no_score": "no score",
    "out_of_range": "out of scale",
    "truncated": "cut",
    "empty": "empty",
    "too_long": "too long",
    "content_filter": "withheld",
    "off_scale": "off scale",
}
"""The same beside the scores of other votes."""


def number(figure: str, value: float, sign: bool = False) -> str:
    """A value in the figure's unit; `sign` for differences (shares then are percentage points)."""
    unit = UNITS[NAMES[figure].unit]
    if not sign:
        return unit(value)
    return f"{round(value * unit.scale, unit.digits) + 0.0:+.{unit.digits}f}"  # adding 0.0 turns -0.0 into 0.0


def with_half(figure: str, value: Mapping[str, Any] | None) -> tuple[str, str]:
    """A figure and half the width of its interval: (`3.44`, `±0.05`); `-` and nothing where it was not measured."""
    known = estimate(value)
    if known is None or known.value is None:
        return "-", ""
    text = number(figure, known.value)
    if known.low is None or known.high is None:
        return text, ""
    half = number(figure, (known.high - known.low) / 2).removesuffix(" %")
    return text, f"±{half}"


def interval(figure: str, value: Mapping[str, Any] | None, sign: bool = False) -> str:
    """`[3.39, 3.49]`, or nothing without an interval."""
    known = estimate(value)
    if known is None or known.low is None or known.high is None:
        return ""
    low, high = (number(figure, end, sign).removesuffix(" %") for end in (known.low, known.high))
    return f"[{low}, {high}]" + (" %" if NAMES[figure].unit == "share" and not sign else "")
