"""`selfreward check` as people run it, in this process: what it returns, and what stands on the two outputs."""

import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from selfreward import cli


@dataclass(frozen=True)
class Said:
    """A finished command."""

    code: int
    out: str
    err: str


class Shell:
    """Commands in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)

    def write(self, content: str | bytes, name: str = "c.yaml") -> None:
        """Put a file into the folder."""
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    def run(self, *words: str) -> Said:
        """`selfreward WORDS`, through its entry point."""
        self._monkeypatch.setattr(sys, "argv", ["selfreward", *words])
        self._capsys.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)


def write_model(folder: Path, **changes: Any) -> Path:
    """A model folder of 8 tokens and 2 weights that a check finds whole; `changes` go into config.json."""
    folder.mkdir()
    settings = {"model_type": "llama", "vocab_size": 8, "max_position_embeddings": 64, **changes}
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = {"model": {"vocab": {letter: number for number, letter in enumerate("abcdefg")}}, "added_tokens": [{"id": 7}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for m in messages %}{{ m }}{% endfor %}"}))
    write_weights(folder / "model.safetensors")
    return folder


def write_weights(file: Path, missing: int = 0, **shapes: tuple[int, ...]) -> None:
    """A safetensors file of float32 zeros, the last `missing` bytes cut off."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in (shapes or {"model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4)}).items():
        size = 4
        for number in shape:
            size *= number
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(end)
    file.write_bytes(content[: len(content) - missing])
