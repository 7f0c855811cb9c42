"""Sampled replies of the hf engine against samples of `model.generate`: two samples of one distribution?

The seeds are fixed, so a comparison passes always or never. With other seeds one that should pass would fail once in
1 / FALSE_ALARM times.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from engine_bench import ids_of
from scipy.stats import chi2_contingency
from test_engine_cascade import judge_prompts
from test_engine_hf import tiny_model

from selfreward.chat import encode_prompt
from selfreward.engines._tree import plan_families
from selfreward.engines.hf import HfEngine
from selfreward.types import Request, Sampling

FALSE_ALARM = 1e-3
DRAWS = 2000
PROMPTS = judge_prompts(3, 3)
TARGET = PROMPTS[4]
SETTINGS = {
    "demo": Sampling(3, 1.0, 1.0),
    "paper": Sampling(3, 0.7, 0.9),
    "propose": Sampling(3, 0.6, 0.9),
    "all": Sampling(3, 1.3, 0.8, top_k=6),
}


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> HfEngine:
    model = tiny_model("llama", tiny_tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)  # surer of itself: the same replies come often
    return HfEngine(model, tiny_tokenizer, batch_size=500)


def drawn(engine: HfEngine, sampling: Sampling, others: Iterable[Any], seed: int = 0) -> list[tuple[int, ...]]:
    """Replies to TARGET, each with a seed of its own, among those to other prompts."""
    requests = [Request(str(n), TARGET, sampling, seed + n) for n in range(DRAWS)]
    requests += [Request(f"o{n}", prompt, Sampling(2 + n % 4, 1.0), n) for n, prompt in enumerate(others)]
    (leaf,) = (leaf for leaf in _leaves(engine, requests) if len(leaf.job.requests) == DRAWS)
    assert (0 < leaf.num_root < leaf.num_stem < len(leaf.job.ids)) == (len(requests) > DRAWS), "a root and a stem, or neither"
    ids = ids_of(engine, requests)
    return [tuple(ids[str(n)]) for n in range(DRAWS)]


def _leaves(engine: HfEngine, requests: list[Request]) -> list[Any]:
    jobs, _ = engine._encode(requests)
    return [leaf for family in plan_families(jobs) for leaf in family.leaves]


@cache
def drawn_by_generate(engine: HfEngine, sampling: Sampling) -> list[tuple[int, ...]]:
    ids = torch.tensor([encode_prompt(engine.tokenizer, TARGET)])
    ends = sorted(engine._parts.reader.stop_ids)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        output = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, num_return_sequences=DRAWS, eos_token_id=ends,
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
            max_new_tokens=sampling.max_tokens, pad_token_id=engine.tokenizer.pad_token_id,
        )  # fmt: skip
    rows = output[:, ids.shape[1] :].tolist()
    return [tuple(row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]) for row in rows]


def p_value(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> float:
    """Of the chi-square test that both are samples of one distribution of whole replies. Rare replies count together with
    those that begin alike, at last with all other rare ones."""
    counts = [Counter(first), Counter(second)]
    for size in (2, 1, 0):
        rare = [reply for reply in counts[0] | counts[1] if sum(count[reply] for count in counts) < 20 and len(reply) > size]
        for reply in rare:
            for count in counts:
                count[reply[:size] + (-1,) * bool(size)] += count.pop(reply, 0)
    cells = sorted(counts[0] | counts[1])
    assert len(cells) > 8, "something to compare"
    return float(chi2_contingency([[count[cell] for cell in cells] for count in counts]).pvalue)


@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("name", SETTINGS)
def test_samples_are_those_of_generate(engine: HfEngine, name: str, is_shared: bool) -> None:
    sampling = SETTINGS[name]
    others = [prompt for prompt in PROMPTS if prompt != TARGET] * 5 if is_shared else []
    assert p_value(drawn(engine, sampling, others, seed=10**6 * is_shared), drawn_by_generate(engine, sampling)) > FALSE_ALARM


@pytest.mark.parametrize("other", [Sampling(3, 0.8, 0.9), Sampling(3, 0.7, 0.95), Sampling(3, 0.7, 0.9, top_k=6)])
def test_the_comparison_notices_other_settings(engine: HfEngine, other: Sampling) -> None:
    assert p_value(drawn(engine, other, []), drawn_by_generate(engine, SETTINGS["paper"])) < 1e-6
