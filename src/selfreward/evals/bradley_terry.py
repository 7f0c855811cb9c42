"""Bradley-Terry strengths of several models from wins, ties and losses between pairs of them.

P(i beats j) = sigmoid(s_i - s_j); a tie counts as half a win for each (Bradley and Terry 1952; ties as in Elo).
Strengths are natural logits relative to the first model, which is 0. A difference of 1 is 73 % of decided games.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfreward.errors import DataError
from selfreward.types import Estimate

PRIOR = 0.1
"""Pseudo-games: this many wins to each side of every pair that met. A model that never lost has a finite strength."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Game:
    """One comparison on one unit (a prompt): `score` is `first`'s share of the win: 1, 1/2 for a tie, 0."""

    unit: str
    first: str
    second: str
    score: float


def rank_models(models: Sequence[str], games: Sequence[Game], seed: int, samples: int) -> Mapping[str, Estimate]:
    """Strength of each model with a percentile interval over resampled units (prompts); the first model is the anchor, 0.

    n counts the units. A model that no chain of wins leads to from the anchor, or from which none leads back, could be any
    amount stronger or weaker: what the games leave open the prior has set, and it has no interval. A resample in which a
    model does not meet the others says nothing about it. Raises DataError when a game names an unknown model, when a model
    never plays, and when the games leave groups that never met: between them no order exists.
    """
    index = {model: number for number, model in enumerate(models)}
    for game in games:
        if not {game.first, game.second} <= index.keys():
            raise DataError(f"a game names {game.first!r} and {game.second!r}; the models are {', '.join(models)}")
    units = sorted({game.unit for game in games})
    place = {unit: number for number, unit in enumerate(units)}
    wins_UMM = np.zeros((len(units), len(models), len(models)))
    for game in games:
        first, second = index[game.first], index[game.second]
        wins_UMM[place[game.unit], first, second] += game.score
        wins_UMM[place[game.unit], second, first] += 1 - game.score
    total_MM = wins_UMM.sum(axis=0)
    _check_connected(models, total_MM)
    strengths_M = fit(total_MM)
    bounded = _reached(total_MM > 0) & _reached(total_MM.T > 0) if len(units) > 1 else set()
    drawn_SM = _resampled(wins_UMM, seed, samples) if bounded else np.empty((0, len(models)))
    found = {}
    for model, i in index.items():
        draws = drawn_SM[~np.isnan(drawn_SM[:, i]), i]
        ends = np.percentile(draws, [2.5, 97.5]) if i in bounded and len(draws) else (None, None)
        low, high = (None if end is None else float(end) for end in ends)
        found[model] = Estimate(float(strengths_M[i]), low, high, len(units))
    return found


def _resampled(wins_UMM: _Floats, seed: int, samples: int) -> _Floats:
    """Strengths of `samples` resamples of the units, shape SM; NaN for a model that did not meet the first one in it, nor
    anyone who did."""
    rng, num = np.random.default_rng(seed), len(wins_UMM)
    drawn_SM = np.full((samples, wins_UMM.shape[1]), np.nan)
    for row_M in drawn_SM:
        wins_MM = np.tensordot(np.bincount(rng.integers(0, num, num), minlength=num), wins_UMM, axes=1)
        met = sorted(_reached((wins_MM + wins_MM.T) > 0))
        row_M[met] = fit(wins_MM[np.ix_(met, met)])
    return drawn_SM


def fit(wins_MM: _Floats) -> _Floats:
    """Strengths, shape M, the first 0. `wins_MM[i, j]`: wins of i over j, ties half on each side; the prior is added here."""
    from scipy import optimize, special  # takes a second to import

    met_MM = (wins_MM + wins_MM.T) > 0
    counted_MM = wins_MM + PRIOR * met_MM

    def loss(free_F: _Floats) -> tuple[float, _Floats]:
        strengths_M = np.concatenate([[0.0], free_F])
        gap_MM = strengths_M[:, None] - strengths_M[None, :]
        value = float(np.sum(counted_MM * np.logaddexp(0, -gap_MM)))
        slope_MM = -counted_MM * special.expit(-gap_MM)
        return value, (slope_MM.sum(axis=1) - slope_MM.sum(axis=0))[1:]

    found = optimize.minimize(loss, np.zeros(len(wins_MM) - 1), jac=True, method="BFGS").x
    return np.concatenate([[0.0], found])


def _check_connected(models: Sequence[str], wins_MM: _Floats) -> None:
    reached = _reached((wins_MM + wins_MM.T) > 0)
    apart = [model for number, model in enumerate(models) if number not in reached]
    if apart:
        raise DataError(f"{', '.join(apart)} met neither {models[0]} nor anyone who did: no order exists between them")


def _reached(edges_MM: npt.NDArray[np.bool_]) -> set[int]:
    """The models to which edges lead from the first one, itself among them."""
    reached, frontier = {0}, [0]
    while frontier:
        for other in np.flatnonzero(edges_MM[frontier.pop()]):
            if int(other) not in reached:
                reached.add(int(other))
                frontier.append(int(other))
    return reached
