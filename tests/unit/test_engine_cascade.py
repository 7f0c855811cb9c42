"""Memory that shares beginnings: what is read, who enters when, and that nobody's tokens change by it."""

import math
from typing import Any

import pytest
import torch
from engine_bench import ids_of
from test_engine_hf import ARCHITECTURES, GREEDY, SMALL, WORDS, answers, chat, generated_by_hf, tiny_model, watched
from transformers import AutoConfig, AutoModelForCausalLM

from selfreward.chat import encode_prompt
from selfreward.engines import _kernels
from selfreward.engines._cascade import Part, Rule, as_bias, look
from selfreward.engines._cascade_memory import _passes
from selfreward.engines.hf import HfEngine
from selfreward.errors import EngineError
from selfreward.types import Generation, Message, Request, Sampling

RUBRIC = " ".join(WORDS * 3)
ALONE = {
    "bloom": "attention in parts fails with AssertionError: a store that was read",
    "lfm2": "its memory is more than keys and values",
}
"""Families that share nothing but equal prompts, and why."""


def judge_prompts(instructions: int, candidates: int) -> list[tuple[Message, ...]]:
    """A rubric that all share, instructions that some share, responses of several lengths."""
    return [
        chat(f"{RUBRIC} {' '.join(WORDS[i : i + 6])} : {' '.join(WORDS[j : j + 1 + (3 * i + j) % 5])}")
        for i in range(instructions)
        for j in range(candidates)
    ]


def ragged(prompts: list[tuple[Message, ...]], rows: int = 2) -> list[Request]:
    """Replies of many lengths, so that rows leave and enter all the time."""
    return [
        Request(f"{p}/{n}", prompt, Sampling(2 + (7 * p + 5 * n) % 23, 1.0, 0.95, ignore_eos=True), 100 * p + n)
        for p, prompt in enumerate(prompts)
        for n in range(rows)
    ]


