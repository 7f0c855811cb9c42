"""A user's own prompts: a file with one prompt a row -> rows, in the order of the file.

| name ends in | a row |
|---|---|
| .txt | one line is one prompt |
| .jsonl | {"prompt": "..."} or {"instruction": "...", "input": "..."}; a text in `input` follows the instruction |

Either may be gzipped (.txt.gz). Blank lines are no rows, further keys are ignored. A row is known by its line, from 1.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.errors import ConfigError, DataError

_KEYS = ("prompt", "instruction")
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt and the line where it stands. The text may be blank: who filters it counts it."""

    line: int
    text: str


def read_prompt_file(setting: str, after: int = 0) -> Iterator[PromptRow]:
    """The rows of `propose.path` behind line `after`.

    Raises ConfigError when the path names no such file, DataError naming the line of a row that cannot be read.
    """
    path, parse = _recognise(setting)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number > after and line.strip():
                    yield PromptRow(number, parse(line.decode("utf-8-sig" if number == 1 else "utf-8")))
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"propose.path={setting!r} line {number}: {error}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"propose.path={setting!r} cannot be read after line {number}: {error}") from error


def count_prompts(setting: str) -> int:
    """How many rows the file has, each of them readable. Raises ConfigError where there are none, else as above."""
    num_rows = sum(1 for _ in read_prompt_file(setting))
    if not num_rows:
        raise ConfigError(f"propose.path={setting!r} holds no prompt; add one a line, or set propose.source=self-instruct")
    return num_rows


def _recognise(setting: str) -> tuple[Path, Callable[[str], str]]:
    path = Path(setting).expanduser()
    parsers: dict[str, Callable[[str], str]] = {".txt": lambda line: line.strip(), ".jsonl": _parse_json}
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in parsers:
        raise ConfigError(f"propose.path={setting!r}: a prompt file is named .txt, .jsonl, .txt.gz or .jsonl.gz; rename it")
    if not path.is_file():
        raise ConfigError(f"propose.path={setting!r} is no file; propose.source=file needs one")
    return path, parsers[suffix]


def _parse_json(line: str) -> str:
    """Raises ValueError telling what is wrong with the row."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object with {' or '.join(map(repr, _KEYS))}, got {_shown(row)}")  # noqa: TRY004
    key = next((key for key in _KEYS if key in row), None)
    if key is None:
        raise ValueError(f"has neither {' nor '.join(map(repr, _KEYS))}; the row has {sorted(row)}")
    text = _text(row, key)
    extra = _text(row, "input") if key == "instruction" and row.get("input") is not None else ""
    return "\n\n".join(part for part in (text.strip(), extra.strip()) if part)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"field {key!r} must be a text, got {_shown(value)}")  # noqa: TRY004
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
