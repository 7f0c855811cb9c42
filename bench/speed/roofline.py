"""How fast a workload could be at best on this machine: the work that nobody can leave out, over what the machine can do.

The least work of a workload: every distinct prefix of its prompts is read once, every new token but a reply's last is fed back
once, each token attends to all before it, and only a token that is drawn (or scored) needs the output matrix. A matrix
product of n x m weights with one token costs 2nm operations. The least traffic: the weights once for each pass over the
prompts (one at the least) and once for each step of the longest reply, and at each step the keys and values of all running
replies, those that replies share once. Choosing tokens, norms and everything that Python does count nothing.

The machine's rates are measured: matrix products of the model's own shapes, by PyTorch or packed for oneDNN, whichever is
faster, at many tokens for prompts and at a batch of
replies for new tokens, and copies of as many bytes as the workload keeps. A limit is the larger of computing time and
traffic time: both go on side by side at best.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from selfreward.engines._matrices import PackedLinear, is_possible
from speed.models import Shape
from speed.workloads import Workload

BYTES = 4
"""Of a number in fp32."""
PROMPT_TOKENS = 2048
"""Tokens of one matrix product over prompts."""
LEAST_SECONDS = 0.2
"""A rate is the best of several tries over this time."""


@dataclass(frozen=True, slots=True)
class Work:
    """Operations and bytes at the least, for reading prompts and for making new tokens; `kept` bytes lie in memory at once."""

    prompt_flops: int
    new_flops: int
    moved: int
    kept: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured: operations a second over prompts and over a batch of replies, copied bytes (read and written) a second."""

    prompt_rate: float
    new_rate: float
    copy_rate: float


@dataclass(frozen=True, slots=True)
class Limit:
    """Seconds that a workload needs at the least, and what bounds it."""

    compute: float
    traffic: float

    @property
    def seconds(self) -> float:
        """The larger one."""
        return max(self.compute, self.traffic)

    @property
    def bound(self) -> str:
        """Its name."""
        return "compute" if self.compute >= self.traffic else "traffic"


def least_work(shape: Shape, workload: Workload) -> Work:
    """See the module."""
    depths = prefix_tree(workload.prompt_ids)
    layer_flops = 2 * shape.num_layers * shape.layer_weights
    prompt_flops = sum(layer_flops * count + attention_flops(shape, depth) * count for depth, count in depths.items())
    heads = len(set(workload.prompt_ids))  # each distinct prompt's last token
    prompt_flops += heads * _output_flops(shape)
    new_flops = sum(_reply_flops(shape, len(ids), num) for ids, num in zip(workload.prompt_ids, workload.asked, strict=True))
    num_prompt_tokens, num_new = sum(depths.values()), sum(max(0, num - 1) for num in workload.asked)
    steps = max(0, max(workload.asked) - 1)
    weights = BYTES * shape.num_weights
    token = kept_bytes(shape)
    moved = weights * (1 + steps) + token * (num_prompt_tokens + num_new)  # weights read, keys and values written
    moved += token * sum(_attended(workload, steps))
    return Work(prompt_flops, new_flops, moved, weights + token * (num_prompt_tokens + num_new))


def prefix_tree(prompts: Iterable[Sequence[int]]) -> dict[int, int]:
    """How many distinct prefixes of each length the prompts have: the tokens that must be read at each depth."""
    ordered = sorted({tuple(ids) for ids in prompts})
    depths: dict[int, int] = {}
    before: Sequence[int] = ()
    for ids in ordered:
        shared = 0
        while shared < min(len(before), len(ids)) and before[shared] == ids[shared]:
            shared += 1
        for depth in range(shared + 1, len(ids) + 1):
            depths[depth] = depths.get(depth, 0) + 1
        before = ids
    return depths


def attention_flops(shape: Shape, num_attended: int) -> int:
    """One token's attention in all layers: a product with each key, and the weighted sum of the values."""
    return 4 * shape.num_layers * shape.hidden_size * num_attended


def kept_bytes(shape: Shape) -> int:
    """Keys and values of one token."""
    return 2 * BYTES * shape.num_layers * shape.hidden_size


