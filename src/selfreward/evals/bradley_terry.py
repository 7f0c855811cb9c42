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

_MAX_STEPS, _CLOSE = 200, 1e-9
_BLOCK = 2_000_000
"""Resampled indices held at a time."""

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
    bounded_M = _reached(total_MM > 0) & _reached(total_MM.T > 0)
    drawn_SM = _resampled(wins_UMM, seed, samples if len(units) > 1 else 0)
    found = {}
    for model, i in index.items():
        draws = drawn_SM[~np.isnan(drawn_SM[:, i]), i]
        ends = np.percentile(draws, [2.5, 97.5]) if bounded_M[i] and len(draws) else (None, None)
        low, high = (None if end is None else float(end) for end in ends)
        found[model] = Estimate(float(strengths_M[i]), low, high, len(units))
    return found


def fit(wins_XMM: _Floats) -> _Floats:
    """Strengths, shape XM (X: any leading shape, one fit each), the first model's 0. `wins_XMM[..., i, j]`: wins of i over j,
    ties half on each side; the prior is added here. NaN for a model that did not meet the first one, nor anyone who did.

    Newton's method; a step changes no gap between two models by more than 1, within which the likelihood's curvature changes so
    little that every step climbs.
    """
    from scipy import special  # takes a second to import

    met_XMM = (wins_XMM + wins_XMM.swapaxes(-1, -2)) > 0
    known_XM = _reached(met_XMM)
    counted_XMM = wins_XMM + PRIOR * met_XMM
    games_XMM = counted_XMM + counted_XMM.swapaxes(-1, -2)
    # The likelihood knows gaps only: the first model and those that nothing is known of are held where they are.
    held_XM = ~known_XM
    held_XM[..., 0] = True
    held_XMM = held_XM[..., None] * np.eye(held_XM.shape[-1])
    strengths_XM = np.zeros(held_XM.shape)
    for _ in range(_MAX_STEPS):
        chances_XMM = special.expit(strengths_XM[..., :, None] - strengths_XM[..., None, :])
        slopes_XM = np.where(known_XM, (counted_XMM - games_XMM * chances_XMM).sum(axis=-1), 0.0)
        bends_XMM = games_XMM * chances_XMM * (1 - chances_XMM)
        curvature_XMM = bends_XMM.sum(axis=-1)[..., None] * np.eye(held_XM.shape[-1]) - bends_XMM
        steps_XM = np.linalg.solve(curvature_XMM + held_XMM, slopes_XM[..., None])[..., 0]
        widest_X1 = np.ptp(steps_XM, axis=-1, keepdims=True)
        strengths_XM += steps_XM / np.maximum(1.0, widest_X1)
        if np.max(widest_X1, initial=0.0) < _CLOSE:
            return np.where(known_XM, strengths_XM - strengths_XM[..., :1], np.nan)
    raise AssertionError(f"no strengths after {_MAX_STEPS} steps, although every step climbs")


def _resampled(wins_UMM: _Floats, seed: int, samples: int) -> _Floats:
    """Strengths of `samples` resamples of the units, shape SM."""
    rng, num = np.random.default_rng(seed), len(wins_UMM)
    rows, pieces = max(1, _BLOCK // num), []
    for start in range(0, samples, rows):
        index_SU = rng.integers(0, num, size=(min(rows, samples - start), num))
        places_SU = index_SU + num * np.arange(len(index_SU))[:, None]
        times_SU = np.bincount(places_SU.ravel(), minlength=index_SU.size).reshape(index_SU.shape)
        pieces.append(fit(np.tensordot(times_SU.astype(np.float64), wins_UMM, axes=1)))
    return np.concatenate(pieces) if pieces else np.empty((0, wins_UMM.shape[1]))


def _check_connected(models: Sequence[str], wins_MM: _Floats) -> None:
    reached_M = _reached((wins_MM + wins_MM.T) > 0)
    apart = [model for model, is_reached in zip(models, reached_M, strict=True) if not is_reached]
    if apart:
        raise DataError(f"{', '.join(apart)} met neither {models[0]} nor anyone who did: no order exists between them")


def _reached(edges_XMM: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Shape XM: whether edges lead to a model from the first one, itself among them."""
    reached_XM = np.zeros(edges_XMM.shape[:-1], dtype=np.bool_)
    reached_XM[..., 0] = True
    for _ in range(edges_XMM.shape[-1]):
        reached_XM = reached_XM | (reached_XM[..., :, None] & edges_XMM).any(axis=-2)
    return reached_XM