@pytest.fixture(scope="module", autouse=True, params=[True, False], ids=["compiled", "general"])
def way(request: Any) -> Any:
    """Attention in compiled loops, and in the operations that a GPU takes."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setattr(_kernels, "can_attend", lambda *_: False)
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engine(request: Any, tiny_tokenizer: Any) -> HfEngine:
    return HfEngine(tiny_model(request.param, tiny_tokenizer), tiny_tokenizer, batch_size=64)


def test_families_that_can_share_do(engine: HfEngine) -> None:
    problem, kind = engine._parts.backend.problem, engine.model.config.model_type
    assert problem is None if kind not in ALONE else str(problem).startswith(ALONE[kind]), problem


def test_shared_beginnings_change_no_greedy_reply(engine: HfEngine) -> None:
    prompts = judge_prompts(3, 4)
    ids = ids_of(engine, [Request(str(i), prompt, GREEDY, i) for i, prompt in enumerate(prompts)])
    for index, prompt in enumerate(prompts):
        assert ids[str(index)] == generated_by_hf(engine, prompt, GREEDY.max_tokens)


def test_rows_that_enter_later_say_what_they_would_have_said_alone(engine: HfEngine) -> None:
    requests = ragged(judge_prompts(4, 3))
    small = HfEngine(engine.model, engine.tokenizer, batch_size=7)
    few = ids_of(small, requests)
    assert few == ids_of(engine, requests)
    alone = {request.id: ids_of(engine, [request])[request.id] for request in requests[::5]}
    assert {name: few[name] for name in alone} == alone


def test_what_is_shared_is_read_once(tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=64)
    prompts = judge_prompts(3, 4)
    engine.take_usage()
    replies = answers(engine, [Request(f"{i}/{n}", p, GREEDY, n) for i, p in enumerate(prompts) for n in range(3)])
    usage, encoded = engine.take_usage(), [tuple(encode_prompt(tiny_tokenizer, prompt)) for prompt in prompts]
    beginnings = {ids[: size + 1] for ids in encoded for size in range(len(ids))}
    assert usage.asked_tokens == 3 * sum(map(len, encoded))
    # A tree would read each beginning once; a root and one layer of stems read a little more.
    assert len(beginnings) <= usage.read_tokens < 1.3 * len(beginnings) < usage.asked_tokens / 5
    assert usage.generated_tokens == sum(reply.num_tokens or 0 for reply in replies.values())
    assert usage.prefill_seconds > 0
    assert usage.decode_seconds > 0
    assert engine.take_usage().asked_tokens == 0, "told once"


def test_waiting_rows_enter_while_others_go_on(tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=8)
    requests = ragged(judge_prompts(6, 4))
    with watched(engine.model) as passes:
        order = [reply.request_id for reply in engine.generate(requests)]
    steps = [rows for rows, width in passes if width == 1]
    wanted = sum(request.sampling.max_tokens - 1 for request in requests)
    assert max(steps) == 8
    assert wanted / (8 * len(steps)) > 0.8, "places do not stay empty while requests wait"
    assert order != [request.id for request in requests], "replies come as they end"


def test_a_memory_budget_decides_how_many_run(tiny_tokenizer: Any) -> None:
    model = tiny_model("llama", tiny_tokenizer)
    requests = ragged(judge_prompts(4, 3), rows=3)
    free = HfEngine(model, tiny_tokenizer, batch_size=64)
    calm = answers(free, requests)
    budget = 6 * (free._budget.row_bytes + 60 * free._budget.token_bytes)
    small = HfEngine(model, tiny_tokenizer, 64, memory_gb=budget / 2**30)
    with watched(model) as passes:
        assert answers(small, requests) == calm
    most = max(rows for rows, width in passes if width == 1)
    assert 3 <= most <= 12 < len(requests)
    with pytest.raises(EngineError, match=r"engine\.memory_gb=1e-06 is too little for 1 reply of up to \d+ tokens"):
        answers(HfEngine(model, tiny_tokenizer, 64, memory_gb=1e-6), requests)


def test_long_prompts_are_read_in_pieces(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral", tiny_tokenizer)
    engine = HfEngine(model, tiny_tokenizer, batch_size=8)
    requests = [Request(str(i), prompt, GREEDY, i) for i, prompt in enumerate(judge_prompts(2, 3))]
    whole = answers(engine, requests)
    monkeypatch.setattr(engine._parts.backend, "_most_tokens", 16)
    with watched(model) as passes:
        assert answers(engine, requests) == whole
    assert max(width for _, width in passes) <= 16


def test_a_reply_may_go_on_past_its_end_and_tell_how_probable_it_was(tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=8)
    prompt = judge_prompts(1, 1)[0]
    request = Request("a", prompt, Sampling(9, 1.0, 0.9, ignore_eos=True, logprobs=True), 5)
    reply = answers(engine, [request, Request("b", prompt, Sampling(9, 1.0, 0.9), 5)])["a"]
    assert (reply.num_tokens, reply.finish_reason) == (9, "length")
    assert reply.token_logprobs is not None
    assert len(reply.token_logprobs) == 9
    assert answers(engine, [Request("b", prompt, Sampling(9, 1.0, 0.9), 5)])["b"].token_logprobs is None
    # Greedy ones are the model's own highest.
    greedy = answers(engine, [Request("c", prompt, Sampling(3, 0, logprobs=True), 0)])["c"]
    ids = encode_prompt(tiny_tokenizer, prompt)
    with torch.no_grad():
        first = engine.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max().item()
    assert greedy.token_logprobs is not None
    assert greedy.token_logprobs[0] == pytest.approx(first, abs=1e-4)


def test_half_precision_serves_too(tiny_tokenizer: Any) -> None:
    model = tiny_model("llama", tiny_tokenizer).to(torch.bfloat16)
    engine = HfEngine(model, tiny_tokenizer, batch_size=16)
    assert engine._parts.backend.problem is None
    replies: dict[str, Generation] = answers(engine, ragged(judge_prompts(2, 2)))
    assert all(reply.num_tokens for reply in replies.values())


def test_a_model_whose_attention_cannot_be_parted_is_told(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    for kind, why in ALONE.items():
        caplog.clear()
        HfEngine(tiny_model(kind, tiny_tokenizer), tiny_tokenizer, batch_size=4)
        assert f"prompts of one call share nothing but equal prompts: {why}" in caplog.text


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("queries", [1, 40])
def test_parts_together_are_the_whole(softcap: float | None, queries: int) -> None:
    """Attention over two parts against one softmax over all keys, worked out here; for few queries and for many."""
    generator = torch.Generator().manual_seed(queries)
    q, keys, values = (torch.randn(*shape, generator=generator) for shape in ((queries, 4, 8), (1, 2, 20, 8), (1, 2, 20, 8)))
    seen = torch.rand(1, queries, 15, generator=generator) > 0.4
    rule = Rule(8**-0.5, softcap, None)
    found = look(q, [Part(keys[:, :, :5], values[:, :, :5]), Part(keys[:, :, 5:], values[:, :, 5:], None, as_bias(seen))], rule)
    for query in range(queries):
        for head in range(4):
            weights, total = [], 0.0
            for place in range(20):
                if place >= 5 and not seen[0, query, place - 5]:
                    weights.append(0.0)
                    continue
                product = float(q[query, head] @ keys[0, head // 2, place]) * rule.scale
                weights.append(math.exp(product if softcap is None else softcap * math.tanh(product / softcap)))
                total += weights[-1]
            expected = sum(weight / total * values[0, head // 2, place] for place, weight in enumerate(weights))
            assert torch.allclose(found[query, head], expected, atol=1e-5)


def test_windows_that_an_attention_does_not_tell_are_not_shared(tiny_tokenizer: Any) -> None:
    """Some families put their windows into the mask alone, which nobody makes here."""
    experts = {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    }
    config = AutoConfig.for_model(
        "qwen2_moe", vocab_size=len(tiny_tokenizer), initializer_range=0.3, **SMALL, **experts,
        use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval()
    engine = HfEngine(model, tiny_tokenizer, batch_size=8)
    assert engine._parts.backend.problem == "its layers see ['16', 'None'] positions back, which its attention does not say"
    for prompt in judge_prompts(1, 2):
        assert ids_of(engine, [Request("a", prompt, GREEDY, 0)])["a"] == generated_by_hf(engine, prompt, GREEDY.max_tokens)


def test_stores_that_grew_stay_inside_the_budget(tiny_tokenizer: Any) -> None:
    """Long prompts first, then many short ones: the places that the long ones made count for the short ones too."""
    model = tiny_model("llama", tiny_tokenizer)
    requests = [
        Request(str(i), "sea " * (120 if i < 3 else 2) + f"{i}", Sampling(4, 1.0, ignore_eos=True), i) for i in range(60)
    ]
    free = HfEngine(model, tiny_tokenizer, batch_size=64)
    longest = max(len(ids) for ids in tiny_tokenizer([r.prompt for r in requests], add_special_tokens=False)["input_ids"])
    token, row = free._budget.token_bytes, free._budget.row_bytes
    budget = 4 * (longest + 4) * token + 10 * row
    small = HfEngine(model, tiny_tokenizer, 64, memory_gb=budget / 2**30)
    kept: list[int] = []
    assert len(_stores(small, requests, kept)) == 60
    assert max(kept) <= budget
    assert answers(small, requests) == answers(free, requests)


def _stores(engine: HfEngine, requests: list[Request], kept: list[int]) -> list[str]:
    """Answer, and note after each reply what the stores of the session in work take."""
    seen = []
    opened: list[Any] = []
    backend, own_open = engine._parts.backend, engine._parts.backend.open
    backend.open = lambda *args: opened.append(own_open(*args)) or opened[-1]  # type: ignore[method-assign]
    for reply in engine.generate(requests):
        seen.append(reply.request_id)
        memory = opened[-1]
        places = sum(store.num_items * store.num_places for store in (memory._prompts, memory._own))
        kept.append(places * engine._budget.token_bytes)
    backend.open = own_open  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("kind", ["llama", "bloom", "lfm2"])
def test_the_budget_counts_keys_and_values_of_every_kind_of_memory(kind: str, tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model(kind, tiny_tokenizer), tiny_tokenizer, batch_size=8, memory_gb=1e-7)
    assert engine._budget.token_bytes > 0
    with pytest.raises(EngineError, match=r"engine\.memory_gb=1e-07 is too little"):
        answers(engine, [Request("a", chat("sea"), GREEDY, 0)])
    with pytest.raises(EngineError, match=r"engine\.memory_gb=1e-07 is too little"):
        answers(engine, [Request("a", chat("sea"), Sampling(1), 0, choices=("1", "2"))])


def test_one_long_prompt_does_not_pad_many_short_ones() -> None:
    for begin, end in _passes([1500, *[2] * 250], 2048):
        sizes = ([1500, *[2] * 250])[begin:end]
        assert len(sizes) * max(sizes) <= 4 * 2048
