"""How well a judge agrees with human ranks (paper section 3.2, "reward modelling ability"). Pure.

In: ranked sets with the judge's score of each response. Out: one measure for each figure and set, so that
intervals and differences between models resample whole sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats

from selfreward.types import Measure

TIE_RULE = (
    "Pairwise accuracy counts every pair of responses that the human ranks order; pairs that humans tie are left out. "
    "A pair with equal judge scores counts 1/2 (0 in the strict variant). A response without a valid vote leaves its "
    "pairs out; the share of responses with a score is reported beside it."
)
ORDER_RULE = (
    "Exact match: every human-ordered pair of the set has strictly ordered scores the same way; sets with an unscored "
    "response are left out. Spearman and Kendall (tau-b) are taken per set over its scored responses and averaged; a set "
    "whose scores are all equal counts 0. 5-best: of the responses scored at the top of the scale, how many the humans "
    "rank first."
)


@dataclass(frozen=True, slots=True)
class ScoredSet:
    """Human ranks (0 is best, equal = tied) and the judge's mean scores (None = no valid vote) of one prompt's
    responses, in the same order."""

    id: str
    ranks: tuple[int, ...]
    scores: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.scores):
            raise ValueError(f"set {self.id!r}: {len(self.ranks)} ranks but {len(self.scores)} scores")


def judge_measures(sets: Sequence[ScoredSet], top_score: float) -> list[Measure]:
    """All figures of all sets. `top_score` is the top of the rubric's scale.

    Figures: `judge_pairwise`, `judge_pairwise_strict` (weight = pairs), `judge_tied` (share of pairs with equal
    scores), `judge_scored` (weight = responses), `judge_exact_match`, `judge_spearman`, `judge_kendall` (weight 1),
    `judge_five_best` (weight = responses with the top score). A set with nothing to say on a figure has no row.
    """
    return [measure for scored in sets for measure in _set_measures(scored, top_score)]


def _set_measures(scored: ScoredSet, top_score: float) -> list[Measure]:
    rows = [Measure("judge_scored", scored.id, _share([score is not None for score in scored.scores]), len(scored.scores))]
    rows += _pair_measures(scored)
    rows += _correlation_measures(scored)
    best = min(scored.ranks)
    top = [rank == best for rank, score in zip(scored.ranks, scored.scores, strict=True) if score == top_score]
    if top:
        rows.append(Measure("judge_five_best", scored.id, _share(top), len(top)))
    return rows


def _pair_measures(scored: ScoredSet) -> list[Measure]:
    """Pairwise accuracy (both tie rules), tied share and exact match of one set."""
    gaps: list[float | None] = []
    for i, j in combinations(range(len(scored.ranks)), 2):
        if scored.ranks[i] == scored.ranks[j]:
            continue
        better, worse = (i, j) if scored.ranks[i] < scored.ranks[j] else (j, i)
        high, low = scored.scores[better], scored.scores[worse]
        gaps.append(None if high is None or low is None else high - low)
    known = [gap for gap in gaps if gap is not None]
    if not known:
        return []
    right = _share([gap > 0 for gap in known])
    tied = _share([gap == 0 for gap in known])
    rows = [
        Measure("judge_pairwise", scored.id, right + tied / 2, len(known)),
        Measure("judge_pairwise_strict", scored.id, right, len(known)),
        Measure("judge_tied", scored.id, tied, len(known)),
    ]
    if None not in scored.scores:
        rows.append(Measure("judge_exact_match", scored.id, float(right == 1), 1))
    return rows


def _correlation_measures(scored: ScoredSet) -> list[Measure]:
    """Spearman and Kendall tau-b between score and human order; higher score should meet lower rank."""
    pairs = [(-rank, score) for rank, score in zip(scored.ranks, scored.scores, strict=True) if score is not None]
    human = [rank for rank, _ in pairs]
    judged = [score for _, score in pairs]
    if len(set(human)) < 2:
        return []
    if len(set(judged)) < 2:
        # Undefined, but it tells nothing apart: 0. Leaving it out would reward a judge for refusing to decide.
        return [Measure("judge_spearman", scored.id, 0.0, 1), Measure("judge_kendall", scored.id, 0.0, 1)]
    return [
        Measure("judge_spearman", scored.id, float(stats.spearmanr(human, judged).statistic), 1),
        Measure("judge_kendall", scored.id, float(stats.kendalltau(human, judged, variant="b").statistic), 1),
    ]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