def _reply_flops(shape: Shape, num_prompt: int, num_new: int) -> int:
    """Of one reply: its first token is drawn from what the prompt's pass gave, its last one is not fed back."""
    fed = max(0, num_new - 1)
    matrices = fed * (2 * shape.num_layers * shape.layer_weights + _output_flops(shape))
    return matrices + sum(attention_flops(shape, num_prompt + step) for step in range(1, fed + 1))


def _output_flops(shape: Shape) -> int:
    return 2 * shape.hidden_size * shape.vocabulary


def _attended(workload: Workload, num_steps: int) -> Iterator[int]:
    """Tokens whose keys and values each step reads, each once: prompts whose replies still run, and the replies themselves."""
    in_prompts: dict[int, int] = {}
    for step in range(1, num_steps + 1):
        running = [ids for ids, num in zip(workload.prompt_ids, workload.asked, strict=True) if num > step]
        if len(running) not in in_prompts:  # replies only end: as many are the same ones
            in_prompts[len(running)] = sum(prefix_tree(running).values())
        yield in_prompts[len(running)] + step * len(running)


def limit(work: Work, machine: Machine) -> Limit:
    """The least time on this machine."""
    compute = work.prompt_flops / machine.prompt_rate + work.new_flops / machine.new_rate
    # A copy reads and writes; traffic here is mostly reading, so bytes are compared with bytes either way.
    return Limit(compute, work.moved / machine.copy_rate)


def measure_machine(shape: Shape, num_rows: int, work: Work) -> Machine:
    """The rates for a model and a workload whose batches hold `num_rows` replies. Each is measured once a process."""
    return Machine(matmul_rate(shape, PROMPT_TOKENS, False), matmul_rate(shape, num_rows, True), copy_rate(work.kept))


def describe(name: str, work: Work, machine: Machine, num_rows: int) -> str:
    """One line: the least work, and the rates that it is divided by."""
    return (
        f"{name}: {(work.prompt_flops + work.new_flops) / 1e9:,.1f} GFLOP ({work.prompt_flops / 1e9:,.1f} for prompts), "
        f"{work.moved / 1e9:,.2f} GB; matmul {machine.prompt_rate / 1e9:,.0f} GFLOP/s at {PROMPT_TOKENS:,} tokens, "
        f"{machine.new_rate / 1e9:,.0f} at {num_rows} rows; copy {machine.copy_rate / 1e9:,.1f} GB/s "
        f"at {work.kept / 1e6:,.0f} MB"
    )


@cache
def matmul_rate(shape: Shape, num_tokens: int, with_output: bool) -> float:
    """Operations a second over the products that one pass of `num_tokens` tokens makes, output matrix included or not."""
    wide, narrow = shape.hidden_size, shape.intermediate_size
    products = [(wide, wide)] * 4 + [(wide, narrow)] * 2 + [(narrow, wide)]
    total, seconds = 0, 0.0
    for inner, outer in set(products):
        number = shape.num_layers * products.count((inner, outer))
        total += number * 2 * num_tokens * inner * outer
        seconds += number * _matmul_seconds(num_tokens, inner, outer)
    if with_output:
        total += 2 * num_tokens * wide * shape.vocabulary
        seconds += _matmul_seconds(num_tokens, wide, shape.vocabulary)
    return total / seconds


@cache
def copy_rate(num_bytes: int) -> float:
    """Bytes read and written a second while a block of `num_bytes` is copied (128 MB at most, which no cache holds)."""
    source = torch.ones(max(1, min(num_bytes, 2**27) // 2 // BYTES))
    target = torch.empty_like(source)
    return 2 * source.numel() * BYTES / _best_seconds(lambda: target.copy_(source))


def _matmul_seconds(num_tokens: int, inner: int, outer: int) -> float:
    """One product: the fastest of the ways that PyTorch and the engine have."""
    tokens, linear = torch.randn(num_tokens, inner), torch.nn.Linear(inner, outer, bias=False)
    ways = [linear, PackedLinear(linear.weight, None)] if is_possible() else [linear]
    return min(_best_seconds(partial(way, tokens)) for way in ways)


def _best_seconds(work: Callable[[], object]) -> float:
    """The fastest call of several: a limit is what the machine can do when nothing disturbs it."""
    with torch.inference_mode():
        work()
        best, started = float("inf"), time.perf_counter()
        while time.perf_counter() - started < LEAST_SECONDS:
            begun = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - begun)
    return best
