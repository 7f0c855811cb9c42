"""Figures with intervals: Wilson, bootstrap over units, jackknife, sign test. Pure; layer 2, so that the
evaluations and the report share one implementation.

A *unit* is what was drawn independently: a held-out prompt, a ranked set, a prompt of a round. A unit may hold
several observations (the pairs of a ranked set, the votes on a response); it then carries their mean and, as weight,
their number, and is resampled as a whole. A figure is `sum(weight * value) / sum(weight)` over its units.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from selfreward.types import Estimate

CONFIDENCE = 0.95
Z = 1.959963984540054
"""Normal quantile behind a two-sided 95 % interval."""
NOTHING = Estimate(None, None, None, 0)
"""The estimate of a figure without a single observation."""

Units = Mapping[str, tuple[float, float]]
"""Unit id -> (value, weight)."""
_Floats = npt.NDArray[np.float64]
_NO_SPREAD = 1e-9
"""Ends of an interval that differ by less than this differ by rounding."""
_BLOCK = 2_000_000
"""Resampled indices held at a time; bounds the memory of a bootstrap."""


def wilson(successes: int, n: int) -> Estimate:
    """Share of successes in `n` independent yes/no trials with Wilson's score interval.

    Raises ValueError when `successes` is outside 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must lie in 0..n, n={n}")
    if n == 0:
        return NOTHING
    return score_interval(successes / n, n)


def score_interval(share: float, n: int) -> Estimate:
    """Wilson's score interval of a share over `n` >= 1 units, which need not be yes/no trials: no share in 0..1 varies more
    than one of those, so that it is wide enough for any."""
    spread = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / spread
    half = Z * float(np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))) / spread
    # At 0 and n the bound is the value itself; rounding must not push it past.
    low = 0.0 if share == 0 else max(0.0, middle - half)
    high = 1.0 if share == 1 else min(1.0, middle + half)
    return Estimate(share, low, high, n)


def bootstrap_mean(units: Units, seed: int, samples: int) -> Estimate:
    """Weighted mean over units with the percentile interval of `samples` resamples of the units.

    One unit has a value but no interval. `n` counts units with a positive weight.
    """
    values, weights = _columns(units, [key for key, (_, weight) in units.items() if weight > 0])
    n = len(values)
    if n == 0:
        return NOTHING
    value = float(np.average(values, weights=weights))
    if n == 1:
        return Estimate(value, None, None, 1)
    draws = _resample_ratios(np.random.default_rng(seed), samples, [(values, weights)])[0]
    low, high = _percentiles(draws)
    return Estimate(value, low, high, n)


def bootstrap_share(units: Units, seed: int, samples: int) -> Estimate:
    """Like `bootstrap_mean` for a share in 0..1, but honest where the units do not differ.

    When every unit is 0, every unit is 1, or all are alike between (contests that all tied), resampling shows no spread at
    all; the interval is then Wilson's with the units as trials.
    """
    estimate = bootstrap_mean(units, seed, samples)
    if estimate.value is None:
        return estimate
    if not -1e-9 <= estimate.value <= 1 + 1e-9:
        raise ValueError(f"a share must lie in 0..1, got {estimate.value}")
    if estimate.value in (0.0, 1.0):
        return wilson(int(estimate.value) * estimate.n, estimate.n)
    if estimate.low is not None and estimate.high is not None and estimate.high - estimate.low < _NO_SPREAD:
        return score_interval(estimate.value, estimate.n)
    return estimate


def bootstrap_rank_correlation(groups: Sequence[Sequence[tuple[float, float]]], seed: int, samples: int) -> Estimate:
    """Spearman's correlation over all observations of all groups, with the percentile interval of resampled groups.

    Each resample is ranked anew, ties at their middle. None where either side is constant; a resample in which it is says
    nothing. `n` counts groups with an observation; one alone has no interval.
    """
    groups = [group for group in groups if group]
    n = len(groups)
    if n == 0:
        return NOTHING
    owner = np.repeat(np.arange(n), [len(group) for group in groups])
    codes = [np.unique([row[side] for group in groups for row in group], return_inverse=True)[1] for side in (0, 1)]
    value = _rank_correlation(codes, np.ones(len(owner)))
    if np.isnan(value) or n == 1:
        return Estimate(None if np.isnan(value) else value, None, None, n)
    rng = np.random.default_rng(seed)
    draws = [
        _rank_correlation(codes, np.bincount(rng.integers(0, n, n), minlength=n)[owner].astype(np.float64))
        for _ in range(samples)
    ]
    low, high = _percentiles(np.array(draws))
    return Estimate(value, low, high, n)


