"""A model folder, looked at without loading it: its settings, weights' headers, tokenizer and chat template."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward.engines.loading import folder_problem, has_chat_template, read_settings
from selfreward.errors import ModelError
from selfreward.texts import counted, one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
"""Files that hold a tokenizer's vocabulary, of all kinds in use."""
_MAX_HEADER = 100_000_000
"""Bytes of a header; the format allows no more."""
_SHOWN = 3
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""How the names of input embeddings end: one row a token."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder's files say. `problems`: why it cannot be used, each as the end of a sentence about it.

    `context`: positions that the model has. `num_parameters`: numbers in its weights.
    """

    kind: str = ""
    context: int | None = None
    num_parameters: int = 0
    has_template: bool = False
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def look_at(folder: Path, trust_remote_code: bool = False) -> ModelFolder:
    """Read what can be read quickly; loads nothing and runs nothing. Raises nothing about the folder: see `problems`."""
    if problem := folder_problem(folder):
        return ModelFolder(problems=[problem])
    problems: list[str] = []
    settings = _try(problems, lambda: read_settings(folder / "config.json")) or {}
    shapes = _shapes(folder, problems)
    largest = {"vocabulary": -1, "added": -1}
    if not trust_remote_code:  # a tokenizer class that the folder ships may read other files
        largest = _try(problems, lambda: _tokenizer_ids(folder)) or largest
    has_template = bool(_try(problems, lambda: has_chat_template(folder)))
    for place, text in _templates(folder, problems):
        if problem := template_problem(text):
            problems.append(f"has a chat template that is no Jinja ({place}): {problem}")
    rows = _vocabulary(settings, shapes, problems)
    remarks = []
    if rows is not None and largest["vocabulary"] >= rows:
        problems.append(f"has a tokenizer with token {largest['vocabulary']}, but its model knows {rows} tokens only")
    elif rows is not None and largest["added"] >= rows:
        remarks.append(f"has a tokenizer with the added token {largest['added']}, but its model knows {rows} tokens only")
    return ModelFolder(
        kind=str(settings.get("model_type")),
        context=_context(settings),
        num_parameters=sum(math.prod(shape) for shape in shapes.values()),
        has_template=has_template,
        problems=problems,
        remarks=remarks,
    )


def template_problem(text: str) -> str | None:
    """Why a chat template cannot be compiled, None for a good one. Compiled in the sandbox that will run it, not run."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag that Transformers adds: it marks what the model says."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own way

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    try:
        environment.compile(text)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        return f"{'' if line is None else f'line {line}: '}{one_line(error.message or error)}"
    except RecursionError:
        return "it is nested too deeply"
    return None


def _try(problems: list[str], read: Any) -> Any:
    """A reading, or None and its problem."""
    try:
        return read()
    except ModelError as error:
        problems.append(f"cannot be used: {one_line(error)}")
        return None


def _context(settings: Mapping[str, Any]) -> int | None:
    for place in (settings, settings.get("text_config")):
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(place, Mapping) and isinstance(place.get(name), int):
                return int(place[name])
    return None


def _vocabulary(settings: Mapping[str, Any], shapes: Mapping[str, list[int]], problems: list[str]) -> int | None:
    """How many tokens the model knows, where that is said; its settings and its weights must agree."""
    inner = settings.get("text_config")
    said = settings.get("vocab_size", inner.get("vocab_size") if isinstance(inner, Mapping) else None)
    if not isinstance(said, int):
        return None
    for name, shape in shapes.items():
        if name.endswith(_EMBEDDINGS) and len(shape) == 2 and shape[0] != said:
            problems.append(f"contradicts itself: vocab_size={said} in config.json, but {name} has {shape[0]} rows")
            return None
    return said


# --- weights ------------------------------------------------------------------------------------------------------------


def _shapes(folder: Path, problems: list[str]) -> dict[str, list[int]]:
    """Name -> shape of all weights, from the files' headers."""
    files = _try(problems, lambda: _weight_files(folder)) or []
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= _try(problems, lambda file=file: read_header(file)) or {}
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    """The files that loading will read. Raises ModelError where one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ModelError(f"its .safetensors files are neither {WEIGHTS} nor listed in {INDEX}; save it with save_pretrained")
    places = read_settings(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{INDEX} has no weight_map that names files; save the model with save_pretrained")
    names = sorted(set(places.values()))
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ModelError(f"{INDEX} names {outside[0]!r}, which is no .safetensors file of the folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise ModelError(f"{INDEX} names {counted(len(names), 'file')}, {len(missing)} missing: {shown}; copy the whole folder")
    return [folder / name for name in names]


def read_header(file: Path) -> dict[str, list[int]]:
    """Name -> shape of each weight in a safetensors file. Raises ModelError where the file is cut or is none.

    The format: 8 bytes with the header's length (little-endian), the header (JSON), and the weights up to the end of the file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = opened.read(length) if 2 <= length <= min(_MAX_HEADER, size - 8) else None
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror}") from error
    if text is None:
        raise ModelError(f"{file.name} is cut or no safetensors file: it has {size:,} bytes, and its header does not fit in")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file.name} is no safetensors file: its header is not JSON") from error
    shapes: dict[str, list[int]] = {}
    end = 0
    try:
        for name, tensor in header.items():
            if name != "__metadata__":
                shapes[name] = [int(number) for number in tensor["shape"]]
                end = max(end, int(tensor["data_offsets"][1]))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{file.name} is no safetensors file: its header has no shape and place for each weight") from error
    if 8 + length + end != size:
        raise ModelError(
            f"{file.name} is cut or damaged: its header promises {8 + length + end:,} bytes, the file has {size:,}"
        )
    return shapes


# --- tokenizer and template ---------------------------------------------------------------------------------------------


def _tokenizer_ids(folder: Path) -> dict[str, int]:
    """The largest ids of the vocabulary and of the tokens added to it; -1 where the files do not say. Raises ModelError for a
    folder without a tokenizer and for a tokenizer.json that cannot be read."""
    if not any(path.is_file() for pattern in TOKENIZERS for path in folder.glob(pattern)):
        raise ModelError(f"it has no tokenizer ({', '.join(TOKENIZERS[:3])}, ...); copy the tokenizer's files into it")
    found = {"vocabulary": -1, "added": -1}
    if not (folder / "tokenizer.json").is_file():
        return found
    tree = read_settings(folder / "tokenizer.json")
    model = tree.get("model")
    words = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(words, list):
        found["vocabulary"] = len(words) - 1
    elif isinstance(words, Mapping):
        found["vocabulary"] = max((number for number in words.values() if isinstance(number, int)), default=-1)
    added = tree.get("added_tokens")
    numbers = [item.get("id") for item in added if isinstance(item, Mapping)] if isinstance(added, list) else []
    found["added"] = max((number for number in numbers if isinstance(number, int)), default=-1)
    return found


def _templates(folder: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of each chat template of the folder."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            yield file.name, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"cannot be used: {file.name} cannot be read: {one_line(error)}")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return
    try:
        value = read_settings(settings).get("chat_template")
    except ModelError:  # told by who asks whether there is a template
        return
    for item in value if isinstance(value, list) else [value]:
        text = item.get("template") if isinstance(item, Mapping) else item
        if isinstance(text, str):
            yield settings.name, text
