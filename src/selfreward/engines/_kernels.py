"""Compiled loops for a CPU: what one new token of each row sees in its own keys, and the choice of next tokens.

PyTorch has no operation for many short sequences of different lengths; put together from its products they read the same memory
several times and pay for dozens of calls a layer. These loops read it once, on all threads. They know float32 alone; other
numbers, a GPU, capped products and sliding windows take PyTorch's way (`_cascade`, `_sampling`), which gives the same but for
rounding. A row's result does not depend on its neighbours or on the number of threads.

Numba compiles them once on a machine (`prepare`), which takes seconds. Nothing in a loop over rows may allocate: an error on
another thread than the first is lost. A process that was forked from one that ran them cannot (OpenMP does not allow it).
Tensor names end in their shape: R rows, P prompts, H heads, K key-value heads, L keys, D head size, V vocabulary, T threads.
"""

import logging
import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch  # before Numba's threads start: both then use the OpenMP that PyTorch brings, and one set of threads

from selfreward.errors import EngineError

numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

Array = np.ndarray[Any, Any]

_logger = logging.getLogger("selfreward.engines")
_running = threading.Lock()
"""Numba's own threads, which serve where there is no OpenMP, end the program when two callers come at once."""
_loops: list[str] = []
_not_kept: list[str] = []
"""Names of all loops, and of those whose compiled code has no folder to be kept in."""
_LN_2 = math.log(2)
_FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Sums in any order, as every vector unit takes them; infinities and NaN keep their meaning."""
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)
_LEAST_POWER = np.float32(-126)
"""Powers of 2 below are not normal numbers; they count as 0."""
_LOWEST = np.float32(-1e30)
_MOST = np.finfo(np.float32).max
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(_LN_2**n / math.factorial(n)) for n in range(1, 8))
"""Of the series of 2**x at 0; up to 1/2 on both sides it errs by less than float32 can tell."""
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127
_ONE_BITS = np.int32(_EXPONENT_BIAS << _MANTISSA_BITS)
_TRIES = 4
"""A loop has so many versions at most, each of which may fail to be kept."""
_BLOCK = 64
"""Tokens whose weights are added up at once on the way to the one that is drawn."""


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Numba's compiler with the settings of this file."""

    def compile_later(function: Callable[..., Any]) -> Callable[..., Any]:
        settings = {"error_model": "numpy", "fastmath": _FAST, "nogil": True, **options}
        _loops.append(function.__name__)
        try:
            return numba.njit(cache=True, **settings)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no folder beside this file or in the user's cache can be written
            _not_kept.append(function.__name__)
            return numba.njit(**settings)(function)  # type: ignore[no-any-return]

    return compile_later


def can_attend(*states: torch.Tensor) -> bool:
    """Whether `attend` serves these queries, keys and values."""
    first = states[0]
    return first.device.type == "cpu" and all(x.dtype is torch.float32 and x.shape[-1] == first.shape[-1] for x in states)


def attend(
    q_RHD: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    prompts: tuple[torch.Tensor, torch.Tensor, Array],
    own: tuple[torch.Tensor, torch.Tensor, Array],
    rows: tuple[Array, Array],
    scale: float,
) -> torch.Tensor:
    """What one query a row sees in its prompt's keys, its own, and what was looked at before; shape R, H, D.

    `seen`: result so far (R, H, D) and natural logarithm of its sum of exponentials (R, H); see `nothing`. `prompts` and `own`:
    keys and values of whole stores, (items, K, L, D), and how many of each item count. `rows`: the rows in the order to take
    them, and each row's prompt. RuntimeError where memory is short.
    """
    # The loops work in powers of 2 and write their results over the queries.
    states_RHD = torch.mul(q_RHD, scale / _LN_2, out=torch.empty(q_RHD.shape, dtype=torch.float32))
    before = [states.contiguous().numpy() for states in seen]
    stores = [(keys.numpy(), values.numpy(), counts) for keys, values, counts in (prompts, own)]
    with _running:
        num_threads = _share_threads()
        most_keys = prompts[0].shape[2] + own[0].shape[2]
        products_TL, totals_TD = torch.empty(num_threads, most_keys), torch.empty(num_threads, q_RHD.shape[-1])
        _attend(states_RHD.numpy(), tuple(before), *stores, rows, (products_TL.numpy(), totals_TD.numpy()))
    return states_RHD