def _rank_correlation(codes: Sequence[npt.NDArray[np.intp]], times: _Floats) -> float:
    """Spearman's correlation where observation i stands `times[i]` times; `codes` number each side's distinct values upwards.
    NaN where a side is constant."""
    total = times.sum()
    sides = []
    for code in codes:
        number = np.bincount(code, weights=times)
        middle = np.cumsum(number) - (number - 1) / 2
        ranks = middle[code]
        sides.append(ranks - (total + 1) / 2)
    one, other = sides
    spread = float((times * one**2).sum() * (times * other**2).sum())
    return float((times * one * other).sum() / np.sqrt(spread)) if spread > 0 else float("nan")


def paired_difference(new: Units, old: Units, seed: int, samples: int) -> Estimate:
    """`new - old` of a figure measured on the same units; both sides are resampled together.

    A unit that one side lacks counts there with weight 0, so that the difference is the difference of the two
    figures as they are reported. `n` counts the units that either side has; without a common unit there is no figure.
    """
    new = {key: unit for key, unit in new.items() if unit[1] > 0}
    old = {key: unit for key, unit in old.items() if unit[1] > 0}
    if not new.keys() & old.keys():
        return NOTHING
    keys = sorted(new.keys() | old.keys())
    sides = [_columns(new, keys), _columns(old, keys)]
    value = float(np.average(sides[0][0], weights=sides[0][1]) - np.average(sides[1][0], weights=sides[1][1]))
    if len(keys) == 1:
        return Estimate(value, None, None, 1)
    draws = _resample_ratios(np.random.default_rng(seed), samples, sides)
    low, high = _percentiles(draws[0] - draws[1])
    return Estimate(value, low, high, len(keys))


def unpaired_difference(new: Units, old: Units, seed: int, samples: int) -> Estimate:
    """`new - old` of a figure measured on different units; each side is resampled alone. `n` counts both sides."""
    sides = []
    for units in (new, old):
        values, weights = _columns(units, [key for key, (_, weight) in units.items() if weight > 0])
        if len(values) == 0:
            return NOTHING
        sides.append((values, weights))
    value = float(np.average(sides[0][0], weights=sides[0][1]) - np.average(sides[1][0], weights=sides[1][1]))
    n = len(sides[0][0]) + len(sides[1][0])
    if min(len(sides[0][0]), len(sides[1][0])) == 1:
        return Estimate(value, None, None, n)
    rng = np.random.default_rng(seed)
    draws = [_resample_ratios(rng, samples, [side])[0] for side in sides]
    low, high = _percentiles(draws[0] - draws[1])
    return Estimate(value, low, high, n)


def jackknife(value: float, without: Sequence[float], low: float, high: float) -> Estimate:
    """Interval of a statistic that resampling with repeats would bias (such as a share of distinct items).

    `without[i]` is the statistic with unit i left out; the interval is normal, cut to the statistic's own
    range `low`..`high`.
    """
    n = len(without)
    if n < 2:
        return Estimate(value, None, None, n)
    deviations = np.asarray(without, dtype=np.float64)
    error = float(np.sqrt((n - 1) / n * np.sum((deviations - deviations.mean()) ** 2)))
    return Estimate(value, max(low, value - Z * error), min(high, value + Z * error), n)


def sign_test(wins: int, losses: int) -> float | None:
    """Two-sided exact p-value that wins and losses are equally likely; ties are left out. None without either."""
    if wins + losses == 0:
        return None
    from scipy import stats  # takes a second to import, and the report needs the rest of this module without it

    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def _columns(units: Units, keys: Sequence[str]) -> tuple[_Floats, _Floats]:
    """Values and weights in the order of `keys`; a missing key is (0, weight 0)."""
    rows = [units.get(key, (0.0, 0.0)) for key in keys]
    return np.array([row[0] for row in rows], dtype=np.float64), np.array([row[1] for row in rows], dtype=np.float64)


def _resample_ratios(rng: np.random.Generator, samples: int, sides: Sequence[tuple[_Floats, _Floats]]) -> list[_Floats]:
    """`samples` bootstrap values of each side's weighted mean; all sides see the same resampled units.

    A resample in which a side has no weight says nothing about it and is NaN there.
    """
    n = len(sides[0][0])
    rows = max(1, _BLOCK // n)
    pieces: list[list[_Floats]] = [[] for _ in sides]
    for start in range(0, samples, rows):
        index = rng.integers(0, n, size=(min(rows, samples - start), n))
        for piece, (values, weights) in zip(pieces, sides, strict=True):
            total = weights[index].sum(axis=1)
            weighted = (values * weights)[index].sum(axis=1)
            piece.append(np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0))
    return [np.concatenate(piece) for piece in pieces]


def _percentiles(draws: _Floats) -> tuple[float | None, float | None]:
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return None, None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
