"""Packed, compacted and plain scoring are one function of weights and rows; a step's result does not depend on its cuts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_reference import (
    ANSWERS,
    LLAMA_LIKE,
    TOWNS,
    VOCABULARY,
    Log,
    context,
    dpo_options,
    examples,
    make_rows,
    pairs,
    sft_options,
    token_logps,
    train_dpo_plainly,
    train_sft_plainly,
    user,
    weights,
)

from selfreward.progress import NullProgress
from selfreward.training import SftExample
from selfreward.training._base import load_base
from selfreward.training._packing import _put, _take, pack
from selfreward.training._scoring import WAYS, Scorer, make_scorer
from selfreward.training.common import Row
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft
from selfreward.types import PreferencePair

SEED = 2**62 + 5


def make_model(family):
    import transformers as t

    torch.manual_seed(0)
    configs = {
        "llama": lambda: t.LlamaConfig(**LLAMA_LIKE),
        "llama tied": lambda: t.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True),
        "qwen2": lambda: t.Qwen2Config(**LLAMA_LIKE),
        "qwen3": lambda: t.Qwen3Config(**LLAMA_LIKE, head_dim=8),
        "mistral": lambda: t.MistralConfig(**LLAMA_LIKE, sliding_window=7),
        "gemma": lambda: t.GemmaConfig(**LLAMA_LIKE, head_dim=8),
        "gemma2": lambda: t.Gemma2Config(**LLAMA_LIKE, head_dim=8, sliding_window=7),
        "gemma3": lambda: t.Gemma3TextConfig(**LLAMA_LIKE, head_dim=8, sliding_window=7),
        "granite": lambda: t.GraniteConfig(**LLAMA_LIKE, logits_scaling=3.0, attention_multiplier=0.3),
        "cohere": lambda: t.CohereConfig(**LLAMA_LIKE, logit_scale=0.3),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
        ),
        "bloom": lambda: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
        "mixtral": lambda: t.MixtralConfig(**LLAMA_LIKE, num_local_experts=4, router_aux_loss_coef=0.5),
    }
    return t.AutoModelForCausalLM.from_config(configs[family]()).eval()


def score(model, way, rows):
    """Log-probabilities of all answers' tokens, and the gradient of their weighted sum."""
    scorer = Scorer(model, way)
    logps, _ = scorer.score(scorer.pack(rows))
    model.zero_grad()
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


FASTEST = {"gemma2": "compacted", "bloom": "compacted", "mixtral": "plain"}


@pytest.mark.parametrize("num_sides", [1, 2])
@pytest.mark.parametrize(
    "family",
    ["llama", "llama tied", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "granite", "cohere", "gpt2", "bloom"],
)
def test_every_way_gives_the_log_probabilities_and_gradients_of_the_models_own_forward(family, num_sides):
    model, rows, log = make_model(family), make_rows(num_sides), Log()
    answers = [(row, row.answers[side]) for side in range(num_sides) for row in rows]
    with torch.no_grad():
        by_hand = torch.cat([token_logps(model, row.prompt_ids, answer) for row, answer in answers])
    plain, plain_gradients = score(model, "plain", rows)
    assert torch.allclose(plain, by_hand, atol=1e-4)
    way = make_scorer(model, rows, "cpu", log.logger).way
    assert way == FASTEST.get(family, "packed")
    assert len(log.messages) == WAYS.index(way), "each way that was not taken has its reason in the log"
    logps, gradients = score(model, way, rows)
    assert torch.allclose(logps, by_hand, atol=1e-4)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        scale = plain_gradients[name].abs().max().clamp(min=1.0)
        assert torch.allclose(gradient, plain_gradients[name], rtol=0, atol=1e-4 * scale), name


def test_a_slower_way_is_told_with_its_reason():
    log = Log()
    assert make_scorer(make_model("gemma2"), make_rows(1), "cpu", log.logger).way == "compacted"
    assert log.messages[0].startswith(
        "training cannot score this model packed, and takes a slower way: ValueError: its attention"
    )


