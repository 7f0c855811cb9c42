"""What is known of engine `vllm` without vLLM: its settings, its package, and adapters, which it alone serves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import parse_config
from selfreward.engines import SCORES_CHOICES, open_engine
from selfreward.engines.adapters import read_adapter
from selfreward.errors import ConfigError, MissingExtraError, ModelError, ProblemsError
from selfreward.preflight import check_config
from selfreward.stages._roles import weights_of

SETTINGS = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "base"}


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed, whatever is."""
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "vllm" else found(name, *rest))


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is installed: looking at folders needs no more."""
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: found("json" if name == "vllm" else name, *rest))


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """An adapter of the tiny model; its weights are never read here."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, "base_model_name_or_path": str(tiny_model_dir)}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def change(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.usefixtures("without_vllm")
def test_a_missing_package_is_one_line_with_the_command(make_config: Callable[..., Any], tiny_model_dir: Path) -> None:
    config = make_config(engine={"name": "vllm"})
    with pytest.raises(MissingExtraError, match=r"^engine\.name=vllm needs the package vllm.*pip install 'selfreward\[vllm\]'"):
        open_engine(str(tiny_model_dir), config)
    with pytest.raises((MissingExtraError, ProblemsError), match="needs the package vllm") as caught:
        check_config(config)
    assert str(caught.value).count("needs the package vllm") == 1


def test_settings_that_are_left_as_they_were_may_stand_in_any_config() -> None:
    stored = json.loads(parse_config({"name": "a"}).model_dump_json())
    assert stored["engine"]["vllm"]["tensor_parallel_size"] == 1
    assert parse_config(stored).engine.name == "hf"


@pytest.mark.parametrize(("name", "value"), [("tensor_parallel_size", 0), ("gpu_memory_utilization", 1.5), ("cache_gb", 0)])
def test_settings_have_bounds(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.vllm\.{name}={value} must be"):
        parse_config({"name": "a", "engine": {"name": "vllm", "vllm": {name: value}}})


def test_expected_scores_need_another_engine(make_config: Callable[..., Any]) -> None:
    assert "vllm" not in SCORES_CHOICES
    with pytest.raises((ConfigError, ProblemsError), match=r"judge\.mode=expected.*engine\.name=vllm cannot"):
        check_config(make_config(engine={"name": "vllm"}, judge={"mode": "expected", "num_votes": 1}))


def test_an_adapter_is_read(adapter: Path, make_config: Callable[..., Any], tiny_model_dir: Path) -> None:
    config = make_config()
    found = read_adapter(adapter, config)
    assert found is not None
    assert (found.folder, found.base, found.rank, found.has_tokenizer) == (str(adapter), str(tiny_model_dir), 8, False)
    assert read_adapter(tiny_model_dir, config) is None
    (adapter / "tokenizer_config.json").write_text("{}")
    (adapter / "base").mkdir()
    change(adapter, base_model_name_or_path="base")
    found = read_adapter(adapter, config)
    assert found is not None
    assert (found.base, found.has_tokenizer) == (str(adapter / "base"), True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' and r=8; it must be LORA"),
        ({"r": 0}, "r=0; it must be LORA, with a rank of 1 or more"),
        ({"r": None}, "r=None"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "some/where"}, "made for 'some/where'.*no folder here.*model.allow_download"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_named(
    adapter: Path, make_config: Callable[..., Any], settings: dict[str, Any], said: str
) -> None:
    change(adapter, **settings)
    with pytest.raises(ModelError, match=said):
        read_adapter(adapter, make_config())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha_pattern", {"o_proj": 4}),
        ("rank_pattern", {"o_proj": 4}),
        ("alora_invocation_tokens", [5]),
        ("bias", "lora_only"),
        ("layer_replication", [[0, 2]]),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [0]),
        ("use_dora", True),
    ],
)
@pytest.mark.usefixtures("with_vllm")
def test_settings_that_vllm_would_drop_or_fail_on_are_named(
    adapter: Path, make_config: Callable[..., Any], name: str, value: Any
) -> None:
    change(adapter, **{name: value})
    with pytest.raises(ModelError, match=rf"in '.*adapter' has {name}=.*does not serve; merge the adapter into its base model"):
        read_adapter(adapter, make_config())
    with pytest.raises((ModelError, ProblemsError), match=rf"has {name}=.*does not serve"):
        check_config(make_config(engine={"name": "vllm"}, judge={"model": str(adapter)}))


def test_what_peft_writes_for_a_plain_adapter_is_served(adapter: Path, make_config: Callable[..., Any]) -> None:
    change(
        adapter, alpha_pattern={}, rank_pattern={}, bias="none", modules_to_save=None, use_dora=False, lora_bias=False,
        layer_replication=None, trainable_token_indices=None, alora_invocation_tokens=None, use_rslora=True,
    )  # fmt: skip
    assert read_adapter(adapter, make_config()) is not None


def test_other_weights_than_safetensors_are_refused(adapter: Path, make_config: Callable[..., Any]) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors; other formats can run code"):
        read_adapter(adapter, make_config())


@pytest.mark.usefixtures("with_vllm")
def test_a_check_looks_at_the_base_of_an_adapter(adapter: Path, make_config: Callable[..., Any], tiny_model_dir: Path) -> None:
    config = make_config(engine={"name": "vllm"}, judge={"model": str(adapter)})
    assert f"judge.model: {adapter} (llama), adapter of {tiny_model_dir}" in check_config(config)
    change(adapter, r=-1)
    with pytest.raises((ModelError, ProblemsError), match="r=-1"):
        check_config(config)


def test_engine_hf_takes_no_adapter(adapter: Path, make_config: Callable[..., Any]) -> None:
    with pytest.raises((ConfigError, ProblemsError), match="is an adapter, not a whole model"):
        check_config(make_config(judge={"model": str(adapter)}))


def test_the_base_counts_among_the_weights(adapter: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    before = weights_of(str(adapter))
    assert before.endswith(weights_of(str(tiny_model_dir)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    change(adapter, base_model_name_or_path=str(other))
    after = weights_of(str(adapter))
    (other / "config.json").write_text('{"changed": 1}')
    assert len({before, after, weights_of(str(adapter))}) == 3
