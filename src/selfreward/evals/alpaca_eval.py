"""AlpacaEval 2: win rate and length-controlled win rate of a model against a baseline, from annotations of both outputs.

Definitions (Dubois et al., arXiv 2404.04475). A preference lies in [1, 2]: 1 the baseline's output, 2 the model's; null is a
draw. Win rate: the mean of `preference - 1`. The length-controlled one asks what it would be if both outputs were equally
long. It fits

    P(model wins x) = sigmoid(length * tanh((len_baseline - len_model) / std) + difficulty * d_x + model)

and averages the prediction over the instructions with the length term at 0. `len`: characters; `std`: of the length
differences of this model; `d_x`: how hard the baseline is to beat on x, estimated once over many models and given as data.

The leaderboard fits the length weight on two more versions of the baseline that play with length, and regularises it by
cross-validation. From one model's file alone none of that is known: see `fit_weights`. All rates are percentages.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selfreward.errors import DataError
from selfreward.statistics import score_interval
from selfreward.texts import counted, shown

BASELINE_WINS, MODEL_WINS = 1.0, 2.0
SHRINK_LENGTH = 0.0075
"""Ridge on the length weight, a row, where instructions have no difficulties. Such a fit is free to explain hard instructions
by length, and answers that are all shorter than the baseline's leave the point of equal length to extrapolation. The
value was chosen on three models with published figures; `docs/evaluation.md` shows what it does."""
_WEIGHTS = {"tanh_std_delta_len": "length", "instruction_difficulty": "difficulty", "model": "model"}
_RESAMPLES, _SEED = 300, 1
_KINDS: Mapping[type, str] = {dict: "an object", str: "a text", type(None): "null"}

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One instruction with the baseline's output (1) and the model's (2), and which one an annotator preferred."""

    instruction: str
    output_1: str
    output_2: str
    preference: float | None
    model: str = ""

    @property
    def win(self) -> float:
        """1 a win of the model, 0 a loss, between them how sure the annotator was; a null preference is a draw."""
        return 0.5 if self.preference is None else self.preference - BASELINE_WINS


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the fitted model, on the logit scale. `difficulty` is 0 where instructions have no difficulties."""

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True, slots=True)
class AlpacaResult:
    """Percentages. `standard_error` is the win rate's; the length-controlled interval comes of resampled instructions, with
    the weights fitted again each time, or kept where they were given. Where all preferences are equal, resampling would show
    no spread: the interval is then Wilson's of the win rate."""

    win_rate: float
    standard_error: float
    length_controlled_win_rate: float
    length_controlled_low: float
    length_controlled_high: float
    n: int
    draws: int
    mean_length: float
    baseline_mean_length: float
    weights: Weights
    fitted: bool


def evaluate_alpaca(
    annotations: Sequence[Annotation], difficulty: Mapping[str, float] | None = None, weights: Weights | None = None
) -> AlpacaResult:
    """Both rates. `difficulty`: instruction -> d_x; `weights`: use these instead of fitting.

    Raises DataError for fewer than two annotations, when an instruction has no difficulty, and when the given weights
    need difficulties that are not given.
    """
    if len(annotations) < 2:
        raise DataError(f"{counted(len(annotations), 'annotation')} cannot give a rate with an error; give 2 or more")
    if weights and weights.difficulty and difficulty is None:
        raise DataError("the given weights have an instruction_difficulty; give the difficulties too (--difficulty FILE)")
    wins_N = np.array([row.win for row in annotations])
    lengths_N2 = np.array([[len(row.output_1), len(row.output_2)] for row in annotations], dtype=np.float64)
    hard_N = np.array([_difficulty_of(row, difficulty) for row in annotations])
    fitted = weights or fit_weights(wins_N, length_terms(lengths_N2), hard_N if difficulty else None)
    if weights is None and np.ptp(wins_N) == 0:
        low, high = _ends_without_spread(float(wins_N[0]), len(wins_N))
    else:
        low, high = np.percentile(_resampled_rates(wins_N, lengths_N2, hard_N, weights, difficulty is not None), [2.5, 97.5])
    return AlpacaResult(
        win_rate=100 * float(wins_N.mean()),
        standard_error=100 * float(wins_N.std(ddof=1)) / math.sqrt(len(wins_N)),
        length_controlled_win_rate=_rate_at_equal_length(fitted, hard_N),
        length_controlled_low=float(low),
        length_controlled_high=float(high),
        n=len(wins_N),
        draws=int(np.sum(wins_N == 0.5)),
        mean_length=float(lengths_N2[:, 1].mean()),
        baseline_mean_length=float(lengths_N2[:, 0].mean()),
        weights=fitted,
        fitted=weights is None,
    )


def length_terms(lengths_N2: _Floats) -> _Floats:
    """tanh of the standardised length difference, baseline minus model, shape N; all 0 when the differences are equal."""
    delta_N = lengths_N2[:, 0] - lengths_N2[:, 1]
    spread = float(delta_N.std(ddof=1))
    return np.tanh(delta_N / spread) if spread > 0 else np.zeros_like(delta_N)


