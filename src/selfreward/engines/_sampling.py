"""Choosing next tokens for a batch of rows, each with its own settings and its own random numbers.

Tensor names end in their shape: R rows, V vocabulary, T tokens of a reply, B blocks and K tokens of one, 1 and 4 columns.
A row's numbers come from a counter-based generator keyed by its seed alone: number t decides token t, whatever the row's
neighbours are.
"""

from collections.abc import Sequence

import numpy as np
import torch

from selfreward.engines import _kernels
from selfreward.errors import EngineError
from selfreward.types import Request

_KEY_SPACE = 2**128
"""Philox takes keys of 128 bits."""
_BLOCK = 64
"""Tokens in a block, where the vocabulary is so large that one is drawn in two steps: the block, then the token."""
_HEAD = 256
"""So many of the most likely tokens are looked at first: they nearly always hold all that top-p keeps."""


class Sampler:
    """Draws one token a row at a time: the most likely one (temperature 0), or by chance after top-k, then top-p."""

    def __init__(self, device: torch.device, has_kernels: bool = True) -> None:
        """`has_kernels`: whether compiled loops draw where there are some, on a CPU; the tests ask for both ways."""
        self._device = device
        self._has_kernels = has_kernels and device.type == "cpu"
        self._settings_R4 = torch.zeros(0, 4, device=device)
        self._uniforms_RT = torch.zeros(0, 0, device=device)
        self._wants_logprobs = False
        self._set()

    def join(self, requests: Sequence[Request], limits: Sequence[int]) -> None:
        """Add rows behind those there are. `limits[r]` is the most tokens that row r will ask for."""
        settings = [request.sampling for request in requests]
        self._wants_logprobs |= any(item.logprobs for item in settings)
        rows = [(item.temperature, item.top_p, float(item.top_k), 0.0) for item in settings]
        self._settings_R4 = torch.cat([self._settings_R4, torch.tensor(rows, device=self._device)])
        # Greedy rows need no numbers.
        needs = [0 if item.temperature == 0 else limit for item, limit in zip(settings, limits, strict=True)]
        added_RT = _uniforms(requests, needs).to(self._device)
        width = max(added_RT.shape[1], self._uniforms_RT.shape[1])
        self._uniforms_RT = torch.cat([_widened(self._uniforms_RT, width), _widened(added_RT, width)])
        self._set()

    def draw(self, logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next token of every row, shape R; where any row wants them, their log-probabilities under the model alone.

        Raises EngineError when a row's logits hold no finite maximum.
        """
        logits_RV = logits_RV.float()
        best = logits_RV.max(dim=-1, keepdim=True)
        if not bool(torch.isfinite(best.values).all()):
            raise EngineError("the model gives non-finite logits; its weights are broken, or model.dtype is too narrow for it")
        ids_R1 = best.indices
        if not self._all_greedy:
            # Rows that have ended and wait to be taken out have no numbers left; whatever they draw is not looked at.
            step_R1 = self._settings_R4[:, 3:].long().clamp(max=self._uniforms_RT.shape[1] - 1)
            uniform_R1 = self._uniforms_RT.gather(1, step_R1)
            if self._has_kernels:
                ids_R1 = _kernels.draw(logits_RV, (self._temperature_R1, self._top_p_R1, self._top_k_R1), uniform_R1)
            else:
                # The maximum is taken off before dividing: a temperature near 0 then gives 0 and -inf, never inf - inf.
                temperature_R1 = torch.where(self._is_greedy_R1, 1.0, self._temperature_R1)
                drawn_R1 = _draw((logits_RV - best.values) / temperature_R1, uniform_R1, self._filters)
                ids_R1 = torch.where(self._is_greedy_R1, ids_R1, drawn_R1)
        self._settings_R4[:, 3] += 1
        logprobs_R = None
        if self._wants_logprobs:
            logprobs_R = (logits_RV.gather(1, ids_R1) - logits_RV.logsumexp(-1, keepdim=True)).squeeze(1)
        return ids_R1.squeeze(1), logprobs_R

    def take(self, index: Sequence[int]) -> None:
        """Keep `len(index)` rows: new row i is old row `index[i]`."""
        index_R = torch.tensor(index, dtype=torch.long, device=self._device)
        self._settings_R4, self._uniforms_RT = self._settings_R4[index_R], self._uniforms_RT[index_R]
        self._set()

    def _set(self) -> None:
        self._temperature_R1, self._top_p_R1, top_k_R1 = (self._settings_R4[:, i : i + 1] for i in range(3))
        # top_k 0 means no limit: more tokens than any vocabulary has.
        self._top_k_R1 = torch.where(top_k_R1 == 0, torch.inf, top_k_R1).clamp(max=2.0**31).long()
        self._is_greedy_R1 = self._temperature_R1 == 0
        self._all_greedy = bool(self._is_greedy_R1.all())
        self._no_filter = bool(((self._top_p_R1 >= 1) & (top_k_R1 == 0)).all())

    @property
    def _filters(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self._no_filter else (self._top_k_R1, self._top_p_R1)


def _draw(logits_RV: torch.Tensor, uniform_R1: torch.Tensor, filters: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Tokens by inverting the cumulative distribution, shape R, 1. `filters` are (top_k_R1, top_p_R1)."""
    probability_RV = logits_RV.softmax(dim=-1)
    if filters is not None:
        probability_RV = probability_RV.where(probability_RV >= _threshold(probability_RV, *filters), 0.0)
    size = probability_RV.shape[-1]
    if size <= _BLOCK**2 // 2:
        return _invert(probability_RV, uniform_R1)[0]
    # A running sum over a large vocabulary is slow; sums of blocks are not. First the block, then the token in it.
    probability_RBK = torch.nn.functional.pad(probability_RV, (0, -size % _BLOCK)).view(len(probability_RV), -1, _BLOCK)
    block_R1, share_R1 = _invert(probability_RBK.sum(dim=-1), uniform_R1)
    inside_RK = probability_RBK.gather(1, block_R1[..., None].expand(-1, -1, _BLOCK)).squeeze(1)
    return block_R1 * _BLOCK + _invert(inside_RK, share_R1)[0]


def _invert(mass_RV: torch.Tensor, uniform_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the running sum of each row first exceeds that share of its total, and how far inside that place, in [0, 1);
    both of shape R, 1. The place always has a mass of its own."""
    if mass_RV.device.type != "cpu":
        # A GPU adds a running sum up in blocks, which may round upwards where there is no mass; double sums hide it.
        mass_RV, uniform_R1 = mass_RV.double(), uniform_R1.double()
    running_RV = mass_RV.cumsum(dim=-1)
    total_R1 = running_RV[:, -1:].contiguous()
    # uniform * total can round up to the total itself, which no place exceeds. Any other target is first exceeded at a
    # place with a mass of its own.
    target_R1 = torch.minimum(uniform_R1 * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    place_R1 = torch.searchsorted(running_RV, target_R1, right=True).clamp(max=mass_RV.shape[-1] - 1)
    own_R1 = mass_RV.gather(-1, place_R1)
    inside_R1 = (target_R1 - (running_RV.gather(-1, place_R1) - own_R1)) / own_R1
    return place_R1, inside_R1.clamp(0.0, 1.0)


def _threshold(probability_RV: torch.Tensor, top_k_R1: torch.Tensor, top_p_R1: torch.Tensor) -> torch.Tensor:
    """The smallest probability that is kept, shape R, 1; tokens that tie with it are kept too, so that no order decides.

    top-k keeps the k most likely tokens; of these top-p keeps the fewest most likely ones whose share reaches p.
    """
    size = probability_RV.shape[-1]
    if size <= 4 * _HEAD:
        return _cut(_sorted(probability_RV), top_k_R1, top_p_R1, None)
    head_RK = _sorted(_largest(probability_RV, _HEAD))
    is_limited_R1 = top_k_R1 <= _HEAD
    # The head decides where it holds all that top-k leaves, or the share that top-p wants.
    total_R1 = probability_RV.sum(dim=-1, keepdim=True)
    decides_R = (is_limited_R1 | (head_RK.sum(dim=-1, keepdim=True) > top_p_R1 * total_R1) & (top_k_R1 >= size)).squeeze(1)
    limit_R1 = torch.where(is_limited_R1, torch.nan, total_R1)
    lowest_R1 = _cut(head_RK, top_k_R1, top_p_R1, limit_R1)
    rest = (~decides_R).nonzero().squeeze(1)
    if len(rest):
        lowest_R1[rest] = _cut(_sorted(probability_RV[rest]), top_k_R1[rest], top_p_R1[rest], None)
    return lowest_R1


def _cut(
    sorted_RV: torch.Tensor, top_k_R1: torch.Tensor, top_p_R1: torch.Tensor, total_R1: torch.Tensor | None
) -> torch.Tensor:
    """The last probability, of those sorted downwards, that top-k and then top-p keep. `total_R1`: what top-p takes its share
    of; NaN or None: the sum of what top-k keeps."""
    mass_RV = sorted_RV.cumsum(dim=-1)
    size = sorted_RV.shape[-1]
    last_R1 = top_k_R1.clamp(max=size) - 1
    of_k_R1 = mass_RV.gather(-1, last_R1)
    whole_R1 = of_k_R1 if total_R1 is None else torch.where(total_R1.isnan(), of_k_R1, total_R1)
    rank_V = torch.arange(size, device=sorted_RV.device)
    is_kept_RV = (mass_RV - sorted_RV < top_p_R1 * whole_R1) & (rank_V <= last_R1)
    return sorted_RV.gather(-1, is_kept_RV.sum(dim=-1, keepdim=True).clamp(min=1) - 1)


def _largest(values_RV: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest of each row, in any order. On CPU by NumPy, whose partition is several times faster."""
    if values_RV.device.type != "cpu":
        return values_RV.topk(count, dim=-1, sorted=False).values
    return torch.from_numpy(np.partition(values_RV.numpy(), -count, axis=-1)[:, -count:])


def _sorted(values_RV: torch.Tensor) -> torch.Tensor:
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


def _widened(numbers_RT: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(numbers_RT, (0, width - numbers_RT.shape[1]))