def test_a_model_that_does_something_of_its_own_to_its_logits_is_scored_plainly():
    model, log = make_model("llama"), Log()
    forward = type(model).forward

    class Bent(type(model)):
        def forward(self, *args, **kwargs):
            outputs = forward(self, *args, **kwargs)
            outputs.logits = outputs.logits * torch.linspace(0, 1, VOCABULARY)
            return outputs

    model.__class__ = Bent
    assert make_scorer(model, make_rows(2), "cpu", log.logger).way == "plain"
    assert [message.split(":")[0].split(", ")[0] for message in log.messages] == [
        f"training cannot score this model {way}" for way in ("packed", "compacted")
    ]
    assert "differ by" in log.messages[1]
    assert model.config._attn_implementation != "selfreward_packed"


def test_many_logits_are_computed_in_pieces(monkeypatch):
    model, rows = make_model("llama"), make_rows(2)
    whole, gradients = score(make_scorer(model, rows, "cpu", Log().logger).model, "packed", rows)
    monkeypatch.setattr("selfreward.training._scoring._MOST_LOGITS", 7 * VOCABULARY)
    in_pieces, again = score(model, "packed", rows)
    assert torch.allclose(whole, in_pieces, atol=1e-6)
    assert all(torch.allclose(gradients[name], again[name], atol=1e-4) for name in gradients)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=9),
    st.integers(1, 2),
    st.booleans(),
)
def test_a_packed_row_holds_every_token_once_and_every_sequence_whole(lengths, num_sides, in_one_block):
    counter = iter(range(10**6))
    rows = [
        Row([next(counter) for _ in range(prompt)], tuple([next(counter) for _ in range(n)] for n in sides[:num_sides]))
        for prompt, *sides in lengths
    ]
    batch = pack(rows, in_one_block)
    ids = batch.input_ids[0]
    assert len(set(ids.tolist())) == len(ids) == next(counter)
    sequences = []
    start = 0
    for count, width in batch.blocks:
        for _ in range(count):
            slots = slice(start, start + width)
            sequences.append(ids[batch.slot_tokens[slots]][batch.filled[slots]].tolist())
            places = batch.positions[0, batch.slot_tokens[slots]][batch.filled[slots]]
            assert places.tolist() == list(range(len(sequences[-1])))
            start += width
    assert start == len(batch.slot_tokens)
    expected = [row.prompt_ids + answer for row in rows for answer in row.answers]
    assert sorted(sequences) == sorted(expected)
    assert torch.equal(batch.slot_tokens[batch.homes], torch.arange(len(ids)))
    assert torch.equal(ids[batch.slot_tokens[batch.slot_readers]], ids[batch.readers])
    assert batch.num_first_tokens == sum(len(row.answers[0]) for row in rows)
    assert in_one_block <= (len(batch.blocks) == 1)


@pytest.mark.parametrize("num_sides", [1, 2])
def test_taking_out_and_putting_back_have_right_gradients(num_sides):
    batch = pack(make_rows(num_sides, longest=4, number=3))
    number = batch.input_ids.shape[1]
    batch = type(batch)(**{**batch.as_inputs(), "owned": batch.owned.double()})
    tokens = torch.randn(number, 3, dtype=torch.float64, requires_grad=True)
    filled = batch.filled[:, None]
    assert torch.autograd.gradcheck(lambda x: torch.where(filled, _take(x, batch), 0.0), (tokens,))
    slots = torch.randn(len(batch.slot_tokens), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _put(x, batch), (slots,))


def test_bf16_on_a_cpu_without_it_is_told(tiny_model_dir, make_config, monkeypatch):
    from selfreward.training import TrainContext

    for has, expected in ((False, ["bf16 is on, but this CPU has no instructions for bfloat16"]), (True, [])):
        log = Log()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx2": True, "avx512_bf16": has})
        load_base(tiny_model_dir, sft_options(bf16=True), TrainContext(make_config(), 1, NullProgress(), logger=log.logger))
        assert [message[: len(expected[0])] for message in log.messages] == expected


# --- a step, however it is cut ------------------------------------------------------------------------------------


def unlike_pairs(number):
    """Pairs of which no two share a prompt. AdamW's first step goes by a gradient's sign alone: an answer chosen here and
    rejected there would leave some weights a gradient of nothing but rounding."""
    return [
        PreferencePair(
            f"p{i}", user(TOWNS[i % 4] + " x" * i), ANSWERS[i % 5] + " a" * (i % 3), ANSWERS[(i + 2) % 5], 4.0, 1.0, "", ""
        )
        for i in range(number)
    ]