def fit_weights(wins_N: _Floats, terms_N: _Floats, hard_N: _Floats | None) -> Weights:
    """Maximum likelihood of the soft wins. With difficulties the fit is plain; without, the length weight is shrunk.

    A ridge of 1e-4 a row on all weights but the model's keeps them finite where wins are perfectly separated.
    """
    from scipy import optimize  # takes a second to import

    columns = [terms_N, *([] if hard_N is None else [hard_N]), np.ones_like(terms_N)]
    features_NF = np.stack(columns, axis=1)
    ridge_F = np.full(features_NF.shape[1], 1e-4)
    ridge_F[0] = SHRINK_LENGTH if hard_N is None else 1e-4
    ridge_F[-1] = 1e-6  # a model that always wins has no finite weight

    def loss(weights_F: _Floats) -> tuple[float, _Floats]:
        logits_N = features_NF @ weights_F
        value = float(np.mean(np.logaddexp(0, logits_N) - wins_N * logits_N) + np.sum(ridge_F * weights_F**2))
        slope_F = features_NF.T @ (_sigmoid(logits_N) - wins_N) / len(wins_N) + 2 * ridge_F * weights_F
        return value, slope_F

    found = optimize.minimize(loss, np.zeros(features_NF.shape[1]), jac=True, method="BFGS").x
    return Weights(float(found[0]), float(found[1]) if hard_N is not None else 0.0, float(found[-1]))


def read_annotations(path: Path) -> list[Annotation]:
    """AlpacaEval's annotation file of one model: a JSON list. Raises DataError naming file, row and field, and for fewer than
    two annotations or several models."""
    rows = _read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a JSON list of annotations, got {_KINDS.get(type(rows), 'a single value')}")
    found = [_annotation(path, number, row) for number, row in enumerate(rows, 1)]
    if len(found) < 2:
        raise DataError(f"{path} holds {counted(len(found), 'annotation')}; a rate with an error needs 2 or more")
    models = sorted({row.model for row in found})
    if len(models) > 1:
        raise DataError(f"{path} holds annotations of several models ({', '.join(map(repr, models))}); give one file a model")
    return found


def read_difficulty(path: Path) -> dict[str, float]:
    """{instruction: difficulty}. Raises DataError for anything else."""
    table = _read_json(path)
    if not isinstance(table, dict) or not all(_is_number(value) for value in table.values()):
        raise DataError(f"{path} must hold a JSON object of instruction -> difficulty (a number)")
    return {text: float(value) for text, value in table.items()}


def read_weights(path: Path, model: str) -> Weights:
    """Weights by their published names (`tanh_std_delta_len`, `instruction_difficulty`, `model`), alone, under `glm`, or in a
    table of models, where `model` says which. Raises DataError naming what is missing."""
    found = table = _read_json(path)
    if isinstance(table, dict) and not _WEIGHTS.keys() & table.keys() and "glm" not in table:
        known = ", ".join(map(repr, table)) or "nobody"
        if not model:
            raise DataError(f"{path} has weights of {known}, and the annotations name no model (generator_2) to choose by")
        if model not in table:
            raise DataError(f"{path} has no weights of {model!r}; it has those of {known}")
        found = table[model]
    if isinstance(found, dict) and "glm" in found:
        found = found["glm"]
    missing = [name for name in _WEIGHTS if not isinstance(found, dict) or not _is_number(found.get(name))]
    if missing:
        raise DataError(f"{path} lacks the weights {', '.join(missing)}, each a number")
    return Weights(**{field: float(found[name]) for name, field in _WEIGHTS.items()})


def _resampled_rates(
    wins_N: _Floats, lengths_N2: _Floats, hard_N: _Floats, weights: Weights | None, has_difficulty: bool
) -> list[float]:
    rng = np.random.default_rng(_SEED)
    rates = []
    for _ in range(_RESAMPLES):
        index_N = rng.integers(0, len(wins_N), len(wins_N))
        hard = hard_N[index_N]
        fitted = weights or fit_weights(wins_N[index_N], length_terms(lengths_N2[index_N]), hard if has_difficulty else None)
        rates.append(_rate_at_equal_length(fitted, hard))
    return rates


def _ends_without_spread(win: float, n: int) -> tuple[float, float]:
    interval = score_interval(win, n)
    assert interval.low is not None, "a score interval has both ends"
    assert interval.high is not None, "a score interval has both ends"
    return 100 * interval.low, 100 * interval.high


def _rate_at_equal_length(weights: Weights, hard_N: _Floats) -> float:
    return 100 * float(_sigmoid(weights.difficulty * hard_N + weights.model).mean())


def _sigmoid(logits_N: _Floats) -> _Floats:
    from scipy import special

    return np.asarray(special.expit(logits_N), dtype=np.float64)


def _difficulty_of(row: Annotation, difficulty: Mapping[str, float] | None) -> float:
    if difficulty is None:
        return 0.0
    if row.instruction not in difficulty:
        raise DataError(f"no difficulty is given for the instruction {shown(row.instruction)}; the file must have all of them")
    return difficulty[row.instruction]


def _annotation(path: Path, number: int, row: Any) -> Annotation:
    where = f"{path}, annotation {number}"
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object, got {shown(row)}")
    for name in ("instruction", "output_1", "output_2"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{where}: {name} must be a text, got {shown(row.get(name))}")
    if "preference" not in row:
        raise DataError(f"{where}: preference is missing; give a number from 1 (output_1) to 2 (output_2), or null for a draw")
    preference = row["preference"]
    if preference is not None and not (_is_number(preference) and BASELINE_WINS <= preference <= MODEL_WINS):
        raise DataError(
            f"{where}: preference must be a number from 1 (output_1) to 2 (output_2) or null, got {shown(preference)}"
        )
    return Annotation(row["instruction"], row["output_1"], row["output_2"], preference, str(row.get("generator_2") or ""))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path} is {'a folder, not a file' if path.is_dir() else 'no file here'}; give a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
