"""Choices weighed by the hf engine against a computation by hand: whole sequences, one forward pass each, float64."""

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from test_engine_hf import answers, tiny_model, watched
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfreward.chat import encode_prompt, render
from selfreward.config import EndpointConfig
from selfreward.engines.hf import HfEngine
from selfreward.engines.openai import OpenAIEngine
from selfreward.errors import EngineError, UsageError
from selfreward.types import Generation, Message, Request, Sampling

ONE = Sampling(1)
TEXT = "how good is it ? Score: 4 Score: 10 Score: 100 it is fine and so on 0 1 2 3 5 6 7 8 9"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}judge:{% endif %}"
)
SCORES_5, SCORES_10, SCORES_100 = (tuple(str(score) for score in range(top + 1)) for top in (5, 10, 100))
KINDS = ("gpt2-merged", "gpt2-digits", "metaspace", "metaspace-digits", "words")


def wrap(core: Any, **tokens: str) -> Any:
    core.add_special_tokens(["<e>", "<p>"])
    settings = {"eos_token": "<e>", "pad_token": "<p>", "clean_up_tokenization_spaces": False, **tokens}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE, model_max_length=512, **settings)


@cache
def tokenizer_of(kind: str) -> Any:
    """Byte-level BPE with or without numbers in one piece (` 4`, ` 100`), Llama-like metaspace BPE, and whole words."""
    numbers = " ".join(f"x {number}" for number in range(101))
    if kind == "words":
        words = ["<u>", "user:", "judge:", "Score:", *dict.fromkeys([*TEXT.replace("Score:", "").split(), *SCORES_100])]
        core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<u>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return wrap(core, unk_token="<u>")
    core = Tokenizer(models.BPE())
    is_merged = "digits" not in kind
    split = [pre_tokenizers.Digits(individual_digits=not is_merged)] if not is_merged else []
    if kind.startswith("gpt2"):
        core.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), *split])
        core.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*"▁:\n?x", *"0123456789", *"abcdefghijklmnopqrstuvwxyzS"})
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    core.train_from_iterator([TEXT, numbers, numbers] * 3, trainer)
    return wrap(core)


@cache
def engine_of(kind: str, architecture: str = "llama", batch_size: int = 64) -> HfEngine:
    tokenizer = tokenizer_of(kind)
    return HfEngine(tiny_model(architecture, tokenizer), tokenizer, batch_size)


def prompts(count: int) -> list[tuple[Message, ...]]:
    rng = random.Random(8)
    return [(Message("user", " ".join(rng.choices("how good is it fine and so on".split(), k=rng.randint(1, 30)))),)
            for _ in range(count)]  # fmt: skip


def begun(tokenizer: Any, prompt: tuple[Message, ...], text: str) -> list[int]:
    """A prompt and the beginning of its reply as one text, as the template writes both; apart where whole words would join."""
    start = encode_prompt(tokenizer, prompt)
    whole = list(tokenizer(render(tokenizer, prompt, True) + text, add_special_tokens=False)["input_ids"])
    return whole if whole[: len(start)] == start else start + tokenizer(text, add_special_tokens=False)["input_ids"]


def by_hand(engine: HfEngine, request: Request) -> list[float]:
    """Log-probabilities: of all tokens of a choice that prefix and choices do not begin with alike, and of an end of the word
    after them. One pass over the whole sequence for each choice, nothing shared, float64."""
    tokenizer, model = engine.tokenizer, engine.model
    rows = [begun(tokenizer, request.prompt, request.reply_prefix + choice) for choice in ("", *request.choices)]
    shared = next(n for n in range(len(rows[0]) + 1) if len({tuple(row[: n + 1]) for row in rows}) > 1)
    values = []
    for row in rows[1:]:
        with torch.no_grad():
            logps = model.double()(torch.tensor([row])).logits[0].log_softmax(-1)
        total = sum(float(logps[place - 1, row[place]]) for place in range(shared, len(row)))
        said = tokenizer.decode(row[shared:])
        longer = [t for t in range(len(tokenizer)) if tokenizer.decode([*row[shared:], t]).removeprefix(said)[:1].isalnum()]
        values.append(total + math.log1p(-float(logps[-1, longer].exp().sum())))
    model.float()
    return values


def ask(prompt: Any, prefix: str, choices: Sequence[str], request_id: str = "a") -> Request:
    return Request(request_id, prompt, ONE, 0, prefix, tuple(choices))


def weigh(engine: HfEngine, request: Request) -> Generation:
    return answers(engine, [request])[request.id]


@pytest.mark.parametrize("prefix", ["Score: ", "it is fine and so on Score: "])
@pytest.mark.parametrize("choices", [SCORES_5, SCORES_10, SCORES_100], ids=["0-5", "0-10", "0-100"])
@pytest.mark.parametrize("kind", KINDS)
def test_choices_are_weighed_as_by_hand(kind: str, choices: tuple[str, ...], prefix: str) -> None:
    engine = engine_of(kind)
    for prompt in prompts(2 if len(choices) > 20 else 4):
        request = ask(prompt, prefix, choices)
        reply = weigh(engine, request)
        assert reply.choice_logprobs == pytest.approx(by_hand(engine, request), abs=5e-5)
        assert (reply.text, reply.num_tokens, reply.finish_reason) == ("", 0, "stop")
        assert 0 < sum(map(math.exp, reply.choice_logprobs or ())) <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["gpt2-merged", "gpt2-digits"])
