"""Rows that have ended and stay in the batch for a while, and batches that leave nothing behind."""

import gc
import random
from typing import Any

import torch
from test_engine_hf import GREEDY, ragged_prompts, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from selfreward.engines._decoder import COMPACT_SHARE
from selfreward.engines.hf import HfEngine
from selfreward.types import Request, Sampling

NUM_POSITIONS = 80


def test_ended_rows_stay_inside_learned_positions(tiny_tokenizer: Any) -> None:
    """One long prompt's reply reaches the end of the context early; too few rows have ended then to leave the batch."""
    settings = {"vocab_size": len(tiny_tokenizer), "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": NUM_POSITIONS}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **settings, initializer_range=0.3)).eval()
    engine = HfEngine(model, tiny_tokenizer, batch_size=64)
    with torch.no_grad():  # no control token is likely: every reply goes on to its limit
        model.transformer.ln_f.bias.zero_()
        model.lm_head.weight[sorted(tiny_tokenizer.all_special_ids)] = 0
    prompts = ["x" * 40, *("x" * 15 for _ in range(2 * COMPACT_SHARE + 8))]
    requests = [Request(str(i), prompt, Sampling(200, 0), i) for i, prompt in enumerate(prompts)]
    replies = {reply.request_id: reply for reply in engine.generate(requests)}
    for number in (0, 1):
        prompt_ids = tiny_tokenizer(prompts[number], add_special_tokens=False)["input_ids"]
        ids = list(prompt_ids)
        with torch.no_grad():
            while len(ids) < NUM_POSITIONS:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        reply = replies[str(number)]
        assert len(prompt_ids) == len(prompts[number])
        assert (reply.num_tokens, reply.finish_reason) == (NUM_POSITIONS - len(prompt_ids), "length")
        assert reply.text == tiny_tokenizer.decode(ids[len(prompt_ids) :], clean_up_tokenization_spaces=False)


def test_many_batch_shapes_leave_no_tensors_behind(tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=64)

    def num_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    rng = random.Random(4)
    prompts = ragged_prompts(12)
    list(engine.generate([Request("a", prompts[0], GREEDY, 0)]))
    before = num_tensors()
    for _ in range(10):
        chosen = rng.sample(prompts, rng.randint(1, 12))
        sampling = Sampling(rng.randint(1, 9), 1.0, 0.9)
        list(engine.generate([Request(str(i), prompt, sampling, i) for i, prompt in enumerate(chosen)]))
    assert num_tensors() <= before
