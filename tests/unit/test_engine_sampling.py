"""The sampler against a plain reference that looks at one row at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward.engines._sampling import Sampler
from selfreward.errors import EngineError
from selfreward.types import Request, Sampling

CPU = torch.device("cpu")
WAYS = {"now": True}


@pytest.fixture(autouse=True, scope="module", params=[True, False], ids=["kernels", "tensors"])
def way(request: pytest.FixtureRequest) -> None:
    """Compiled loops, and the tensors' way that a GPU takes."""
    WAYS["now"] = request.param


def draw(rows: list[list[float]], samplings: list[Sampling], seeds: list[int] | None = None, steps: int = 1) -> list[list[int]]:
    """`steps` tokens for each row, from the same logits at every step."""
    seeds = seeds or list(range(len(rows)))
    requests = [Request(str(i), "", s, seed) for i, (s, seed) in enumerate(zip(samplings, seeds, strict=True))]
    sampler = joined(requests, [steps] * len(rows))
    return torch.stack([sampler.draw(torch.tensor(rows))[0] for _ in range(steps)], dim=1).tolist()


def joined(requests: list[Request], limits: list[int]) -> Sampler:
    """A sampler with these rows, drawing the way that is being tested."""
    sampler = Sampler(CPU, has_kernels=WAYS["now"])
    sampler.join(requests, limits)
    return sampler


def kept(logits: list[float], sampling: Sampling) -> set[int]:
    """Tokens that may be drawn."""
    weights = [math.exp((value - max(logits)) / sampling.temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    order = order[: sampling.top_k or None]
    total, mass, chosen = sum(weights[token] for token in order), 0.0, set()
    for token in order:
        if mass / total >= sampling.top_p:
            break
        chosen.add(token)
        mass += weights[token]
    return chosen


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = [math.log(share) for share in (0.1, 0.5, 0.15, 0.25)]
    for top_p, expected in ((0.05, {1}), (0.49, {1}), (0.51, {1, 3}), (0.74, {1, 3}), (0.76, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        tokens = draw([logits] * 400, [Sampling(1, 1.0, top_p)] * 400)
        assert {token for (token,) in tokens} == expected, top_p


def test_top_k_comes_before_top_p() -> None:
    logits = [math.log(share) for share in (0.4, 0.3, 0.2, 0.1)]
    # Of the two left, the first has 4/7 of the mass: enough for 0.5, though it is not 0.5 of everything.
    assert {token for (token,) in draw([logits] * 200, [Sampling(1, 1.0, 0.5, top_k=2)] * 200)} == {0}
    assert {token for (token,) in draw([logits] * 200, [Sampling(1, 1.0, 0.6, top_k=2)] * 200)} == {0, 1}
    assert {token for (token,) in draw([logits] * 400, [Sampling(1, 1.0, 1.0, top_k=99)] * 400)} == {0, 1, 2, 3}


def test_ties_do_not_depend_on_the_order_of_the_vocabulary() -> None:
    tokens = draw([[0.0, 1.0, 1.0, 1.0]] * 300, [Sampling(1, 1.0, 1.0, top_k=2)] * 300)
    assert {token for (token,) in tokens} == {1, 2, 3}


def test_impossible_tokens_are_never_drawn() -> None:
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]
    for sampling in (Sampling(1, 1.0, 1.0), Sampling(1, 1.0, 0.99), Sampling(1, 1.0, 1.0, top_k=4)):
        assert {token for (token,) in draw([logits] * 300, [sampling] * 300)} == {1, 3}


def test_a_huge_spread_of_logits_does_not_overflow() -> None:
    assert draw([[1e30, -1e30, 0.0]], [Sampling(1, 1e-30, 0.9)]) == [[0]]


def test_shares_are_the_probabilities() -> None:
    shares, rows = np.array([0.05, 0.6, 0.35]), 20_000
    logits = np.log(shares).tolist()
    for top_p, expected in ((1.0, shares), (0.9, shares * [0, 1, 1] / 0.95)):
        tokens = np.array(draw([logits] * rows, [Sampling(1, 1.0, top_p)] * rows))[:, 0]
        assert np.allclose(np.bincount(tokens, minlength=3) / rows, expected, atol=0.012)


def test_the_tokens_of_one_row_are_independent() -> None:
    tokens = np.array(draw([[0.0, 0.0]], [Sampling(1, 1.0, 1.0)], seeds=[11], steps=1500)[0])
    pairs = np.bincount(2 * tokens[:-1] + tokens[1:], minlength=4) / (len(tokens) - 1)
    assert np.allclose(pairs, 0.25, atol=0.04)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 7), min_size=2, max_size=12, unique=True),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.integers(0, 14),
)
def test_tokens_come_from_the_kept_set(logits: list[float], temperature: float, top_p: float, top_k: int) -> None:
    sampling = Sampling(1, temperature, top_p, top_k)
    allowed = kept(logits, sampling)
    tokens = {token for row in draw([logits], [sampling], steps=64) for token in row}
    assert tokens <= allowed


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 50, generator=generator).tolist()
    samplings = [
        Sampling(1, 0),
        Sampling(1, 1.0, 0.9),
        Sampling(1, 0.7, 1.0),
        Sampling(1, 1.0, 1.0, top_k=7),
        Sampling(1, 2.0, 0.5),
    ]
    together = draw(rows, samplings, seeds=[9, 8, 7, 6, 5], steps=20)
    alone = [draw([rows[i]], [samplings[i]], seeds=[9 - i], steps=20)[0] for i in range(5)]
    assert together == alone
    assert len(set(together[0])) == 1


