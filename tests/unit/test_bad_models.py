"""Model folders that cannot work are refused before anything loads; what will hardly work as meant is a warning."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from check_bench import Said, Shell, write_model, write_weights

from selfreward.preflight.folders import look_at, template_problem

Break = Callable[[Path], Any]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    opened = Shell(tmp_path, monkeypatch, capsys)
    opened.write(
        "name: a\nmodel: {path: m}\nsft: {max_length: 64}\ndpo: {max_length: 64}\n"
        "propose: {max_tokens: 8}\nsample: {max_tokens: 8}\njudge: {max_tokens: 8}\n"
    )
    return opened


def drop(*names: str) -> Break:
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name: str, content: Any) -> Break:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / name).write_text(text)


def both(*breaks: Break) -> Break:
    return lambda folder: [item(folder) for item in breaks]


def sharded(*files: str) -> Break:
    """Weights that lie in these files, says the index; only the first of them is there."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / files[0])
        put(INDEX, {"weight_map": {f"w{number}": name for number, name in enumerate(files)}})(folder)

    return change


def raw(length: int, header: bytes, rest: int = 0) -> Break:
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(rest))


BAD: dict[str, tuple[Break, str]] = {
    "no settings": (drop("config.json"), "has no config.json; give a Hugging Face model folder"),
    "settings are no JSON": (
        put("config.json", "{"),
        "cannot be used: config.json cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)",
    ),
    "settings are a list": (put("config.json", []), "cannot be used: config.json must hold a JSON object"),
    "an adapter": (
        put("adapter_config.json", {}),
        "is an adapter, not a whole model; merge it into its base model and use that folder",
    ),
    "pickled weights only": (
        both(drop("model.safetensors"), put("pytorch_model.bin", "x"), put("model.pt", "x")),
        "holds no .safetensors weights; other formats can run code when they are loaded and are refused: save the model with "
        "save_pretrained and use that folder",
    ),
    "weights under another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
        "cannot be used: its .safetensors files are neither model.safetensors nor listed in model.safetensors.index.json; save "
        "it with save_pretrained",
    ),
    "missing shards": (
        sharded("a.safetensors", "b.safetensors", "c.safetensors"),
        "lacks b.safetensors, one of 3 files of weights that model.safetensors.index.json names; copy the folder again",
    ),
    "an index that leads out": (
        sharded("a.safetensors", "../b.safetensors"),
        "has an index of weights, model.safetensors.index.json, that names '../b.safetensors': only .safetensors files of the "
        "folder itself are loaded; save the model with save_pretrained and use that folder",
    ),
    "an index without a map": (
        both(sharded("a.safetensors"), put(INDEX, {"weight_map": {}})),
        "cannot be used: model.safetensors.index.json has no weight_map that names files; save the model with save_pretrained",
    ),
    "cut weights": (
        lambda folder: write_weights(folder / "model.safetensors", missing=100),
        "cannot be used: model.safetensors is cut or damaged: its header promises 469 bytes, the file has 369",
    ),
    "a cut header": (
        raw(200, b"{"),
        "cannot be used: model.safetensors is cut or no safetensors file: it has 9 bytes, and its header does not fit in",
    ),
    "an empty file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "cannot be used: model.safetensors is cut or no safetensors file: it has 0 bytes, and its header does not fit in",
    ),
    "a header that is no JSON": (
        raw(4, b"abcd"), "cannot be used: model.safetensors is no safetensors file: its header is not JSON",
    ),
    "a header that says nothing": (
        raw(8, b'{"w":{}}'),
        "cannot be used: model.safetensors is no safetensors file: its header has no shape and place for each weight",
    ),
    "a pointer in place of the weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 99\n"),
        "cannot be used: model.safetensors is cut or no safetensors file: it has 51 bytes, and its header does not fit in",
    ),
    "no tokenizer": (
        drop("tokenizer.json"),
        "cannot be used: it has no tokenizer (tokenizer.json, *.model, vocab.json, ...); copy the tokenizer's files into it",
    ),
    "a cut tokenizer": (
        put("tokenizer.json", '{"model": '),
        "cannot be used: tokenizer.json cannot be read: Expecting value: line 1 column 11 (char 10)",
    ),
    "another model's tokenizer": (
        put("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 31999}}}),
        "has a tokenizer with token 31999, but its model knows 8 tokens only",
    ),
    "settings of another model": (
        put("config.json", {"model_type": "llama", "vocab_size": 9}),
        "contradicts itself: vocab_size=9 in config.json, but model.embed_tokens.weight has 8 rows",
    ),
    "a template that is no Jinja": (
        put("tokenizer_config.json", {"chat_template": "{% for m in messages %}\n{{ m }"}),
        "has a chat template that is no Jinja (tokenizer_config.json): line 2: unexpected '}'",
    ),
    "a template file that is no Jinja": (
        put("chat_template.jinja", "{% if x %}"),
        "has a chat template that is no Jinja (chat_template.jinja): line 1: Unexpected end of template. Jinja was looking for "
        "the following tags: 'elif' or 'else' or 'endif'. The innermost block that needs to be closed is 'if'.",
    ),
    "a template with an unknown filter": (
        put("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "{{ messages | shout }}"}]}),
        "has a chat template that is no Jinja (tokenizer_config.json): line 1: No filter named 'shout'.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_named(shell: Shell, name: str) -> None:
    change, says = BAD[name]
    change(write_model(shell.folder / "m"))
    assert shell.run("check", "c.yaml") == Said(2, "", f"error: model.path='m' {says}\n")
    assert shell.run("check", "c.yaml", "model.path=lab", "sft.max_length=320", "judge.model=m") == Said(
        2, "", f"error: judge.model='m' {says}\n"
    )


def test_all_that_is_wrong_with_a_folder_is_told(shell: Shell) -> None:
    both(drop("tokenizer.json"), put("chat_template.jinja", "{{"), raw(4, b"abcd"))(write_model(shell.folder / "m"))
    said = shell.run("check", "c.yaml", "model.chat_template=nowhere")
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["error"] * 4
    for part in ("model.chat_template='nowhere' is not a file", "header is not JSON", "no tokenizer", "is no Jinja"):
        assert part in said.err


def test_a_whole_folder_passes_and_is_measured(shell: Shell) -> None:
    folder = write_model(shell.folder / "m")
    said = shell.run("check", "c.yaml")
    assert (said.code, said.err) == (0, "")
    assert "model.path: m (llama)\n" in said.out
    assert "warning" not in said.out
    found = look_at(folder)
    assert (found.num_parameters, found.context, found.kind, found.has_template) == (64, 64, "llama", True)
    sharded("a.safetensors")(folder)
    assert look_at(folder).num_parameters == 64


def test_a_tokenizer_of_the_folders_own_code_may_have_other_files(shell: Shell) -> None:
    drop("tokenizer.json")(write_model(shell.folder / "m"))
    assert shell.run("check", "c.yaml", "model.trust_remote_code=true").code == 0


def test_longer_than_the_context_is_a_warning(shell: Shell) -> None:
    write_model(shell.folder / "m", max_position_embeddings=32)
    said = shell.run("check", "c.yaml", "judge.max_tokens=32")
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if line.startswith("warning: ")] == [
        "warning: sft.max_length=64 is above the context of model.path, 32 tokens; longer examples are dropped as too_long",
        "warning: dpo.max_length=64 is above the context of model.path, 32 tokens; longer examples are dropped as too_long",
        "warning: judge.max_tokens=32 leaves no room for a prompt in the context of model.path, 32 tokens; replies end with "
        "the context and count as truncated",
    ]


def test_an_added_token_beyond_the_model_is_a_warning(shell: Shell) -> None:
    put("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 8}]})(write_model(shell.folder / "m"))
    said = shell.run("check", "c.yaml")
    assert said.code == 0
    assert "warning: model.path='m' has a tokenizer with the added token 8, but its model knows 8 tokens only\n" in said.out


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages[0] }}{% endgeneration %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% break %}{% endfor %}",
        "{{ raise_exception('no') }}{{ strftime_now('%d') }}",
        "",
    ],
)
def test_what_transformers_knows_is_no_fault_of_a_template(template: str) -> None:
    assert template_problem(template) is None


def test_a_template_is_never_run() -> None:
    assert template_problem("{{ ''.__class__.__mro__ }}{{ 1 // 0 }}{% for i in range(10**9) %}{% endfor %}") is None


def test_the_embedded_model_is_whole() -> None:
    from selfreward.lab import model_dir

    found = look_at(model_dir())
    assert (found.problems, found.remarks, found.context) == ([], [], 320)
    assert found.num_parameters > 1_000_000
