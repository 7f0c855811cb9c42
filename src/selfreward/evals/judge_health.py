"""What a judge is like, whether or not it agrees with people: failed votes, votes that differ, a taste for length. Pure.

In: ranked sets (or any responses by prompt) with their judgements. A set is what was drawn independently, so intervals
resample whole sets.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from scipy import stats

from selfreward.evals.head_to_head import Comparison, comparison_measures
from selfreward.statistics import bootstrap_mean, bootstrap_rank_correlation, bootstrap_share
from selfreward.types import Estimate, Judgement, Measure

MIN_CORRELATED = 10
HEALTH_RULE = (
    "Mean score: over all scored responses. "
    "A response without enough valid votes has no score and counts in no figure of scores; its reason is that of most of its "
    "failed votes. Failed votes are shares of all votes asked for. Vote spread: the standard deviation (n - 1) of the valid "
    "votes on one response, averaged over responses with at least two. Length correlation: Spearman between a response's score "
    "and its length in characters; within sets it is averaged over sets whose responses differ in length, and a set whose "
    "scores are all equal counts 0; overall it is taken over all scored responses, and its interval resamples whole sets."
)
PAIR_RULE = (
    "Every pair of responses that the human ranks order is shown in both orders. Verdicts that prefer one response in both "
    "orders count 1 or 0, all others (two orders that disagree, a tie, equal texts) count 1/2, 0 in the strict variant. A pair "
    "with an unreadable verdict leaves. First shown: of the verdicts that prefer a response, how many prefer the one shown "
    "first; 1/2 is no position bias."
)


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """What is kept of the judgements of one prompt's responses: lengths and scores (None = no score) in the same order, the
    spread of each response's valid votes where there are two, and votes asked for and failed."""

    id: str
    lengths: tuple[int, ...]
    scores: tuple[float | None, ...]
    spreads: tuple[float, ...]
    num_votes: int
    num_failed: int


def judged_set(set_id: str, lengths: Sequence[int], judgements: Sequence[Judgement]) -> JudgedSet:
    """The set of responses with these lengths and judgements, in the same order."""
    votes = [[vote.score for vote in judgement.votes] for judgement in judgements]
    valid = [[score for score in scores if score is not None] for scores in votes]
    return JudgedSet(
        id=set_id,
        lengths=tuple(lengths),
        scores=tuple(judgement.score for judgement in judgements),
        spreads=tuple(stdev(scores) for scores in valid if len(scores) > 1),
        num_votes=sum(map(len, votes)),
        num_failed=sum(scores.count(None) for scores in votes),
    )


def joined(sets: Sequence[JudgedSet]) -> JudgedSet:
    """Several sets of responses to one prompt as one; it has the first one's id."""
    return JudgedSet(
        id=sets[0].id,
        lengths=tuple(length for item in sets for length in item.lengths),
        scores=tuple(score for item in sets for score in item.scores),
        spreads=tuple(spread for item in sets for spread in item.spreads),
        num_votes=sum(item.num_votes for item in sets),
        num_failed=sum(item.num_failed for item in sets),
    )


def main_failure(judgement: Judgement) -> str:
    """Why a response has no score: what most of its failed votes failed by, the first of them when equal."""
    failures = Counter(vote.failure for vote in judgement.votes if vote.failure is not None)
    return failures.most_common(1)[0][0] if failures else "too_few_votes"


def health_figures(sets: Sequence[JudgedSet], seed: Callable[[str], int], samples: int) -> dict[str, Estimate]:
    """`mean_score`, `scored`, `failed_votes`, `vote_spread`, `length_within_sets`, `length_overall`. `seed` maps a figure to
    its seed. Correlations of fewer than `MIN_CORRELATED` responses have no interval: it would be far too narrow."""
    known = {item.id: [score for score in item.scores if score is not None] for item in sets}
    mean = {key: (fmean(scores), len(scores)) for key, scores in known.items() if scores}
    failed = {item.id: (item.num_failed / item.num_votes, item.num_votes) for item in sets if item.num_votes}
    spread = {item.id: (fmean(item.spreads), len(item.spreads)) for item in sets if item.spreads}
    scored = {item.id: (1 - item.scores.count(None) / len(item.scores), len(item.scores)) for item in sets if item.scores}
    taste = {item.id: (value, 1) for item in sets if (value := _length_taste(item)) is not None}
    within = bootstrap_mean(taste, seed("length_within_sets"), samples)
    overall = bootstrap_rank_correlation([_columns(item) for item in sets], seed("length_overall"), samples)
    if sum(map(len, known.values())) < MIN_CORRELATED:
        within, overall = (replace(figure, low=None, high=None) for figure in (within, overall))
    return {
        "mean_score": bootstrap_mean(mean, seed("mean_score"), samples),
        "scored": bootstrap_share(scored, seed("scored"), samples),
        "failed_votes": bootstrap_share(failed, seed("failed_votes"), samples),
        "vote_spread": bootstrap_mean(spread, seed("vote_spread"), samples),
        "length_within_sets": within,
        "length_overall": overall,
    }


def pair_measures(set_of: Callable[[str], str], comparisons: Sequence[Comparison]) -> list[Measure]:
    """The figures of a pairwise judge on contests between a better (`new`) and a worse response; `set_of` maps a contest's id
    to its set. `judge_pairwise`, `judge_pairwise_strict`, `judge_tied` and `first_position`, one measure a set."""
    rows = [row for row in comparison_measures(comparisons) if row.figure != "lose_rate"]
    names = {"win_rate": "judge_pairwise_strict", "tie_rate_head_to_head": "judge_tied"}
    named = [replace(row, figure=names.get(row.figure, row.figure)) for row in rows]
    merged = {(row.figure, row.unit): row for row in merged_measures(named, set_of)}
    halves = [
        Measure("judge_pairwise", unit, strict.value + merged["judge_tied", unit].value / 2, strict.weight)
        for (figure, unit), strict in merged.items()
        if figure == "judge_pairwise_strict"
    ]
    return [*halves, *merged.values()]


def merged_measures(measures: Sequence[Measure], group_of: Callable[[str], str]) -> list[Measure]:
    """One measure for each figure and group of units that were not drawn independently: the mean of all
    their observations."""
    grouped: dict[tuple[str, str], list[Measure]] = {}
    for row in measures:
        grouped.setdefault((row.figure, group_of(row.unit)), []).append(row)
    return [rows[0] if len(rows) == 1 and rows[0].unit == key[1] else _merge(key, rows) for key, rows in grouped.items()]


def _merge(key: tuple[str, str], rows: Sequence[Measure]) -> Measure:
    weight = sum(row.weight for row in rows)
    return Measure(*key, sum(row.value * row.weight for row in rows) / weight, weight)


def _length_taste(judged: JudgedSet) -> float | None:
    """The set's correlation between length and score; None where there is nothing to correlate."""
    rows = _columns(judged)
    if len({length for length, _ in rows}) < 2:
        return None
    if len({score for _, score in rows}) < 2:
        return 0.0  # equal scores for responses of all lengths show no taste for length, so they count
    return float(stats.spearmanr([length for length, _ in rows], [score for _, score in rows]).statistic)


def _columns(judged: JudgedSet) -> list[tuple[int, float]]:
    """Length and score of every scored response."""
    return [(length, score) for length, score in zip(judged.lengths, judged.scores, strict=True) if score is not None]