def assert_same_weights(folder, model):
    """To 1e-5, but for one weight in two thousand: AdamW turns a gradient of 1e-8 into a step whose size is rounding's."""
    trained = weights(folder)
    distances = torch.cat([(trained[name] - weight.detach()).abs().flatten() for name, weight in model.named_parameters()])
    assert (distances > 1e-5).float().mean() < 5e-4
    assert distances.max() < 1e-3


@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
def test_dpo_does_not_depend_on_the_size_of_micro_batches(nll_weight, tiny_model_dir, make_config, tmp_path):
    """Answers of different lengths, and a last step of seven pairs, which micro-batches of two and four do not divide."""
    config, items = make_config(), unlike_pairs(15)
    settings = {"batch_size": 8, "nll_weight": nll_weight}
    plainly = dpo_options(micro_batch_size=8, **settings)
    losses, model = train_dpo_plainly(tiny_model_dir, items, plainly, config, SEED)
    first = None
    for size in (1, 2, 4, 8):
        options = dpo_options(micro_batch_size=size, **settings)
        result = train_dpo(tiny_model_dir, items, tmp_path / "out", options, context(config, SEED))
        first = first or result
        assert [entry["loss"] for entry in result.history] == pytest.approx(losses, abs=1e-5), size
        for step, (entry, other) in enumerate(zip(result.history, first.history, strict=True)):
            by_rounding = {"rewards/accuracies"} if step == 0 else set()  # all rewards are zero there
            same = entry.keys() - by_rounding
            assert {key: entry[key] for key in same} == pytest.approx({key: other[key] for key in same}, abs=1e-4), size
            assert entry["loss"] == pytest.approx(entry["dpo_loss"] + nll_weight * entry["nll"], abs=1e-5)
        assert_same_weights(tmp_path / "out", model)


def test_sft_does_not_depend_on_the_size_of_micro_batches(tiny_model_dir, make_config, tmp_path):
    config = make_config()
    items = [SftExample(pair.id, pair.messages, pair.chosen) for pair in unlike_pairs(15)]
    losses, model = train_sft_plainly(tiny_model_dir, items, sft_options(batch_size=8, micro_batch_size=8), config, SEED)
    for size in (1, 2, 8):
        options = sft_options(batch_size=8, micro_batch_size=size)
        result = train_sft(tiny_model_dir, items, tmp_path / "out", options, context(config, SEED))
        assert [entry["loss"] for entry in result.history] == pytest.approx(losses, abs=1e-5), size
        assert_same_weights(tmp_path / "out", model)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_experts_are_balanced_by_the_models_own_loss(kind, tiny_tokenizer, make_config, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    finals = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        shape = {**LLAMA_LIKE, "vocab_size": len(tiny_tokenizer), "num_local_experts": 4, "router_aux_loss_coef": weight}
        start = tmp_path / f"start {weight}"
        MixtralForCausalLM(MixtralConfig(**shape)).save_pretrained(start)
        tiny_tokenizer.save_pretrained(start)
        if kind == "sft":
            result = train_sft(start, examples(), tmp_path / f"{weight}", sft_options(num_epochs=1), context(make_config()))
        else:
            result = train_dpo(start, pairs(), tmp_path / f"{weight}", dpo_options(num_epochs=1), context(make_config()))
        finals[weight] = result.first_loss
    assert 0.4 < finals[0.5] - finals[0.0] < 3  # half of a term that is 2, the experts a token, when all are used alike


def test_gradient_checkpointing_changes_nothing_packed(tiny_model_dir, make_config, tmp_path):
    config = make_config()
    for name, on in (("plain", False), ("frugal", True)):
        train_dpo(tiny_model_dir, pairs(), tmp_path / name, dpo_options(gradient_checkpointing=on), context(config, SEED))
    plain, frugal = weights(tmp_path / "plain"), weights(tmp_path / "frugal")
    assert all(torch.allclose(plain[name], frugal[name], rtol=0, atol=1e-6) for name in plain)
