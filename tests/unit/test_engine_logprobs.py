"""Logits that the hf engine draws from against plain forward passes over prompt and reply: in 32 bits and in 16."""

from typing import Any

import pytest
import torch
from engine_bench import plain_logits, said
from test_engine_cascade import judge_prompts
from test_engine_hf import ARCHITECTURES, answers, tiny_model

from selfreward.engines.hf import HfEngine
from selfreward.types import Request, Sampling

NEAR = {torch.bfloat16: 0.05, torch.float16: 0.006}
"""How far logits may lie apart, as a share of the largest one: about twelve roundings, for sums over two layers in two
orders."""
PLACES = 5


def ragged(prompts: list[Any]) -> list[Request]:
    """Two replies to each prompt, of so many lengths that with few places rows leave and enter all the time."""
    return [
        Request(f"{p}/{n}", prompt, Sampling(2 + (7 * p + 5 * n) % 19, 1.0, 0.9, ignore_eos=True, logprobs=True), 10 * p + n)
        for p, prompt in enumerate(prompts)
        for n in range(2)
    ]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_probabilities_are_those_of_a_plain_pass(kind: str, tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model(kind, tiny_tokenizer), tiny_tokenizer, PLACES)
    requests = ragged(judge_prompts(2, 4))
    with said() as ids:
        replies = answers(engine, requests)
    assert len(requests) > 3 * PLACES, "some enter where others have left"
    for request in requests:
        reply = ids[request.id]
        logits = plain_logits(engine, request.prompt, reply)
        wanted = logits.log_softmax(-1)[torch.arange(len(reply)), reply]
        found = replies[request.id].token_logprobs
        assert found is not None
        assert len(found) == len(reply) == request.sampling.max_tokens
        assert torch.tensor(found).sub(wanted).abs().max() < 1e-4, request.id


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma2", "bloom"])
def test_half_precision_differs_from_a_plain_pass_by_rounding(kind: str, dtype: torch.dtype, tiny_tokenizer: Any) -> None:
    model = tiny_model(kind, tiny_tokenizer).to(dtype)
    engine = HfEngine(model, tiny_tokenizer, PLACES)
    assert (engine._parts.backend.problem is None) == (kind != "bloom")
    requests = [
        Request(f"{i}/{temperature}", prompt, Sampling(16, temperature, ignore_eos=True, logprobs=True), i)
        for i, prompt in enumerate(judge_prompts(2, 3))
        for temperature in (0, 1)
    ]
    with said() as ids:
        replies = answers(engine, requests)
    for request in requests:
        reply, found = ids[request.id], replies[request.id].token_logprobs
        logits = plain_logits(engine, request.prompt, reply)
        near = 2 * NEAR[dtype] * logits.abs().amax(-1)
        chosen = logits[torch.arange(len(reply)), reply]
        assert found is not None
        assert ((torch.tensor(found) - (chosen - logits.logsumexp(-1))).abs() <= near).all(), request.id
        if request.sampling.temperature == 0:
            assert (logits.amax(-1) - chosen <= near).all(), f"{request.id}: another token was clearly likelier"
