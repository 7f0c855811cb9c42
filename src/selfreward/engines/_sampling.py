"""Choosing next tokens for a batch of rows, each with its own settings and its own random numbers.

Tensor names end in their shape: R rows, V vocabulary. A row's numbers come from a counter-based generator keyed by its seed
alone: number t decides token t, whatever the row's neighbours are.
"""

from collections.abc import Sequence

import numpy as np
import torch

from selfreward.errors import EngineError
from selfreward.types import Request

_KEY_SPACE = 2**128
"""Philox takes keys of 128 bits."""


class Sampler:
    """Draws one token a row at a time: the most likely one (temperature 0), or by chance after top-k, then top-p."""

    def __init__(self, requests: Sequence[Request], limits: Sequence[int], device: torch.device) -> None:
        """`limits[r]` is the most tokens that row r will ask for."""
        settings = [request.sampling for request in requests]
        self._temperature_R1 = _column([item.temperature for item in settings], torch.float32, device)
        self._top_p_R1 = _column([item.top_p for item in settings], torch.float32, device)
        # top_k 0 means no limit: more tokens than any vocabulary has.
        self._top_k_R1 = _column([item.top_k or torch.iinfo(torch.int64).max for item in settings], torch.int64, device)
        self._is_greedy_R1 = self._temperature_R1 == 0
        self._all_greedy = all(item.temperature == 0 for item in settings)
        self._no_filter = all(item.top_p >= 1 and item.top_k == 0 for item in settings)
        # Greedy rows need no numbers.
        self._uniforms_RT = torch.zeros(len(requests), 0) if self._all_greedy else _uniforms(requests, limits)
        self._uniforms_RT = self._uniforms_RT.to(device)

    def draw(self, logits_RV: torch.Tensor, step: int) -> torch.Tensor:
        """Token `step` of every row, shape R. Raises EngineError when a row's logits hold no finite maximum."""
        logits_RV = logits_RV.float()
        best = logits_RV.max(dim=-1, keepdim=True)
        if not bool(torch.isfinite(best.values).all()):
            raise EngineError("the model gives non-finite logits; its weights are broken, or model.dtype is too narrow for it")
        if self._all_greedy:
            return best.indices.squeeze(1)
        # The maximum is taken off before dividing: a temperature near 0 then gives 0 and -inf, never inf - inf.
        temperature_R1 = torch.where(self._is_greedy_R1, 1.0, self._temperature_R1)
        scaled_RV = (logits_RV - best.values) / temperature_R1
        drawn_R1 = _draw(scaled_RV, self._uniforms_RT[:, step : step + 1], self._filters)
        return torch.where(self._is_greedy_R1, best.indices, drawn_R1).squeeze(1)

    def take(self, index: Sequence[int]) -> None:
        """Keep `len(index)` rows: new row i is old row `index[i]`."""
        index_R = torch.tensor(index, device=self._temperature_R1.device)
        self._temperature_R1 = self._temperature_R1[index_R]
        self._top_p_R1 = self._top_p_R1[index_R]
        self._top_k_R1 = self._top_k_R1[index_R]
        self._is_greedy_R1 = self._is_greedy_R1[index_R]
        self._uniforms_RT = self._uniforms_RT[index_R]

    @property
    def _filters(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self._no_filter else (self._top_k_R1, self._top_p_R1)


def _draw(logits_RV: torch.Tensor, uniform_R1: torch.Tensor, filters: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Tokens by inverting the cumulative distribution, shape R, 1. `filters` are (top_k_R1, top_p_R1)."""
    probability_RV = logits_RV.softmax(dim=-1)
    if filters is not None:
        probability_RV = probability_RV.where(probability_RV >= _threshold(probability_RV, *filters), 0.0)
    mass_RV = probability_RV.cumsum(dim=-1)
    total_R1 = mass_RV[:, -1:].contiguous()
    # uniform * total can round up to the total itself, which no position exceeds. Any other target is first exceeded at a
    # token with a probability of its own.
    target_R1 = torch.minimum(uniform_R1 * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    return torch.searchsorted(mass_RV, target_R1, right=True)


def _threshold(probability_RV: torch.Tensor, top_k_R1: torch.Tensor, top_p_R1: torch.Tensor) -> torch.Tensor:
    """The smallest probability that is kept, shape R, 1; tokens that tie with it are kept too, so that no order decides.

    top-k keeps the k most likely tokens; of these top-p keeps the fewest most likely ones whose share reaches p.
    """
    sorted_RV = _sort(probability_RV)
    mass_RV = sorted_RV.cumsum(dim=-1)
    size = sorted_RV.shape[-1]
    last_R1 = top_k_R1.clamp(max=size) - 1
    rank_V = torch.arange(size, device=sorted_RV.device)
    is_kept_RV = (mass_RV - sorted_RV < top_p_R1 * mass_RV.gather(-1, last_R1)) & (rank_V <= last_R1)
    return sorted_RV.gather(-1, is_kept_RV.sum(dim=-1, keepdim=True) - 1)


def _sort(values_RV: torch.Tensor) -> torch.Tensor:
    """Rows sorted downwards. On CPU by NumPy, which sorts values alone several times faster than values with indices."""
    if values_RV.device.type != "cpu":
        return values_RV.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values_RV.numpy(), axis=-1)).flip(-1)


def _uniforms(requests: Sequence[Request], limits: Sequence[int]) -> torch.Tensor:
    """Random numbers in [0, 1), shape R, longest limit."""
    numbers = np.zeros((len(requests), max(limits)), dtype=np.float32)
    for row, (request, limit) in enumerate(zip(requests, limits, strict=True)):
        generator = np.random.Generator(np.random.Philox(key=request.seed % _KEY_SPACE))
        numbers[row, :limit] = generator.random(limit, dtype=np.float32)
    return torch.from_numpy(numbers)


def _column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)
