"""The compiled loops against the same arithmetic in float64, one row at a time."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_hf import WORDS, tiny_model

from selfreward.engines import _kernels
from selfreward.engines._cascade import Grid, Part, Rule, as_bias, look, look_and_weigh
from selfreward.engines.hf import HfEngine
from selfreward.types import Request, Sampling

SCALE = 0.3


class Batch:
    """Rows of one step: prompts of several lengths, rows that continue them, a root that some batches have."""

    def __init__(self, lengths: list[int], prompt_of: list[int], counts: list[int], heads: tuple[int, int], root: int) -> None:
        """`heads` are (query heads, key-value heads); `root` counts the keys of the root."""
        generator = torch.Generator().manual_seed(len(lengths) + 10 * len(prompt_of) + root)
        size, num_heads, num_kv = 12, *heads
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.lengths, self.prompt_of, self.counts = np.array(lengths), np.array(prompt_of), np.array(counts)
        self.q_RHD = draw(len(prompt_of), num_heads, size)
        self.prompts = [draw(len(lengths) + 1, num_kv, max(lengths) + 2, size) for _ in range(2)]
        self.own = [draw(len(prompt_of) + 1, num_kv, max(counts) + 3, size) for _ in range(2)]
        self.root = [draw(1, num_kv, root, size) for _ in range(2)] if root else None
        # What lies behind the places in use is whatever was there before.
        for store, used in ((self.prompts, lengths), (self.own, counts)):
            for states in store:
                for item, count in enumerate(used):
                    states[item, :, count:] = math.nan

    def attend(self, rows: list[int] | None = None) -> torch.Tensor:
        """The kernel's results, of some rows alone or of all."""
        prompt_of = self.prompt_of if rows is None else self.prompt_of[rows]
        pick = slice(None) if rows is None else rows
        q_RHD = self.q_RHD[pick]
        seen = _kernels.nothing(q_RHD) if self.root is None else looked_at(q_RHD, self.root)
        own = [states[pick].contiguous() for states in self.own]
        order = np.argsort(prompt_of, kind="stable")
        return _kernels.attend(q_RHD, seen, (*self.prompts, self.lengths), (*own, self.counts[pick]), (order, prompt_of), SCALE)

    def expected(self) -> torch.Tensor:
        """One row and one head at a time, in float64."""
        num_rows, num_heads, size = self.q_RHD.shape
        shared = num_heads // self.own[0].shape[1]
        result = torch.empty(num_rows, num_heads, size, dtype=torch.float64)
        for row in range(num_rows):
            for head in range(num_heads):
                sides = []
                for side in range(2):
                    parts = [] if self.root is None else [self.root[side][0, head // shared]]
                    prompt = self.prompt_of[row]
                    parts += [self.prompts[side][prompt, head // shared, : self.lengths[prompt]]]
                    parts += [self.own[side][row, head // shared, : self.counts[row]]]
                    sides.append(torch.cat(parts).double())
                weights = (sides[0] @ self.q_RHD[row, head].double() * SCALE).softmax(0)
                result[row, head] = weights @ sides[1]
        return result


def looked_at(q_RHD: torch.Tensor, root: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A root as it is looked at before: result and logarithm of the sum of exponentials."""
    shared = q_RHD.shape[1] // root[0].shape[1]
    keys, values = (states[0].repeat_interleave(shared, dim=0) for states in root)
    products = torch.einsum("rhd,hld->rhl", q_RHD, keys) * SCALE
    return torch.einsum("rhl,hld->rhd", products.softmax(-1), values), products.logsumexp(-1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 19), min_size=1, max_size=5),
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 17)), min_size=1, max_size=9),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    root=st.sampled_from([0, 1, 23]),
)
def test_rows_see_what_one_softmax_over_all_keys_shows(
    lengths: list[int], rows: list[tuple[int, int]], heads: tuple[int, int], root: int
) -> None:
    prompt_of = [prompt % len(lengths) for prompt, _ in rows]
    batch = Batch(lengths, prompt_of, [count for _, count in rows], heads, root)
    torch.testing.assert_close(batch.attend().double(), batch.expected(), rtol=1e-5, atol=2e-6)


def test_prompts_that_were_looked_at_before_are_put_together_with_the_root() -> None:
    batch = Batch([3, 7], [0, 0, 1, 1], [5, 2, 5, 1], (4, 2), 6)
    assert batch.root is not None
    seen_PL = torch.arange(9) < torch.tensor(batch.lengths)[:, None]
    prompts = [states[:2].nan_to_num() for states in batch.prompts]
    parts = [Part(*batch.root), Part(*prompts, Grid(None, 2, 2), as_bias(seen_PL[:, None]))]
    before = look_and_weigh(batch.q_RHD, parts, Rule(SCALE, None, None))
    none_P = np.zeros(2, np.int64)
    found = _kernels.attend(
        batch.q_RHD, before, (*batch.prompts, none_P), (*batch.own, batch.counts), (np.arange(4), batch.prompt_of), SCALE
    )
    torch.testing.assert_close(found.double(), batch.expected(), rtol=1e-5, atol=2e-6)


def test_the_general_way_sees_the_same() -> None:
    batch = Batch([3, 7], [0, 0, 1, 1], [5, 5, 5, 5], (4, 2), 0)
    seen = torch.arange(9) < torch.tensor(batch.lengths)[:, None]
    prompts = [states[:2].nan_to_num() for states in batch.prompts]
    parts = [
        Part(prompts[0], prompts[1], Grid(None, 2, 2), as_bias(seen[:, None])),
        Part(batch.own[0][:4, :, :5], batch.own[1][:4, :, :5], Grid(None, 4, 1)),
    ]
    torch.testing.assert_close(batch.attend(), look(batch.q_RHD, parts, Rule(SCALE, None, None)))


@pytest.fixture
def threads() -> object:
    """Gives PyTorch its threads back."""
    before = torch.get_num_threads()
    yield None
    torch.set_num_threads(before)


@pytest.mark.skipif(_kernels.numba.config.NUMBA_NUM_THREADS < 2, reason="one processor: there are no two threads")
def test_neighbours_and_threads_change_no_bit(threads: object) -> None:
    batch = Batch([9, 4, 17], [0, 1, 1, 2, 0, 2], [3, 8, 1, 9, 16, 2], (4, 2), 0)
    torch.set_num_threads(2)
    together = batch.attend()
    alone = torch.cat([batch.attend([row]) for row in range(6)])
    torch.set_num_threads(1)
    assert torch.equal(together, alone)
    assert torch.equal(together, batch.attend())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1], ids=["keys", "values"])
@pytest.mark.parametrize("place", ["root", "prompts", "own"])
def test_numbers_that_are_none_do_not_vanish(value: float, side: int, place: str) -> None:
    batch = Batch([5], [0], [5], (2, 2), 4)
    getattr(batch, place)[side][0, 0, 2, 3] = value
    batch.q_RHD[0, 0, 3] = 1
    found = batch.attend()
    # A broken value spoils its own place, a broken key all of them.
    assert not torch.isfinite(found[0, 0, 3] if side else found[0, 0]).any()
    assert torch.isfinite(found[0, 1]).all()


def test_far_apart_products_do_not_overflow() -> None:
    batch = Batch([4], [0], [4], (1, 1), 3)
    batch.q_RHD *= 1e4
    torch.testing.assert_close(batch.attend().double(), batch.expected(), rtol=1e-3, atol=1e-4)


def test_powers_of_2_are_exact_to_float32() -> None:
    x = np.concatenate([np.linspace(-126, 0, 100_001), [-126.5, -1e30, -np.inf]]).astype(np.float32)
    found = np.array([_kernels._power_of_2(value) for value in x])
    wanted = np.exp2(x[:-3].astype(np.float64))
    assert np.abs(found[:-3] / wanted - 1).max() < 1.2e-7
    assert found[-3:].tolist() == [0, 0, 0]


def bounds(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """From which share of the whole to which a token is drawn, in float64."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature).astype(np.float32).astype(np.float64)
    order = np.sort(weights)[::-1]
    order = order[: min(top_k, len(order))]
    least = order[np.searchsorted(np.cumsum(order), top_p * order.sum() * (1 - 1e-12))] if top_p < 1 else order[-1]
    running = np.cumsum(np.where(weights >= least, weights, 0))
    running /= running[-1]
    return np.concatenate([[0], running[:-1]]), running


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 2, 63, 64, 65, 200, 1500]),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([1, 2, 40, 2**31]),
)
def test_a_token_is_drawn_from_its_share(
    seed: int, size: int, spread: float, temperature: float, top_p: float, top_k: int
) -> None:
    generator = np.random.default_rng(seed)
    logits = (generator.normal(size=size) * spread).astype(np.float32)
    logits[generator.random(size) < 0.2] = -np.inf
    logits[generator.integers(size)] = spread
    uniforms = np.concatenate([generator.random(20), [0, 1 - 2**-24]]).astype(np.float32)
    low, high = bounds(logits, temperature, top_p, top_k)
    tokens = drawn(logits, temperature, top_p, top_k, uniforms)
    for token, uniform in zip(tokens, uniforms, strict=True):
        assert low[token] - 1e-6 <= uniform <= high[token] + 1e-6, (token, uniform)
        assert high[token] > low[token], "a token without a share"


def drawn(logits: np.ndarray, temperature: float, top_p: float, top_k: int, uniforms: np.ndarray) -> list[int]:
    """The tokens that these uniform numbers point to."""
    rows = len(uniforms)
    settings_R1 = (torch.full((rows, 1), temperature), torch.full((rows, 1), top_p), torch.full((rows, 1), top_k))
    logits_RV = torch.from_numpy(np.tile(logits, (rows, 1)))
    return _kernels.draw(logits_RV, settings_R1, torch.from_numpy(uniforms)[:, None])[:, 0].tolist()


def test_temperature_0_takes_the_first_of_the_likeliest() -> None:
    assert drawn(np.array([0, 3, 3, -np.inf], np.float32), 0.0, 0.5, 1, np.array([0.0, 0.9], np.float32)) == [1, 1]


def run(program: str, **environment: str) -> str:
    """What a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numba_starts_no_more_threads_than_pytorch_has() -> None:
    """In a process of its own: only the first start gives PyTorch another number."""
    program = """
import torch
torch.set_num_threads(1)
from selfreward.engines import _kernels
import numba
for number in (1, 2):
    torch.set_num_threads(number)
    _kernels._try_all()
    print(torch.get_num_threads(), numba.get_num_threads())
"""
    assert run(program).split() == ["1", "1", "2", str(min(2, _kernels.numba.config.NUMBA_NUM_THREADS))]


@pytest.mark.skipif(_kernels.numba.config.NUMBA_NUM_THREADS < 2, reason="one processor: there is no other thread")
def test_memory_that_is_short_is_told_and_nothing_wrong_returned() -> None:
    """What loops need is taken before they start: an error on another thread than the first would be lost."""
    program = """
import resource
import torch
torch.set_num_threads(2)
from selfreward.engines import _kernels
from selfreward.engines._memory import is_out_of_memory
_kernels.prepare()
size = 20_000_000
logits, one = torch.zeros(2, size), torch.ones(2, 1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2 * size, resource.RLIM_INFINITY))
try:
    print(_kernels.draw(logits, (one, one, one.long()), one / 2))
except (RuntimeError, MemoryError) as error:
    print(is_out_of_memory(error))
"""
    assert run(program).split() == ["True"]


def test_a_full_disk_costs_the_next_process_time_and_nothing_else(tmp_path: Path) -> None:
    program = """
import errno, logging
import numba.core.caching

def save(self, *_):
    raise OSError(errno.ENOSPC, "No space left on device")

numba.core.caching.FunctionCache.save_overload = save
logging.basicConfig(level=logging.WARNING, format="%(message)s", filename=LOG)
from selfreward.engines import _kernels
_kernels.prepare()
"""
    log = tmp_path / "log"
    run(program.replace("LOG", repr(str(log))), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    told = log.read_text()
    assert told.count("could not be kept for the next process (set NUMBA_CACHE_DIR)") == 1
    assert "No space left on device" in told


def test_where_nothing_can_be_kept_each_process_compiles_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {}
    exec("def doubled(x):\n    return 2 * x", names)  # no file, so no place for a cache beside it
    monkeypatch.setattr(_kernels, "_not_kept", [])
    assert _kernels._compiled()(names["doubled"])(4) == 8
    assert _kernels._not_kept == ["doubled"]
    _kernels.prepare.__wrapped__()
    assert "set NUMBA_CACHE_DIR" in caplog.text


class Watch:
    """Counts what the loops are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _kernels.prepare()  # which calls `attend` too, once in a process
        self.prompts: list[bool] = []
        original = _kernels.attend

        def attend(*arguments: Any) -> torch.Tensor:
            self.prompts.append(bool(arguments[2][2].any()))
            return original(*arguments)

        monkeypatch.setattr(_kernels, "attend", attend)


def replies(engine: HfEngine, rows: int) -> list[str]:
    """Greedy replies to two prompts, `rows` to each."""
    requests = [
        Request(f"{prompt}/{row}", " ".join(WORDS[: 4 + prompt]), Sampling(4, 0), row)
        for prompt in range(2)
        for row in range(rows)
    ]
    return [reply.text for reply in sorted(engine.generate(requests), key=lambda reply: reply.request_id)]


def test_the_loops_serve_float32_and_wide_prompts_take_matrix_products(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    engine = HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=64)
    watch.prompts.clear()
    narrow = replies(engine, 2)
    assert watch.prompts
    assert all(watch.prompts)
    watch.prompts.clear()
    wide = replies(engine, 16)
    assert watch.prompts
    assert not any(watch.prompts)
    assert set(narrow) == set(wide)


@pytest.mark.parametrize("kind", ["gemma2", "bfloat16"])
def test_what_the_loops_do_not_know_goes_the_general_way(
    kind: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    model = tiny_model("gemma2" if kind == "gemma2" else "llama", tiny_tokenizer)
    if kind == "bfloat16":
        model = model.to(torch.bfloat16)
    engine = HfEngine(model, tiny_tokenizer, batch_size=64)
    assert len(replies(engine, 2)) == 4
    assert watch.prompts == []
