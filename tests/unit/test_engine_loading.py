"""Model folders that must load, and those that must not."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfreward.engines.loading import load_model, load_tokenizer, pick_device, resolve_model_path, set_threads
from selfreward.environment import num_cores, num_threads
from selfreward.errors import ConfigError, ModelError

MakeConfig = Callable[..., Any]


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_loads_with_its_own_weights(tiny_model_dir: Path, make_config: MakeConfig) -> None:
    model = load_model(tiny_model_dir, make_config(), "cpu")
    stored = load_file(tiny_model_dir / "model.safetensors")
    assert not model.training
    assert torch.equal(model.model.embed_tokens.weight, stored["model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])


def test_dtype_comes_from_the_config_or_the_caller(tiny_model_dir: Path, make_config: MakeConfig) -> None:
    config = make_config(model={"dtype": "bfloat16"})
    assert load_model(tiny_model_dir, config, "cpu").dtype == torch.bfloat16
    assert load_model(tiny_model_dir, config, "cpu", dtype="float32").dtype == torch.float32


def test_local_folders_need_no_network(tiny_model_dir: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(tiny_model_dir, make_config(), "cpu")
    load_tokenizer(tiny_model_dir, make_config())


def test_missing_folders_are_named(tmp_path: Path, make_config: MakeConfig) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"nowhere'; set model\.path"):
        resolve_model_path(missing)
    with pytest.raises(ModelError, match=r"nowhere'; set model\.path"):
        load_tokenizer(missing, make_config())
    assert resolve_model_path("some/hub-id") == "some/hub-id"
    with pytest.raises(ModelError, match=r"some/hub-id'.*model\.allow_download=true"):
        load_model("some/hub-id", make_config(), "cpu")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ModelError, match="no model folder"):
        resolve_model_path(str(file))


def test_pickled_weights_are_refused(folder: Path, make_config: MakeConfig) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load_model(folder, make_config(), "cpu")


def test_a_folder_without_config_is_refused(folder: Path, make_config: MakeConfig) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(folder, make_config(), "cpu")


def test_a_broken_weights_file_is_refused(folder: Path, make_config: MakeConfig) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="does not load"):
        load_model(folder, make_config(), "cpu")


def test_adapters_are_refused(folder: Path, make_config: MakeConfig) -> None:
    edit_json(folder / "adapter_config.json", base_model_name_or_path="somewhere")
    with pytest.raises(ModelError, match="is an adapter"):
        load_model(folder, make_config(), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"weights .* not in the files \(1\): model\.norm\.weight"),
        (
            lambda weights: weights.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}),
            r"in the files but not in the architecture \(1\): .*lora_A",
        ),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(8)}), "does not load|another shape"),
    ],
    ids=["missing", "dropped", "reshaped"],
)
def test_weights_that_would_be_made_up_or_dropped_are_refused(
    folder: Path, make_config: MakeConfig, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(ModelError, match=message):
        load_model(folder, make_config(), "cpu")


def test_code_in_a_model_folder_does_not_run(folder: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    edit_json(
        folder / "config.json",
        model_type="evil",
        architectures=["Model"],
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(folder, make_config(), "cpu")
    assert not marker.exists()


def test_the_chat_template_can_be_replaced(tiny_model_dir: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    config = make_config(model={"chat_template": str(template), "path": str(tiny_model_dir)})
    assert load_tokenizer(tiny_model_dir, config).chat_template == template.read_text()
    # A frozen judge of another family is never prompted in M0's format.
    other = make_config(model={"chat_template": str(template), "path": "lab"})
    assert load_tokenizer(tiny_model_dir, other).chat_template != template.read_text()
    template.unlink()
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        load_tokenizer(tiny_model_dir, config)


def test_a_tokenizer_without_padding_pads_with_eos(folder: Path, make_config: MakeConfig) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("pad_token", "eos_token"):
        settings.pop(name)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if name == "pad_token":
            tokenizer = load_tokenizer(folder, make_config())
            assert tokenizer.pad_token_id == tokenizer.eos_token_id
    with pytest.raises(ModelError, match="neither a padding nor an EOS token"):
        load_tokenizer(folder, make_config())


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("3", 3), ("2,1", 2)])
def test_no_number_of_threads_leaves_it_to_the_variable(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, said: str, threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    try:
        assert set_threads(make_config(engine={"threads": 0})) == torch.get_num_threads() == threads
        assert set_threads(make_config(engine={"threads": 4})) == torch.get_num_threads() == 4, "a setting counts more"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("said", ["0", "many", "-1"])
def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    with pytest.raises(ConfigError, match=f"OMP_NUM_THREADS='{said}' is no number of threads"):
        num_threads(0)
    assert num_threads(2) == 2


def test_without_the_variable_all_cores_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert num_threads(0) == num_cores()


def test_threads_and_device(make_config: MakeConfig) -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(make_config(engine={"threads": 1})) == torch.get_num_threads() == 1
        assert set_threads(make_config(engine={"threads": 0})) == torch.get_num_threads() >= 1
    finally:
        torch.set_num_threads(before)
    assert pick_device(make_config()) == "cpu"
    if torch.cuda.is_available():
        assert pick_device(make_config(engine={"device": "auto"})) == "cuda"
    else:
        assert pick_device(make_config(engine={"device": "auto"})) == "cpu"
        with pytest.raises(ConfigError, match=r"engine\.device=cuda"):
            pick_device(make_config(engine={"device": "cuda"}))
