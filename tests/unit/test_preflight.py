"""preflight.py: what a config names is checked before a model loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import Config
from selfreward.errors import ConfigError, DataError
from selfreward.preflight import check_config


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def without_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_whole_model_folder_passes(make_config: Callable[..., Config], folder: Path) -> None:
    lines = check_config(make_config(model={"path": str(folder)}, judge={"model": str(folder)}))
    assert f"model.path: {folder} (llama)" in lines
    assert f"judge.model: {folder} (llama)" in lines


def test_a_base_model_to_train_gets_the_default_template_and_a_frozen_one_is_refused(
    make_config: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    without_template(folder)
    lines = check_config(make_config(model={"path": str(folder)}))
    assert f"model.path: {folder} (llama), no chat template: it gets the default one (ChatML)" in lines
    with pytest.raises(ConfigError, match=r"model\.path=.*no chat template.*leave it unset \(now 'own'\)"):
        check_config(make_config(model={"path": str(folder), "chat_template": "own"}))
    with pytest.raises(ConfigError, match=r"judge\.model=.*no chat template.*trained to chat"):
        check_config(make_config(judge={"model": str(folder)}))
    with pytest.raises(ConfigError, match=r"judge\.model=.*no chat template"):
        check_config(make_config(model={"path": str(folder)}, judge={"model": str(folder)}))
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    check_config(make_config(model={"path": str(folder), "chat_template": str(tmp_path / "own.jinja")}))
    with pytest.raises(ConfigError, match=r"judge\.model=.*no chat template"):  # the file is for M0 alone
        check_config(make_config(model={"chat_template": str(tmp_path / "own.jinja")}, judge={"model": str(folder)}))
    with pytest.raises(ConfigError, match=r"model\.chat_template='chatml' is not a file, nor 'own'"):
        check_config(make_config(model={"chat_template": "chatml"}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages }}"}))
    check_config(make_config(model={"path": str(folder)}))


def test_a_plain_continuation_proposer_needs_no_chat_template(
    make_config: Callable[..., Config], folder: Path, tmp_path: Path
) -> None:
    without_template(folder)
    with pytest.raises(ConfigError, match=r"propose\.model=.*no chat template"):
        check_config(make_config(propose={"model": str(folder)}))
    check_config(make_config(propose={"model": str(folder), "template": "lab_self_instruct"}))


def test_an_adapter_is_refused(make_config: Callable[..., Config], folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.path=.*is an adapter"):
        check_config(make_config(model={"path": str(folder)}))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_unreadable_model_config_is_named(make_config: Callable[..., Config], folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"model\.path=.*config\.json"):
        check_config(make_config(model={"path": str(folder)}))


def test_training_starts_from_the_model_whoever_generates(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path=.*is no folder"):
        check_config(make_config(engine={"name": "scripted", "script": "echo"}, model={"path": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"judge": {"model": "scripted:nobody"}}, "judge.model"),
        ({"propose": {"model": "scripted:nobody"}}, "propose.model"),
        ({"engine": {"name": "scripted", "script": "nobody"}}, "engine.script"),
    ],
)
def test_an_unknown_script_is_named(make_config: Callable[..., Config], settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{setting}: there is no script 'nobody'; known are random, echo"):
        check_config(make_config(**settings))


def test_a_broken_script_is_named(make_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text("{")
    with pytest.raises(ConfigError, match=r"judge\.model: .*not valid JSON"):
        check_config(make_config(judge={"model": f"scripted:{tmp_path / 'script.json'}"}))
    assert "judge.model: script 'random'" in check_config(make_config(judge={"model": "scripted:random"}))


def test_the_home_folder_is_found(make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "a question", "response": "an answer"}\n' * 30)
    lines = check_config(make_config(seed={"sources": [{}], "path": "~/seeds.jsonl"}))
    assert "seed.sources[0]: ~/seeds.jsonl, format completion (detected), first 20 rows can be read" in lines
    with pytest.raises(ConfigError, match=r"seed\.sources\[0\]: '~/nowhere' is no file or folder here"):
        check_config(make_config(seed={"sources": [{}], "path": "~/nowhere"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": 1}', "unknown format"),
        ('{"prompt": "a question", "response": "an answer"}\n{"prompt": "a"', "line 2"),
        ('{"prompt": "a question", "response": 3}', "response"),
        ("", "is empty"),
    ],
)
def test_a_seed_file_is_read_before_a_model_loads(
    make_config: Callable[..., Config], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    sources = [{"format": "lab"}, {"path": str(tmp_path / "bad.jsonl")}]
    with pytest.raises(DataError, match=message):
        check_config(make_config(seed={"sources": sources}))


def test_an_unknown_language_of_a_source_is_named(make_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "a question", "lang": "eng"}\n')
    with pytest.raises(ConfigError, match=r"^seed\.sources\[0\]\.lang='eng' is not known; known are .*\ben\b"):
        check_config(make_config(seed={"sources": [{"path": str(tmp_path / "seeds.jsonl"), "lang": "eng"}]}))


def test_the_microworld_is_named(make_config: Callable[..., Config]) -> None:
    assert "seed.sources[0]: the micro-world, held-out set 'dev'" in check_config(make_config(seed={"heldout": "dev"}))
