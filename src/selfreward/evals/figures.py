"""Every evaluated figure and the interval it gets."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from selfreward.statistics import Units, bootstrap_mean, bootstrap_share, wilson
from selfreward.types import Estimate, Measure

Kind = Literal["mean", "share", "proportion"]
KINDS: dict[str, Kind] = {
    "oracle_mean": "mean",
    "oracle_exact": "proportion",
    "greedy_oracle_mean": "mean",
    "greedy_oracle_exact": "proportion",
    "mean_length": "mean",
    "mean_tokens": "mean",
    "truncated_rate": "proportion",
    "judge_pairwise": "share",
    "judge_pairwise_strict": "share",
    "judge_tied": "share",
    "judge_scored": "share",
    "judge_exact_match": "proportion",
    "judge_spearman": "mean",
    "judge_kendall": "mean",
    "judge_five_best": "share",
    "win_rate": "proportion",
    "tie_rate_head_to_head": "proportion",
    "lose_rate": "proportion",
    "first_position": "share",
    "round_oracle_mean": "mean",
    "pairs_truly_better": "proportion",
    "pairs_truly_worse": "proportion",
}
"""`proportion`: one yes/no trial a unit, Wilson; several a unit count as `share`.
`share`: several trials a unit, bootstrap over units.
`mean`: bootstrap over units."""
DETAILS = frozenset({"candidate_oracle"})
"""Measures kept for looking at single items; their units were not drawn independently, so they get no interval."""


def units_of(measures: Iterable[Measure], figure: str) -> Units:
    """Unit -> (value, weight) of one figure."""
    return {measure.unit: (measure.value, measure.weight) for measure in measures if measure.figure == figure}


def estimate_all(measures: Sequence[Measure], seed: Callable[[str], int], samples: int) -> dict[str, Estimate]:
    """An estimate for each figure that has a measure, in the order of `KINDS`. `seed` maps a figure to its seed."""
    unknown = {measure.figure for measure in measures} - KINDS.keys() - DETAILS
    if unknown:
        raise ValueError(f"no interval is defined for {sorted(unknown)}; add them to KINDS or DETAILS")
    estimates = {}
    for figure, kind in KINDS.items():
        units = units_of(measures, figure)
        if units:
            estimates[figure] = _estimate(units, kind, seed(figure), samples)
    return estimates


def _estimate(units: Units, kind: Kind, seed: int, samples: int) -> Estimate:
    if kind == "proportion" and all(weight == 1 for _, weight in units.values()):
        return wilson(sum(round(value) for value, _ in units.values()), len(units))
    if kind in ("share", "proportion"):
        return bootstrap_share(units, seed, samples)
    return bootstrap_mean(units, seed, samples)
