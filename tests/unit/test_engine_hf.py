"""The hf engine against `model.generate` and against exact distributions."""

import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_bench import ids_of, said
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from selfreward.chat import encode_prompt, stop_token_ids
from selfreward.engines import open_engine
from selfreward.engines._cascade_memory import Memory
from selfreward.engines.hf import HfEngine
from selfreward.errors import EngineError, ModelError, UsageError
from selfreward.types import Generation, Message, Request, Sampling

WORDS = "write a short poem about the sea name three towns in north how many days are week review response score".split()
GREEDY = Sampling(max_tokens=24, temperature=0)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024},
    # A window shorter than the prompts, on every layer and on some.
    "mistral": {**SMALL, "sliding_window": 8},
    "gemma3_text": {**SMALL, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {**SMALL, "head_dim": 16},
    # Caps low enough to be felt: on attention and on the logits.
    "gemma2": {
        **SMALL, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 8.0,
    },
    "phi3": {**SMALL, "sliding_window": 8},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    # No position_ids, and positions from the attention mask.
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    # Short convolutions beside attention: not plain keys and values.
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
}  # fmt: skip


def tiny_model(kind: str, tokenizer: Any, **settings: Any) -> Any:
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "initializer_range": 0.3, **tokens}
    config = AutoConfig.for_model(kind, **{**common, **ARCHITECTURES[kind], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> HfEngine:
    return HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=64)


def chat(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def ragged_prompts(count: int, longest: int = 40) -> list[tuple[Message, ...]]:
    rng = random.Random(5)
    return [chat(" ".join(rng.choices(WORDS, k=rng.randint(1, longest)))) for _ in range(count)]


def answers(engine: HfEngine, requests: Sequence[Request]) -> dict[str, Generation]:
    replies = list(engine.generate(requests))
    assert len(replies) == len(requests)
    return {reply.request_id: reply for reply in replies}


def generated_by_hf(engine: HfEngine, prompt: Any, max_tokens: int) -> list[int]:
    """Token ids that `model.generate` adds to one prompt on its own, greedily."""
    ids = torch.tensor([encode_prompt(engine.tokenizer, prompt)])
    output = engine.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=sorted({*stop_token_ids(engine.tokenizer), *engine.tokenizer.all_special_ids}),
        pad_token_id=engine.tokenizer.pad_token_id,
    )
    return output[0, ids.shape[1] :].tolist()


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Every forward pass made inside: (prompts, their tokens together) while reading, (replies, 1) for a token of each."""
    shapes: list[tuple[int, int]] = []

    def look(_: Any, args: Any, kwargs: Any) -> None:
        kept, (_, num_tokens) = kwargs.get("logits_to_keep"), kwargs["input_ids"].shape
        shapes.append((num_tokens, 1) if kept is None else (len(kept), num_tokens))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


def text_of(engine: HfEngine, ids: Sequence[int]) -> str:
    return engine.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def next_token_probabilities(engine: HfEngine, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return engine.model(torch.tensor([list(ids)])).logits[0, -1].double().softmax(-1)


# --- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_replies_equal_those_of_generate(kind: str, tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model(kind, tiny_tokenizer), tiny_tokenizer, batch_size=5)
    prompts = ragged_prompts(8)
    with said() as ids:
        replies = answers(engine, [Request(str(i), prompt, GREEDY, seed=i) for i, prompt in enumerate(prompts)])
    lengths = set()
    for index, prompt in enumerate(prompts):
        expected = generated_by_hf(engine, prompt, GREEDY.max_tokens)
        reply = replies[str(index)]
        assert ids[str(index)] == expected, f"prompt {index}"
        assert reply.text == text_of(engine, expected)
        assert reply.num_tokens == len(expected)
        assert reply.num_prompt_tokens == len(encode_prompt(tiny_tokenizer, prompt))
        has_ended = expected[-1] in tiny_tokenizer.all_special_ids
        assert reply.finish_reason == ("stop" if has_ended else "length")
        lengths.add(len(encode_prompt(tiny_tokenizer, prompt)))
    assert len(lengths) > 3, "the prompts should be ragged"


def test_rows_that_end_at_different_steps_leave_the_others_alone(engine: HfEngine) -> None:
    rng = random.Random(1)
    prompts = ragged_prompts(24, longest=12)
    limits = [rng.randint(1, 20) for _ in prompts]
    requests = [Request(str(i), p, Sampling(n, temperature=0), 0) for i, (p, n) in enumerate(zip(prompts, limits, strict=True))]
    ids = ids_of(engine, requests)
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        assert ids[str(index)] == generated_by_hf(engine, prompt, limit)


def test_long_replies_outgrow_the_first_slots(engine: HfEngine) -> None:
    prompts = ragged_prompts(3)
    ids = ids_of(engine, [Request(str(i), p, Sampling(150, temperature=0), 0) for i, p in enumerate(prompts)])
    for index, prompt in enumerate(prompts):
        assert ids[str(index)] == generated_by_hf(engine, prompt, 150)


def test_plain_text_is_continued_without_a_template(engine: HfEngine) -> None:
    reply = answers(engine, [Request("a", "Task: name three", GREEDY, 0)])["a"]
    assert reply.text == text_of(engine, generated_by_hf(engine, "Task: name three", GREEDY.max_tokens))
    assert reply.num_prompt_tokens == len(engine.tokenizer("Task: name three")["input_ids"])


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(1, 1.0, 1.0), Sampling(1, 0.7, 0.9), Sampling(1, 1.3, 1.0, top_k=5)])
def test_first_tokens_follow_the_exact_distribution(engine: HfEngine, sampling: Sampling) -> None:
    prompt = chat("name three towns")
    probabilities = next_token_probabilities(engine, encode_prompt(engine.tokenizer, prompt))
    exact = (probabilities.log() / sampling.temperature).softmax(-1)
    ordered, tokens = exact.sort(descending=True)
    if sampling.top_k:
        ordered = ordered[: sampling.top_k] / ordered[: sampling.top_k].sum()
    kept = int((ordered.cumsum(0) - ordered < sampling.top_p).sum())
    ordered = ordered[:kept] / ordered[:kept].sum()
    draws = 4000
    replies = answers(engine, [Request(str(i), prompt, sampling, seed=i) for i in range(draws)])
    counts = Counter(reply.text for reply in replies.values())
    expected: Counter[str] = Counter()
    for share, token in zip(ordered.tolist(), tokens.tolist(), strict=False):
        expected[text_of(engine, [token])] += share * draws
    assert set(counts) <= set(expected)
    common = [text for text, count in expected.items() if count >= 5]
    observed = [counts[text] for text in common] + [draws - sum(counts[text] for text in common)]
    wanted = [expected[text] for text in common] + [draws - sum(expected[text] for text in common)]
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], [share * sum(observed[:-1]) / sum(wanted[:-1]) for share in wanted[:-1]]
    assert len(wanted) > 2
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_two_tokens_follow_their_joint_distribution(engine: HfEngine) -> None:
    prompt, draws = chat("how many days"), 3000
    start = encode_prompt(engine.tokenizer, prompt)
    expected: Counter[str] = Counter()
    first = next_token_probabilities(engine, start).topk(3)
    for share, token in zip((first.values / first.values.sum()).tolist(), first.indices.tolist(), strict=True):
        second = next_token_probabilities(engine, [*start, token]).topk(3)
        for other, follower in zip((second.values / second.values.sum()).tolist(), second.indices.tolist(), strict=True):
            expected[text_of(engine, [token, follower])] += share * other * draws
    replies = answers(engine, [Request(str(i), prompt, Sampling(2, 1.0, 1.0, top_k=3), seed=i) for i in range(draws)])
    counts = Counter(reply.text for reply in replies.values())
    assert set(counts) <= set(expected)
    texts = [text for text in expected if expected[text] >= 5]
    observed = [counts[text] for text in texts]
    wanted = [expected[text] * sum(observed) / sum(expected[text] for text in texts) for text in texts]
    assert len(texts) > 4
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("sampling", [Sampling(12, 1.0, 1e-6), Sampling(12, 1.5, 1.0, top_k=1), Sampling(12, 1e-8, 1.0)])
def test_the_narrowest_sampling_is_greedy(engine: HfEngine, sampling: Sampling) -> None:
    prompts = ragged_prompts(4)
    narrow = answers(engine, [Request(str(i), prompt, sampling, seed=i) for i, prompt in enumerate(prompts)])
    greedy = answers(engine, [Request(str(i), p, Sampling(12, temperature=0), seed=0) for i, p in enumerate(prompts)])
    assert {key: reply.text for key, reply in narrow.items()} == {key: reply.text for key, reply in greedy.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_request_does_not_depend_on_its_neighbours(engine: HfEngine, batch_size: int) -> None:
    requests = [
        Request(f"{index}/{vote}", prompt, Sampling(10 + vote, 0.7 + 0.1 * vote, 0.9), seed=100 * index + vote)
        for index, prompt in enumerate(ragged_prompts(6))
        for vote in range(3)
    ]
    together = answers(engine, requests)
    assert len({reply.text for reply in together.values()}) > 10
    shuffled = requests.copy()
    random.Random(2).shuffle(shuffled)
    assert answers(HfEngine(engine.model, engine.tokenizer, batch_size), shuffled) == together


# --- sharing, ends, limits ------------------------------------------------------------------------------------------


def test_equal_prompts_are_prefilled_once(engine: HfEngine) -> None:
    prompts = [chat("name three towns"), chat("name three days")]
    requests = [Request(f"{i}/{n}", p, Sampling(4, 1.0, 1.0), n) for n in range(8) for i, p in enumerate(prompts)]
    with watched(engine.model) as passes:
        answers(engine, requests)
    first, second = (encode_prompt(engine.tokenizer, prompt) for prompt in prompts)
    num_shared = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert passes[:2] == [(1, num_shared), (2, len(first) + len(second) - 2 * num_shared)], "their beginning, and the rest"
    assert passes[2][0] <= 16
    assert all(width == 1 for _, width in passes[2:])
    assert len(passes) <= 5, "the last token of a reply needs no pass of its own"


def test_a_batch_holds_no_more_replies_than_asked(engine: HfEngine) -> None:
    small = HfEngine(engine.model, engine.tokenizer, batch_size=4)
    requests = [Request(f"{i}/{n}", p, GREEDY, n) for i, p in enumerate(ragged_prompts(3)) for n in range(10)]
    with watched(engine.model) as passes:
        replies = answers(small, requests)
    assert max(rows for rows, _ in passes) == 4
    assert sum(rows for rows, width in passes if width == 1) < 4 * len(passes)
    for index in range(3):
        assert len({replies[f"{index}/{n}"].text for n in range(10)}) == 1


def test_a_stop_string_ends_a_reply_and_is_cut(engine: HfEngine) -> None:
    for prompt in ragged_prompts(6):
        full = answers(engine, [Request("a", prompt, GREEDY, 0)])["a"]
        stop = full.text[7:10]
        cut = answers(engine, [Request("a", prompt, Sampling(24, 0, stop=("never there", stop)), 0)])["a"]
        assert cut.text == full.text[: full.text.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.num_tokens <= full.num_tokens
        # It ends with the very token that completes the stop string.
        ids = generated_by_hf(engine, prompt, 24)
        assert stop in text_of(engine, ids[: cut.num_tokens])
        assert stop not in text_of(engine, ids[: cut.num_tokens - 1])


def test_stop_strings_belong_to_their_request_only(engine: HfEngine) -> None:
    prompt = ragged_prompts(1)[0]
    full = answers(engine, [Request("a", prompt, GREEDY, 0)])["a"]
    with_stop = Request("b", prompt, Sampling(24, 0, stop=(full.text[5:8],)), 0)
    both = answers(engine, [Request("a", prompt, GREEDY, 0), with_stop])
    assert both["a"] == full
    assert len(both["b"].text) < len(full.text)


def test_an_end_token_ends_a_reply_and_is_not_in_its_text(tiny_tokenizer: Any) -> None:
    model = tiny_model("llama", tiny_tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    # All logits are equal, so the first token of the vocabulary is the most likely one: make that one the end token.
    engine = HfEngine(model, tiny_tokenizer, batch_size=4)
    engine._parts.reader.stop_ids = frozenset({0})
    ended = answers(engine, [Request("a", chat("x"), Sampling(5, 0), 0)])["a"]
    assert (ended.text, ended.num_tokens, ended.finish_reason) == ("", 1, "stop")


def test_a_prompt_without_room_is_refused_and_others_are_answered(engine: HfEngine) -> None:
    words = "sea " * 2000
    replies = answers(engine, [Request("long", chat(words), GREEDY, 0), Request("ok", chat("sea"), GREEDY, 0)])
    refused = replies["long"]
    assert (refused.text, refused.finish_reason, refused.error, refused.num_tokens) == ("", "error", "too_long", 0)
    assert refused.num_prompt_tokens == len(encode_prompt(engine.tokenizer, chat(words)))
    assert replies["ok"] == answers(engine, [Request("ok", chat("sea"), GREEDY, 0)])["ok"]


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_reply_ends_where_the_context_ends(tiny_tokenizer: Any, room: int) -> None:
    prompt = chat("name three towns in the north")
    size = len(encode_prompt(tiny_tokenizer, prompt))
    model = tiny_model("gpt2", tiny_tokenizer)
    model.config.max_position_embeddings = size + room
    reply = answers(HfEngine(model, tiny_tokenizer, batch_size=4), [Request("a", prompt, GREEDY, 0)])["a"]
    assert (reply.finish_reason, reply.num_tokens) == (("length", room) if room else ("error", 0))


def test_requests_without_a_meaning_are_refused(engine: HfEngine) -> None:
    ok = Request("a", chat("sea"), GREEDY, 0)
    with pytest.raises(UsageError, match="two requests have the id 'a'"):
        engine.generate([ok, ok])
    for wrong in (Sampling(0), Sampling(4, -1.0), Sampling(4, 1.0, 0.0), Sampling(4, 1.0, 1.1), Sampling(4, stop=("",))):
        with pytest.raises(UsageError, match="request 'a' has"):
            engine.generate([Request("a", chat("sea"), wrong, 0)])
    with pytest.raises(EngineError, match="'a' has no tokens"):
        engine.generate([Request("a", "", GREEDY, 0)])
    assert list(engine.generate([])) == []


def test_broken_weights_are_named(tiny_tokenizer: Any) -> None:
    model = tiny_model("llama", tiny_tokenizer)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    engine = HfEngine(model, tiny_tokenizer, batch_size=4)
    with pytest.raises(EngineError, match="non-finite"):
        list(engine.generate([Request("a", chat("sea"), GREEDY, 0)]))


def test_running_out_of_memory_names_the_setting(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(Memory, "admit", full)
    with pytest.raises(EngineError, match=r"no memory for 1 reply at a time .*engine\.batch_size=64"):
        list(engine.generate([Request("a", chat("sea"), GREEDY, 0)]))


def test_a_model_without_a_cache_is_refused(tiny_tokenizer: Any) -> None:
    config = AutoConfig.for_model("mamba", vocab_size=len(tiny_tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="past_key_values"):
        HfEngine(AutoModelForCausalLM.from_config(config), tiny_tokenizer, batch_size=4)


# --- opening, closing, memory ---------------------------------------------------------------------------------------


def test_open_engine_serves_a_model_folder(tiny_model_dir: Path, make_config: Callable[..., Any]) -> None:
    request = Request("a", chat("name three towns"), GREEDY, 0)
    with open_engine(str(tiny_model_dir), make_config()) as engine:
        assert isinstance(engine, HfEngine)
        assert engine.context_length == 1024
        assert not torch.is_inference_mode_enabled()
        replies = engine.generate([request])
        assert next(replies).text == text_of(engine, generated_by_hf(engine, request.prompt, 24))
        assert not torch.is_inference_mode_enabled()


def test_the_folder_asked_for_answers_with_the_settings_given(
    tiny_model_dir: Path, tiny_tokenizer: Any, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    other = tiny_model("qwen2", tiny_tokenizer)
    other.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = make_config(model={"path": str(tiny_model_dir), "dtype": "bfloat16"}, engine={"batch_size": 3})
    with open_engine(str(tmp_path), config) as engine:
        assert isinstance(engine, HfEngine)
        assert torch.equal(engine.model.lm_head.weight, other.lm_head.weight.bfloat16())
        with watched(engine.model) as passes:
            answers(engine, [Request(str(i), p, Sampling(5, 1.0, 0.9), i) for i, p in enumerate(ragged_prompts(7))])
    assert max(rows for rows, _ in passes) == 3


@pytest.mark.gpu
def test_a_gpu_gives_the_same_greedy_replies(tiny_model_dir: Path, make_config: Callable[..., Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    requests = [Request(str(i), prompt, GREEDY, seed=i) for i, prompt in enumerate(ragged_prompts(8))]
    sampled = [Request(f"s{i}", prompt, Sampling(24, 0.7, 0.9), seed=i) for i, prompt in enumerate(ragged_prompts(8))]
    with open_engine(str(tiny_model_dir), make_config()) as engine:
        on_cpu = answers(engine, requests)
    with open_engine(str(tiny_model_dir), make_config(engine={"device": "cuda"})) as engine:
        assert answers(engine, requests) == on_cpu
        assert len(answers(engine, sampled)) == len(sampled)


def test_closing_frees_the_model(tiny_tokenizer: Any) -> None:
    engine = HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=4)
    request = Request("a", chat("sea"), GREEDY, 0)
    model = weakref.ref(engine.model)
    list(engine.generate([request]))
    engine.close()
    engine.close()
    assert model() is None
    with pytest.raises(EngineError, match="closed"):
        engine.generate([request])