def test_the_space_before_a_score_may_stand_on_either_side(kind: str) -> None:
    """Where it merges with the number, `Score: ` + `4` and `Score:` + ` 4` are one event; where it is a token of its own, it is
    given in the first and weighed in the second, for all choices alike."""
    engine, prompt = engine_of(kind), prompts(1)[0]
    behind = weigh(engine, ask(prompt, "Score:", [f" {score}" for score in SCORES_10])).choice_logprobs or ()
    before = weigh(engine, ask(prompt, "Score: ", SCORES_10)).choice_logprobs or ()
    gap = before[0] - behind[0]
    assert before == pytest.approx([value + gap for value in behind], abs=1e-5)
    assert (gap > 0.01) == (kind == "gpt2-digits")


def test_numbers_of_several_tokens_are_in_the_tests() -> None:
    """What the tests above are about: a merged space, a space of its own, digits in pieces, whole words."""

    def pieces(kind: str, text: str) -> list[str]:
        return tokenizer_of(kind).tokenize(text)

    assert pieces("gpt2-merged", "Score: 4")[-1] == "Ġ4"
    assert pieces("gpt2-merged", "Score: 10")[-1] == "Ġ10"
    assert pieces("gpt2-digits", "Score: 10")[-2:] == ["1", "0"]
    assert pieces("metaspace", "Score: 4")[-1] == "▁4"
    assert pieces("metaspace-digits", "Score: 10")[-3:] == ["▁", "1", "0"]
    assert pieces("words", "Score: 10")[-1] == "10"


def bigram_model(tokenizer: Any, following: dict[str, dict[str, float]]) -> Any:
    """A Llama whose next token depends on the last one alone, with exactly these probabilities (unnamed tokens: uniform)."""
    size = 4 * ((len(tokenizer) + 3) // 4)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=False, rms_norm_eps=1e-12,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    table = torch.full((len(tokenizer), len(tokenizer)), 1 / len(tokenizer))
    for token, shares in following.items():
        row = table[tokenizer.convert_tokens_to_ids(token)]
        row.fill_((1 - sum(shares.values())) / (len(tokenizer) - len(shares)) + 1e-12)
        for name, share in shares.items():
            row[tokenizer.convert_tokens_to_ids(name)] = share
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        # The norm makes a one-hot vector sqrt(size) long.
        model.lm_head.weight[:, : len(tokenizer)] = table.log().T / math.sqrt(size)
    return model


@pytest.mark.parametrize(("kind", "space"), [("gpt2-digits", "Ġ"), ("metaspace-digits", "▁")])
def test_a_number_that_begins_another_one_is_said_only_by_itself(kind: str, space: str) -> None:
    tokenizer = tokenizer_of(kind)
    end = tokenizer.eos_token
    colon = tokenizer.convert_ids_to_tokens(begun(tokenizer, prompts(1)[0], "Score:")[-1])
    following = {
        colon: {space: 0.9},
        space: {"1": 0.5, "4": 0.3},
        "1": {"0": 0.8, end: 0.2},
        "4": {end: 0.6, "5": 0.4},
        "0": {end: 1.0},
    }
    engine = HfEngine(bigram_model(tokenizer, following), tokenizer, batch_size=64)
    reply = weigh(engine, ask(prompts(1)[0], "Score:", [f" {score}" for score in SCORES_10]))
    weights = dict(zip(SCORES_10, map(math.exp, reply.choice_logprobs or ()), strict=True))
    assert weights["1"] == pytest.approx(0.9 * 0.5 * 0.2, rel=1e-4)
    assert weights["10"] == pytest.approx(0.9 * 0.5 * 0.8, rel=1e-4)
    assert weights["4"] == pytest.approx(0.9 * 0.3 * 0.6, rel=1e-4), "45 is no 4"


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "lfm2", "gemma3_text"])
def test_every_kind_of_cache_serves(architecture: str) -> None:
    engine = engine_of("gpt2-digits", architecture)
    requests = [ask(prompt, "Score: ", SCORES_10, str(index)) for index, prompt in enumerate(prompts(4))]
    replies = answers(engine, requests)
    for request in requests:
        assert replies[request.id].choice_logprobs == pytest.approx(by_hand(engine, request), abs=5e-5)


@pytest.mark.parametrize("kind", ["gpt2-digits", "words"])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 256])
def test_a_request_does_not_depend_on_its_batch(kind: str, batch_size: int) -> None:
    requests = [ask(prompt, "Score: ", SCORES_10, str(index)) for index, prompt in enumerate(prompts(7))]
    requests.append(ask(prompts(1)[0], "it is ", SCORES_5, "others"))
    sampled = Request("sampled", prompts(1)[0], Sampling(5, 0.7), 3)
    together = answers(engine_of(kind, batch_size=batch_size), [*requests, sampled])
    for request in requests:
        alone = weigh(engine_of(kind), request)
        assert together[request.id].choice_logprobs == pytest.approx(alone.choice_logprobs, abs=1e-5)
    assert together["sampled"] == answers(engine_of(kind), [sampled])["sampled"]