def test_kept_rows_keep_their_numbers() -> None:
    rows = torch.zeros(4, 1000)
    requests = [Request(str(i), "", Sampling(1, 1.0, 1.0), i) for i in range(4)]
    whole, part = joined(requests, [5, 9, 9, 9]), joined(requests, [5, 9, 9, 9])
    part.take([2, 0])
    for _ in range(5):
        assert part.draw(rows[:2])[0].tolist() == whole.draw(rows)[0][[2, 0]].tolist()


def test_rows_that_join_later_draw_what_they_would_have_drawn_alone() -> None:
    rows = torch.zeros(3, 1000)
    requests = [Request(str(i), "", Sampling(1, 1.0, 1.0), i) for i in range(3)]
    alone = joined(requests[2:], [7])
    sampler = joined(requests[:2], [5, 5])
    for _ in range(3):
        sampler.draw(rows[:2])
    sampler.join(requests[2:], [7])
    assert [sampler.draw(rows)[0][2].item() for _ in range(2)] == [alone.draw(rows[:1])[0].item() for _ in range(2)]


@pytest.mark.parametrize("spread", [0.01, 3.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (1.0, 0), (0.5, 40), (0.97, 700), (1.0, 300)])
def test_large_vocabularies_keep_and_draw_as_small_ones_do(spread: float, top_p: float, top_k: int) -> None:
    """Both ways to find the kept tokens (among the likeliest alone, among all) and to draw in two steps."""
    size, times = 5003, 400
    logits = (torch.randn(size, generator=torch.Generator().manual_seed(1)).double() * spread).float()
    sampling = Sampling(1, 1.0, top_p, top_k)
    tokens = np.array(draw([logits.tolist()] * times, [sampling] * times))[:, 0]
    allowed = kept(logits.tolist(), sampling)
    assert set(tokens.tolist()) <= allowed
    shares = np.where(np.isin(np.arange(size), list(allowed)), torch.softmax(logits.double(), 0).numpy(), 0)
    drawn = np.bincount(tokens, minlength=size) / times
    assert np.abs(np.cumsum(drawn) - np.cumsum(shares / shares.sum())).max() < 0.1


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(2))
    requests = [Request(str(i), "", Sampling(1, 2.0 * i, 0.5, logprobs=True), i) for i in range(2)]
    ids, logprobs = joined(requests, [1, 1]).draw(logits)
    assert logprobs is not None
    assert torch.allclose(logprobs, logits.log_softmax(-1)[[0, 1], ids])
    assert joined([Request("a", "", Sampling(1, 1.0), 0)], [1]).draw(logits[:1])[1] is None


def test_seeds_of_any_size_are_taken() -> None:
    row, sampling = [[0.0] * 1000], [Sampling(1, 1.0, 1.0)]
    drawn = [draw(row, sampling, seeds=[seed], steps=3)[0] for seed in (0, 1, 2**63 - 1, 2**64 + 1)]
    assert len({tuple(tokens) for tokens in drawn}) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_stop_generation(bad: float, temperature: float) -> None:
    with pytest.raises(EngineError, match="non-finite"):
        draw([[0.0, 1.0], [0.0, bad]], [Sampling(1, temperature)] * 2)
