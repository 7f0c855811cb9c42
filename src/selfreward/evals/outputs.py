"""Instructions and a model's outputs to them as files, in AlpacaEval's format and in what comes near it.

AlpacaEval's outputs are a JSON list of {"dataset", "instruction", "output", "generator"}, its annotations one of
{"instruction", "output_1" (the baseline's), "output_2" (the model's), "preference", ...}. Other files of rows with `prompt` or
`instruction` and `output`, `response` or `completion` are read too, and the outputs that an evaluation of a run has stored.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.artifacts import holds_rows, read_rows, write_bytes
from selfreward.errors import DataError
from selfreward.sources.containers import TEXT_SUFFIX, data_suffix, text_lines
from selfreward.sources.formats import is_row
from selfreward.sources.places import file_rows
from selfreward.sources.plain import prompt_of
from selfreward.sources.rows import BadRow, Row
from selfreward.texts import shown
from selfreward.types import EvalOutput

OUTPUT_KEYS = ("output", "response", "completion")
BASELINE_KEYS = ("output_1", *OUTPUT_KEYS)
"""Where a baseline's output stands: an annotations file holds it as the first of two."""
EVALUATION_TABLE = "outputs.parquet"

Key = tuple[str, int]
"""An instruction's text, and how often it came before in its list: what outputs to one instruction are joined by."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction to answer. `dataset` says where it is from."""

    id: str
    text: str
    dataset: str


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A model's output to an instruction. `finish_reason` and `num_tokens` are None where nobody told them."""

    id: str
    instruction: str
    output: str
    generator: str
    dataset: str
    num_tokens: int | None = None
    finish_reason: str | None = None


def read_instructions(path: Path, limit: int | None = None) -> list[Instruction]:
    """The instructions of a file, in its order; a list of AlpacaEval (set, outputs or annotations), or any file of prompts.

    Raises DataError for what cannot be read, and where there is none.
    """
    found = []
    for row in _rows(path, is_text=data_suffix(path) == TEXT_SUFFIX):
        text = prompt_of(row)
        if not text.strip():
            raise DataError(f"{path} {row.unit} {row.number}: the instruction is blank; remove the row")
        found.append(Instruction(f"{path.stem}-{row.number}", text, _word(row, "dataset") or path.stem))
        if len(found) == limit:
            break
    if not found:
        raise DataError(f"{path} holds no instruction")
    return found


def read_outputs(path: Path, keys: Sequence[str] = OUTPUT_KEYS) -> list[ModelOutput]:
    """The outputs of a file, or the sampled ones of a run's evaluation (its folder or its outputs.parquet).

    `keys` are the fields that may hold an output, the first one that is there counts. An output may be empty, an instruction
    may not. Raises DataError.
    """
    table = path / EVALUATION_TABLE if path.is_dir() else path
    if holds_rows(table, EvalOutput):
        rows = [row for row in read_rows(table, EvalOutput) if row.kind == "sampled"]
        name = evaluated_model(table.parent)
        return [
            ModelOutput(row.prompt_id, row.prompt, row.text, name, "heldout", row.num_tokens, row.finish_reason) for row in rows
        ]
    if path.is_dir():
        raise DataError(f"{path} holds no {EVALUATION_TABLE}; name a file of outputs, or the evals folder of a run's model")
    generator_key = "generator_1" if keys is BASELINE_KEYS else "generator"
    found = []
    for row in _rows(path):
        text = prompt_of(row)
        generator = _word(row, generator_key) or _word(row, "generator") or path.stem
        found.append(
            ModelOutput(f"{path.stem}-{row.number}", text, row.string(*keys), generator, _word(row, "dataset") or path.stem)
        )
    if not found:
        raise DataError(f"{path} holds no output")
    return found


def write_outputs(path: Path, outputs: Iterable[ModelOutput]) -> None:
    """AlpacaEval's own format, whole or not at all."""
    rows = [
        {"dataset": row.dataset, "instruction": row.instruction, "output": row.output, "generator": row.generator}
        for row in outputs
    ]
    write_list(path, rows)


def write_list(path: Path, rows: Sequence[Any]) -> None:
    """A JSON list as AlpacaEval writes its own: indented, in UTF-8."""
    text = json.dumps(rows, indent=2, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode("utf-8", errors="backslashreplace"))


def keyed(texts: Iterable[str]) -> list[Key]:
    """A key for each text of a list: equal texts are told apart by their order."""
    seen: Counter[str] = Counter()
    keys = []
    for text in texts:
        keys.append((text, seen[text]))
        seen[text] += 1
    return keys


def matched(new: Sequence[ModelOutput], old: Sequence[ModelOutput]) -> list[tuple[ModelOutput, ModelOutput]]:
    """Outputs of both sides to the same instructions, in the order of `new`."""
    others = dict(zip(keyed(row.instruction for row in old), old, strict=True))
    keys = keyed(row.instruction for row in new)
    return [(row, others[key]) for key, row in zip(keys, new, strict=True) if key in others]


def evaluated_model(folder: Path) -> str:
    """The model of a run's evaluation folder: `sft/evals` -> sft, `round-1/evals` -> m2."""
    name = folder.parent.name
    number = name.removeprefix("round-")
    return f"m{int(number) + 1}" if name.startswith("round-") and number.isdigit() else name


def _rows(path: Path, is_text: bool = False) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(f"{path} is no file here")
    for row in (text_lines(path) if is_text else file_rows(path, is_row))():
        if isinstance(row, BadRow):
            raise row.error
        yield row


def _word(row: Row, key: str) -> str | None:
    """A short field that may be absent. Raises DataError where it is no text."""
    value = row.value.get(key)
    if value is not None and not isinstance(value, str):
        raise row.fail(key, f"must be a text, got {shown(value)}")
    return value or None