def test_words_take_one_pass_and_digits_a_short_step_more() -> None:
    requests = [ask(prompt, "Score: ", SCORES_5, str(index)) for index, prompt in enumerate(prompts(5))]
    sizes = [len(encode_prompt(tokenizer_of("words"), prompt)) + 1 for prompt in prompts(5)]
    with watched(engine_of("words").model) as passes:
        replies = answers(engine_of("words"), requests)
    root, (num_prompts, num_tokens) = sum(size for _, size in passes[:-1]), passes[-1]
    assert num_prompts == 5, "one place for each prompt, whatever the number of choices"
    assert num_tokens == sum(sizes) - 5 * root, "what all prompts begin with is read once"
    assert replies["0"].num_prompt_tokens == len(encode_prompt(tokenizer_of("words"), prompts(1)[0])) + 1
    with watched(engine_of("gpt2-merged").model) as passes:
        answers(engine_of("gpt2-merged"), requests)
    assert [rows for rows, width in passes if width > 1][-1] == 5
    assert [rows for rows, width in passes if width == 1] == [30], "one token of each choice, to see whether the number ends"


def test_plain_text_is_continued_as_one_text() -> None:
    engine = engine_of("gpt2-merged")
    values = weigh(engine, ask("how good is it ? Score:", "", [" 1", " 2"])).choice_logprobs
    assert values == pytest.approx(weigh(engine, ask("how good is it ?", " Score: ", ["1", "2"])).choice_logprobs, abs=1e-6)


def test_a_reply_can_be_made_to_begin_with_a_text() -> None:
    """Greedy replies behind a prefix are what the whole sequence goes on with, spaces included."""
    for kind in KINDS:
        engine, prompt = engine_of(kind), prompts(1)[0]
        greedy = Sampling(8, 0)
        reply = answers(engine, [Request("a", prompt, greedy, 0, "it is fine"), Request("b", prompt, greedy, 0)])["a"]
        ids = begun(engine.tokenizer, prompt, "it is fine")
        start = ids[len(encode_prompt(engine.tokenizer, prompt)) :]
        assert reply.num_prompt_tokens == len(ids)
        new: list[int] = []
        while len(new) < 8 and not set(new) & {engine.tokenizer.eos_token_id, engine.tokenizer.pad_token_id}:
            with torch.no_grad():
                new.append(int(engine.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        kept = [token for token in new if token not in (engine.tokenizer.eos_token_id, engine.tokenizer.pad_token_id)]
        decode = engine.tokenizer.decode
        assert reply.text == decode(start + kept).removeprefix(decode(start)), kind


def test_what_cannot_be_weighed_is_named() -> None:
    prompt = prompts(1)[0]
    with pytest.raises(EngineError, match="no tokens for '101', one of the choices of request 'a'"):
        weigh(engine_of("words"), ask(prompt, "Score: ", ["1", "101"]))
    with pytest.raises(EngineError, match="no tokens before its choices"):
        weigh(engine_of("words"), ask("", "", ["1", "2"]))
    for choices in (["1", "1"], ["1", " "], ["1", ""]):
        with pytest.raises(UsageError, match="must differ, and none may be blank"):
            weigh(engine_of("words"), ask(prompt, "Score: ", choices))
    with pytest.raises(UsageError, match="'4' and '4 points': a reply with the second one says both"):
        weigh(engine_of("words"), ask(prompt, "Score: ", ["4", "4 points"]))
    broken = tiny_model("llama", tokenizer_of("words"))
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(EngineError, match="non-finite"):
        weigh(HfEngine(broken, tokenizer_of("words"), 4), ask(prompt, "Score: ", SCORES_5))


def test_an_endpoint_refuses_to_weigh_before_it_asks_anybody() -> None:
    nobody = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m")
    for request in (ask(prompts(1)[0], "", ["1", "2"]), ask(prompts(1)[0], "Score:", ())):
        with OpenAIEngine("far", nobody) as engine, pytest.raises(EngineError, match=r"'far' takes no judge\.mode=expected"):
            engine.generate([request])


@pytest.mark.parametrize("room", [0, 1])
def test_a_prompt_without_room_for_a_choice_is_refused(room: int) -> None:
    tokenizer, prompt = tokenizer_of("words"), prompts(1)[0]
    model = tiny_model("gpt2", tokenizer)
    model.config.max_position_embeddings = len(encode_prompt(tokenizer, prompt)) + 1 + room
    reply = weigh(HfEngine(model, tokenizer, 4), ask(prompt, "Score: ", SCORES_5))
    assert (reply.finish_reason, reply.error) == (("stop", None) if room else ("error", "too_long"))
    assert (reply.choice_logprobs is not None) == bool(room)