def nothing(q_RHD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows have seen that saw nothing yet."""
    return torch.zeros(q_RHD.shape), torch.full(q_RHD.shape[:2], -torch.inf)


def draw(
    logits_RV: torch.Tensor, settings: tuple[torch.Tensor, torch.Tensor, torch.Tensor], uniform_R1: torch.Tensor
) -> torch.Tensor:
    """The next token of each row, shape R, 1: top-k, then top-p, then the place that `uniform_R1` points to.

    `settings`: temperatures (0: the likeliest token), top-p, top-k (whole numbers, at least 1), all of shape R, 1. Logits have
    a finite maximum. What ties with the least token that is kept is kept too. RuntimeError where memory is short.
    """
    ids_R = torch.empty(len(logits_RV), dtype=torch.long)
    flat = [setting.reshape(-1).contiguous().numpy() for setting in (*settings, uniform_R1)]
    logits = logits_RV.contiguous().numpy()
    with _running:
        weights_TV = torch.empty(_share_threads(), logits_RV.shape[1])
        _draw(logits, (flat[0], flat[1], flat[2]), flat[3], weights_TV.numpy(), ids_R.numpy())
    return ids_R[:, None]


def _share_threads() -> int:
    """Take as many threads as PyTorch has, as far as Numba has them; their number."""
    wanted = torch.get_num_threads()
    num_threads: int = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(num_threads)
    # With one OpenMP for both, Numba's start gives PyTorch as many threads as there are processors.
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    return num_threads


@cache
def prepare() -> None:
    """Compile everything, or find it compiled, so that no measured time and no other error handling holds it.

    Raises EngineError where that fails.
    """
    problem: OSError | None = None
    for _ in range(_TRIES * len(_loops)):
        try:
            _try_all()
            break
        except OSError as error:  # a full disk, for example: one loop more is compiled, though not kept
            problem = error
    else:
        raise EngineError(f"the loops for this processor cannot be compiled: {problem}; set NUMBA_CACHE_DIR to another folder")
    if problem:
        _logger.warning("compiled loops could not be kept for the next process (set NUMBA_CACHE_DIR): %s", problem)
    if _not_kept:
        _logger.warning("no folder keeps compiled loops, each process compiles them for some seconds; set NUMBA_CACHE_DIR")
    if numba.threading_layer() == "workqueue":
        _logger.warning("Numba finds no OpenMP (libgomp): its threads compete with PyTorch's, which is slow")


def _try_all() -> None:
    one, store, count = torch.ones(1, 1), torch.zeros(1, 1, 1, 1), np.ones(1, np.int64)
    draw(torch.zeros(1, 2), (one, one / 2, one.long()), one / 2)
    query = torch.zeros(1, 1, 1)
    attend(query, nothing(query), (store, store, count), (store, store, count), (count - 1, count - 1), 1.0)


@_compiled()
def _number_of(bits: Any) -> Any:
    """The float32 that these 32 bits are."""
    return np.int32(bits).view(np.float32)


@_compiled()
def _power_of_2(x: Any) -> Any:
    """2**x for float32 x up to 0."""
    bounded = max(x, _LEAST_POWER)
    whole = math.floor(bounded + _HALF)
    rest = np.float32(bounded - whole)
    series = _C4 + rest * (_C5 + rest * (_C6 + rest * _C7))
    series = _ONE + rest * (_C1 + rest * (_C2 + rest * (_C3 + rest * series)))
    power = _number_of(np.int32((np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS))
    return series * power if x >= _LEAST_POWER else _ZERO


@_compiled()
def _dot_each(query_D: Array, keys_LD: Array, count: int, products_L: Array) -> None:
    """Products of a query with the first keys. Four keys at a time: one at a time waits for each sum."""
    size = query_D.shape[0]
    for place in range(0, count - 3, 4):
        first, second, third, fourth = _ZERO, _ZERO, _ZERO, _ZERO
        for d in range(size):
            factor = query_D[d]
            first += factor * keys_LD[place, d]
            second += factor * keys_LD[place + 1, d]
            third += factor * keys_LD[place + 2, d]
            fourth += factor * keys_LD[place + 3, d]
        products_L[place], products_L[place + 1], products_L[place + 2], products_L[place + 3] = first, second, third, fourth
    for place in range(count - count % 4, count):
        total = _ZERO
        for d in range(size):
            total += query_D[d] * keys_LD[place, d]
        products_L[place] = total


@_compiled()
def _add_each(weights_L: Array, values_LD: Array, count: int, total_D: Array) -> None:
    """Add the first values, weighed, to `total_D`."""
    size = total_D.shape[0]
    for place in range(0, count - 3, 4):
        first, second, third, fourth = weights_L[place], weights_L[place + 1], weights_L[place + 2], weights_L[place + 3]
        for d in range(size):
            total_D[d] += (
                first * values_LD[place, d]
                + second * values_LD[place + 1, d]
                + third * values_LD[place + 2, d]
                + fourth * values_LD[place + 3, d]
            )
    for place in range(count - count % 4, count):
        for d in range(size):
            total_D[d] += weights_L[place] * values_LD[place, d]


@_compiled()
def _weigh(products_L: Array, lowest: float) -> Any:
    """Products become powers of 2 of what they lie below the highest of them (or `lowest`); that and the sum of the powers."""
    highest = lowest
    for place in range(products_L.shape[0]):
        highest = max(highest, products_L[place])
    total, num_broken = _ZERO, 0
    for place in range(products_L.shape[0]):
        product = products_L[place]
        weight = _power_of_2(product - highest)
        num_broken += 0 if abs(product) <= _MOST else 1
        products_L[place] = weight
        total += weight
    # A power would hide what is not a number; a broken model must not look sound.
    return highest, np.float32(np.nan) if num_broken else total


@_compiled()
def _attend_row(states_HD: Array, seen: Any, prompt: Any, own: Any, scratch: Any) -> None:
    """One row: `states_HD` are its scaled queries, then its results."""
    seen_HD, logs_H = seen
    prompt_keys_KLD, prompt_values_KLD, num_prompt = prompt
    own_keys_KLD, own_values_KLD, num_own = own
    products_L, total_D = scratch
    num_heads, size = states_HD.shape
    shared = num_heads // prompt_keys_KLD.shape[0]
    for head in range(num_heads):
        k = head // shared
        _dot_each(states_HD[head], prompt_keys_KLD[k], num_prompt, products_L)
        _dot_each(states_HD[head], own_keys_KLD[k], num_own, products_L[num_prompt:])
        log = np.float32(logs_H[head] / np.float32(_LN_2))
        highest, total = _weigh(products_L[: num_prompt + num_own], max(log, _LOWEST))
        weight = _power_of_2(log - highest)
        for d in range(size):
            total_D[d] = weight * seen_HD[head, d]
        _add_each(products_L, prompt_values_KLD[k], num_prompt, total_D)
        _add_each(products_L[num_prompt:], own_values_KLD[k], num_own, total_D)
        share = _ONE / (total + weight)
        for d in range(size):
            states_HD[head, d] = total_D[d] * share


@_compiled(parallel=True)
def _attend(states_RHD: Array, seen: Any, prompts: Any, own: Any, rows: Any, scratch: Any) -> None:
    """See `attend`. `scratch`: a place for products and one for a result, for each thread."""
    seen_RHD, logs_RH = seen
    prompt_keys_PKLD, prompt_values_PKLD, num_prompt_P = prompts
    own_keys_RKLD, own_values_RKLD, num_own_R = own
    order_R, prompt_of_R = rows
    products_TL, totals_TD = scratch
    for turn in numba.prange(order_R.shape[0]):
        row, thread = order_R[turn], numba.get_thread_id()
        prompt = prompt_of_R[row]
        _attend_row(
            states_RHD[row],
            (seen_RHD[row], logs_RH[row]),
            (prompt_keys_PKLD[prompt], prompt_values_PKLD[prompt], num_prompt_P[prompt]),
            (own_keys_RKLD[row], own_values_RKLD[row], num_own_R[row]),
            (products_TL[thread], totals_TD[thread]),
        )


@_compiled()
def _mass(weights_V: Array, least: float) -> float:
    """Sum of the weights that are not below `least`."""
    total = 0.0
    for token in range(weights_V.shape[0]):
        total += weights_V[token] if weights_V[token] >= least else 0.0
    return total


@_compiled()
def _count(weights_V: Array, least: float) -> int:
    """How many weights are not below `least`."""
    number = 0
    for token in range(weights_V.shape[0]):
        number += 1 if weights_V[token] >= least else 0
    return number


@_compiled()
def _least(weights_V: Array, wanted: float, is_number: bool) -> Any:
    """The highest bound that weights of the sum `wanted` (or that number of weights) reach. Bounds are tried by halves of their
    bits, whose order is that of the numbers."""
    low, high = np.int32(0), _ONE_BITS + np.int32(1)
    while high - low > 1:
        middle = np.int32((low + high) // 2)
        bound = _number_of(middle)
        reached = _count(weights_V, bound) if is_number else _mass(weights_V, bound)
        if reached >= wanted:
            low = middle
        else:
            high = middle
    return _number_of(low)


@_compiled()
def _draw_row(logits_V: Array, settings: Any, uniform: float, weights_V: Array) -> Any:
    """One row of `draw`; `weights_V` is scratch."""
    temperature, top_p, top_k = settings
    size = logits_V.shape[0]
    highest = logits_V[0]
    for token in range(1, size):
        highest = max(highest, logits_V[token])
    if temperature == 0:
        for token in range(size):
            if logits_V[token] == highest:
                return token
    factor = np.float64(1 / _LN_2) / temperature
    for token in range(size):
        weights_V[token] = _power_of_2(np.float32((logits_V[token] - highest) * factor))
    least = _ZERO
    total = _mass(weights_V, least)
    if top_k < size:
        least = _least(weights_V, top_k, True)
        ties = _count(weights_V, least) - top_k
        total = _mass(weights_V, least) - ties * np.float64(least)
    if top_p < 1:
        least = max(least, _least(weights_V, top_p * total, False))
    return _pick(weights_V, least, uniform)


@_compiled()
def _pick(weights_V: Array, least: float, uniform: float) -> Any:
    """The first token where the running sum of the weights from `least` on exceeds the share `uniform` of all of it."""
    size = weights_V.shape[0]
    target = uniform * _mass(weights_V, least)
    running, last = 0.0, 0
    for start in range(0, size, _BLOCK):
        block = weights_V[start : start + _BLOCK]
        mass = _mass(block, least)
        if running + mass > target:
            for place in range(block.shape[0]):
                if block[place] >= least and block[place] > 0:
                    running += block[place]
                    last = start + place
                    if running > target:
                        return last
        else:
            running += mass
            if mass > 0:
                for place in range(block.shape[0]):
                    if block[place] >= least and block[place] > 0:
                        last = start + place
    # Only rounding comes this far: sums in another order.
    return last


@_compiled(parallel=True)
def _draw(logits_RV: Array, settings: Any, uniform_R: Array, weights_TV: Array, ids_R: Array) -> None:
    """See `draw`. `weights_TV`: a place for weights for each thread."""
    temperature_R, top_p_R, top_k_R = settings
    for row in numba.prange(logits_RV.shape[0]):
        of_row = temperature_R[row], top_p_R[row], top_k_R[row]
        ids_R[row] = _draw_row(logits_RV[row], of_row, uniform_R[row], weights_TV[numba.get_thread_id()])
