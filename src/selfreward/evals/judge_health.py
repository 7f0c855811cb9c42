"""What a judge is like, whether or not it agrees with people: failed votes, votes that differ, a taste for length. Pure.

In: ranked sets (or any responses by prompt) with their judgements. A set is what was drawn independently, so intervals
resample whole sets.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from selfreward.evals.head_to_head import Comparison, comparison_measures
from selfreward.statistics import Units, bootstrap_mean, bootstrap_share
from selfreward.types import Estimate, Judgement, Measure

HEALTH_RULE = (
    "Failed votes are shares of all votes asked for. Vote spread: the standard deviation (n - 1) of the valid votes on one "
    "response, averaged over responses with at least two. Length correlation: Spearman between a response's score and its "
    "length in characters; within sets it is averaged over sets whose responses differ in length, and a set whose scores are "
    "all equal counts 0."
)
PAIR_RULE = (
    "Every pair of responses that the human ranks order is shown in both orders. Verdicts that prefer one response in both "
    "orders count 1 or 0, all others (two orders that disagree, a tie, equal texts) count 1/2, 0 in the strict variant. A pair "
    "with an unreadable verdict leaves. First shown: of the verdicts that prefer a response, how many prefer the one shown "
    "first; 1/2 is no position bias."
)


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """The responses to one prompt: their lengths and judgements, in the same order."""

    id: str
    lengths: tuple[int, ...]
    judgements: tuple[Judgement, ...]


def health_figures(sets: Sequence[JudgedSet], seed: Callable[[str], int], samples: int) -> dict[str, Estimate]:
    """`failed_votes`, `vote_spread`, `length_within_sets` with intervals, `length_overall` without one: no resampling of
    sets is cheap enough for it. `seed` maps a figure to its seed."""
    lengths, scores = _columns(sets)
    return {
        "failed_votes": bootstrap_share(_units(sets, _failures), seed("failed_votes"), samples),
        "vote_spread": bootstrap_mean(_units(sets, _spreads), seed("vote_spread"), samples),
        "length_within_sets": bootstrap_mean(_units(sets, _length_taste), seed("length_within_sets"), samples),
        "length_overall": Estimate(_spearman(lengths, scores), None, None, len(scores)),
    }


def pair_measures(set_of: Callable[[str], str], comparisons: Sequence[Comparison]) -> list[Measure]:
    """The figures of a pairwise judge on contests between a better (`new`) and a worse response; `set_of` maps a contest's id
    to its set. `judge_pairwise`, `judge_pairwise_strict`, `judge_tied` and `first_position`, one measure a set."""
    rows = [row for row in comparison_measures(comparisons) if row.figure != "lose_rate"]
    names = {"win_rate": "judge_pairwise_strict", "tie_rate_head_to_head": "judge_tied"}
    grouped: dict[tuple[str, str], list[Measure]] = {}
    for row in rows:
        grouped.setdefault((names.get(row.figure, row.figure), set_of(row.unit)), []).append(row)
    merged = {key: _merge(key, group) for key, group in grouped.items()}
    halves = [
        Measure("judge_pairwise", unit, strict.value + merged["judge_tied", unit].value / 2, strict.weight)
        for (figure, unit), strict in merged.items()
        if figure == "judge_pairwise_strict"
    ]
    return [*halves, *merged.values()]


def _merge(key: tuple[str, str], rows: Sequence[Measure]) -> Measure:
    weight = sum(row.weight for row in rows)
    return Measure(*key, sum(row.value * row.weight for row in rows) / weight, weight)


def _units(sets: Sequence[JudgedSet], values: Callable[[JudgedSet], Iterable[float]]) -> Units:
    """Set -> (mean, number) of its values; a set without any has no unit."""
    found = {judged.id: list(values(judged)) for judged in sets}
    return {name: (fmean(items), len(items)) for name, items in found.items() if items}


def _failures(judged: JudgedSet) -> Iterable[float]:
    return (float(vote.score is None) for judgement in judged.judgements for vote in judgement.votes)


def _spreads(judged: JudgedSet) -> Iterable[float]:
    for judgement in judged.judgements:
        votes = [vote.score for vote in judgement.votes if vote.score is not None]
        if len(votes) > 1:
            yield stdev(votes)


def _length_taste(judged: JudgedSet) -> Iterable[float]:
    """The set's correlation between length and score: one value, or none where there is nothing to correlate."""
    lengths, scores = _columns([judged])
    if len(set(lengths)) > 1:
        # Equal scores for responses of all lengths show no taste for length, so they count.
        yield _spearman(lengths, scores) or 0.0


def _columns(sets: Sequence[JudgedSet]) -> tuple[list[int], list[float]]:
    """Length and score of every scored response."""
    rows = [
        (length, judgement.score)
        for judged in sets
        for length, judgement in zip(judged.lengths, judged.judgements, strict=True)
        if judgement.score is not None
    ]
    return [length for length, _ in rows], [score for _, score in rows]


def _spearman(lengths: Sequence[int], scores: Sequence[float]) -> float | None:
    """None where either side is constant."""
    if len(set(lengths)) < 2 or len(set(scores)) < 2:
        return None
    return float(stats.spearmanr(lengths, scores).statistic)
