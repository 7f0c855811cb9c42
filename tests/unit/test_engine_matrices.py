"""Large matrices packed for a CPU: the same products, few sizes, and an engine that answers as the model does."""

import copy
import gc
import logging
import platform
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engine_hf import answers, generated_by_hf, ragged_prompts, text_of, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from selfreward.engines import _matrices
from selfreward.engines._matrices import PackedLinear, filled, pack
from selfreward.engines.hf import HfEngine
from selfreward.errors import EngineError
from selfreward.types import Request, Sampling

needs_library = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available(),
    reason="this PyTorch has no oneDNN for x86",
)


def wide_model(kind: str, tokenizer: Any) -> Any:
    """A small model whose three products with the intermediate size are large enough to be packed; the others are not."""
    return tiny_model(kind, tokenizer, hidden_size=128, intermediate_size=1024, initializer_range=0.2)


@dataclass(frozen=True)
class Plain:
    """A model that no engine has taken over."""

    model: Any
    tokenizer: Any


def linear(size_in: int, size_out: int, bias: bool = True) -> torch.nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Linear(size_in, size_out, bias)


def packed(plain: torch.nn.Linear) -> PackedLinear:
    return PackedLinear(plain.weight, plain.bias)


class Calls(TorchDispatchMode):
    """Notes how many rows each packed product gets."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_linear_pointwise" in str(function):
            self.rows.append(len(args[0]))
        return function(*args, **(kwargs or {}))


@needs_library
def test_packing_works_where_the_library_is() -> None:
    # A trial that fails would switch it off, and with it all tests below.
    assert _matrices.is_possible()


@needs_library
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 64), (7, 64), (1, 33, 64), (3, 5, 64), (2, 0, 64), (300, 64)])
def test_packed_products_are_those_of_the_weights(shape: tuple[int, ...], bias: bool) -> None:
    plain = linear(64, 48, bias)
    states = torch.randn(*shape)
    with torch.inference_mode():
        found, wanted = packed(plain)(states), plain.double()(states.double())
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@needs_library
@pytest.mark.parametrize(("size_in", "size_out"), [(67, 131), (72, 1031), (1, 1), (1031, 3)])
def test_sizes_need_not_be_round(size_in: int, size_out: int) -> None:
    plain = linear(size_in, size_out)
    states = torch.randn(19, size_in)
    with torch.inference_mode():
        torch.testing.assert_close(packed(plain)(states), plain(states), atol=1e-4, rtol=1e-4)
    assert torch.equal(packed(plain).weight, plain.weight)


@needs_library
def test_inputs_that_do_not_lie_in_one_piece_are_multiplied_too() -> None:
    plain = linear(64, 48)
    states = torch.randn(2, 64, 10).transpose(1, 2)[:, ::3]
    with torch.inference_mode():
        torch.testing.assert_close(packed(plain)(states), plain(states), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 5000))
def test_filling_is_at_most_an_eighth(num_rows: int) -> None:
    assert num_rows <= filled(num_rows) <= num_rows * 9 / 8
    assert filled(filled(num_rows)) == filled(num_rows)


def test_there_are_few_sizes() -> None:
    # Each size keeps a program of its own in memory: 8 between one and twice as many rows, however many rows come.
    assert len({filled(num_rows) for num_rows in range(1025, 2049)}) == 8
    assert len({filled(num_rows) for num_rows in range(1, 2049)}) <= 8 * 9


@needs_library
def test_only_large_float32_matrices_without_hooks_are_packed() -> None:
    class Own(torch.nn.Linear):
        """A matrix that may do more than its weights say."""

    model = torch.nn.ModuleDict(
        {
            "large": linear(512, 256),
            "nested": torch.nn.Sequential(linear(512, 512)),
            "small": linear(512, 255),
            "replaced": linear(512, 512),
            "sixteen_bits": linear(512, 512).to(torch.bfloat16),
            "hooked": linear(512, 512),
            "own": Own(512, 512),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    model["replaced"].forward = lambda states: states  # type: ignore[method-assign]
    pack(model)
    nested = model["nested"]
    assert isinstance(nested, torch.nn.Sequential)
    assert isinstance(nested[0], PackedLinear)
    assert {name for name, module in model.items() if isinstance(module, PackedLinear)} == {"large"}


@needs_library
def test_packing_gives_the_old_weights_back() -> None:
    model = torch.nn.Sequential(linear(512, 512), linear(512, 512))
    old = [weakref.ref(layer.weight) for layer in model]
    pack(model)
    gc.collect()
    assert [weight() for weight in old] == [None, None]


@needs_library
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_greedy_replies_are_those_of_generate_on_the_model_as_it_was(kind: str, tiny_tokenizer: Any) -> None:
    # Ragged prompts and replies: many numbers of rows, most of which are filled up.
    plain = Plain(wide_model(kind, tiny_tokenizer), tiny_tokenizer)
    engine = HfEngine(wide_model(kind, tiny_tokenizer), tiny_tokenizer, batch_size=7)
    layers = engine.model.model.layers
    assert all(isinstance(layer.mlp.down_proj, PackedLinear) for layer in layers)
    assert not any(isinstance(layer.self_attn.q_proj, PackedLinear) for layer in layers)
    requests = [Request(str(n), prompt, Sampling(6 + n % 5, 0), n) for n, prompt in enumerate(ragged_prompts(20))]
    with Calls() as calls:
        found = answers(engine, requests)
    assert calls.rows
    assert all(filled(rows) == rows for rows in calls.rows)
    for request in requests:
        ids = generated_by_hf(plain, request.prompt, request.sampling.max_tokens)
        assert found[request.id].text == text_of(plain, ids)


@needs_library
@pytest.mark.parametrize("is_tied", [True, False])
def test_an_output_matrix_is_packed_and_the_embedding_stays(is_tied: bool, tiny_tokenizer: Any) -> None:
    config = wide_model("llama", tiny_tokenizer).config
    config.vocab_size, config.tie_word_embeddings = 1031, is_tied
    plain = AutoModelForCausalLM.from_config(config).eval()
    model = copy.deepcopy(plain)
    pack(model)
    assert isinstance(model.lm_head, PackedLinear)
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-3, rtol=1e-3)


@needs_library
def test_a_packed_model_is_not_saved_without_its_weights(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = wide_model("llama", tiny_tokenizer)
    pack(model)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        model.save_pretrained(tmp_path)


@needs_library
def test_a_packed_model_is_not_trained_without_a_word(tiny_tokenizer: Any) -> None:
    model = wide_model("llama", tiny_tokenizer)
    pack(model)
    with pytest.raises(RuntimeError, match="no gradient"):
        model(torch.arange(3, 9)[None])


@needs_library
@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_no_memory_is_one_clear_error(error: Exception, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    def fail(*_: Any) -> None:
        raise error

    assert _matrices.is_possible()
    monkeypatch.setattr(_matrices, "PackedLinear", fail)
    with pytest.raises(EngineError, match=r"1024 x 128 weights .* model\.path"):
        HfEngine(wide_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=4)


@pytest.mark.parametrize("problem", ["gone", "wrong"])
def test_operations_that_fail_the_trial_are_told_and_not_used(
    problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_tokenizer: Any
) -> None:
    def fail(self: Any, states: torch.Tensor) -> torch.Tensor:
        if problem == "gone":
            raise AttributeError("no such operation")
        return states.new_zeros(len(states), self.out_features)

    monkeypatch.setattr(PackedLinear, "forward", fail)
    _matrices._trial.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "selfreward.engines"):
            assert _matrices._trial() is not None
            assert _matrices._trial() is not None
        model = wide_model("llama", tiny_tokenizer)
        pack(model)
    finally:
        _matrices._trial.cache_clear()
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    told = [record.getMessage() for record in caplog.records if record.name == "selfreward.engines"]
    assert [message.startswith("matrices are not packed") for message in told] == [True]


def test_a_library_that_is_switched_off_is_not_used(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    model = wide_model("llama", tiny_tokenizer)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    pack(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


@needs_library
def test_an_engine_knows_the_parameters_of_the_model_as_it_was(tiny_tokenizer: Any) -> None:
    wanted = wide_model("llama", tiny_tokenizer).num_parameters()
    engine = HfEngine(wide_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=4)
    assert engine.num_parameters == wanted > engine.model.num_parameters()


@needs_library
def test_the_same_requests_give_the_same_replies_again(tiny_tokenizer: Any) -> None:
    requests = [Request(str(n), prompt, Sampling(12), n) for n, prompt in enumerate(ragged_prompts(20))]
    first, second = (
        answers(HfEngine(wide_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=7), requests) for _ in range(2)
    )
    assert first == second
