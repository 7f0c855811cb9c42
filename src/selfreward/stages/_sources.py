"""Seed data in selfreward's own file formats: a folder of JSON-lines files -> `SeedData`.

| file | row | |
|---|---|---|
| ift.jsonl | {"prompt", "response"} | required |
| heldout_prompts.jsonl | {"prompt"} | required |
| heldout_ranked.jsonl | {"prompt", "responses": [{"text", "rank"}, ...]} | optional: without it no judge quality |
| eft.jsonl | {"instruction", "response", "judgement", "score"} | optional |
| ranked.jsonl | as heldout_ranked | optional: EFT targets are built from it when eft.jsonl is absent |

Rank 0 is best; equal ranks are ties. Further keys in a row are ignored, blank lines are skipped. The id of an item
holds its line: `ift-17` is line 17 of ift.jsonl.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward.errors import DataError
from selfreward.types import Demonstration, Drop, EftExample, Prompt, RankedSet

IFT_FILE = "ift.jsonl"
EFT_FILE = "eft.jsonl"
RANKED_FILE = "ranked.jsonl"
HELDOUT_PROMPTS_FILE = "heldout_prompts.jsonl"
HELDOUT_RANKED_FILE = "heldout_ranked.jsonl"
SEED_FILES = (IFT_FILE, EFT_FILE, RANKED_FILE, HELDOUT_PROMPTS_FILE, HELDOUT_RANKED_FILE)
MAX_SHOWN = 60
"""Characters of a wrong value that an error message shows."""


@dataclass(frozen=True, slots=True)
class SeedData:
    """What a source yields. `num_in` counts its rows: the items here plus `drops`. `notes` go to the record."""

    ift: tuple[Demonstration, ...]
    eft_train: tuple[EftExample, ...]
    ranked_train: tuple[RankedSet, ...]
    prompts_heldout: tuple[Prompt, ...]
    ranked_heldout: tuple[RankedSet, ...]
    drops: tuple[Drop, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        """Items in all five lists."""
        lists = (self.ift, self.eft_train, self.ranked_train, self.prompts_heldout, self.ranked_heldout)
        return sum(len(items) for items in lists)

    @property
    def num_in(self) -> int:
        """Rows read: items kept and items dropped."""
        return self.num_items + len(self.drops)


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object with checked access: every error names file, line and field."""

    path: Path
    line: int
    value: Mapping[str, Any]
    where: str = ""

    def fail(self, key: str, problem: str) -> DataError:
        """The error to raise about a field."""
        return DataError(f"{self.path} line {self.line}: field {self.where + key!r} {problem}")

    def get(self, key: str) -> Any:
        """A required field."""
        if key not in self.value:
            raise self.fail(key, f"is missing; the row has {sorted(self.value)}")
        return self.value[key]

    def text(self, key: str) -> str:
        """A required text that is not blank."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, f"must be a text that is not blank, got {_shown(value)}")
        return value

    def number(self, key: str) -> float:
        """A required finite number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(key, f"must be a finite number, got {_shown(value)}")
        return float(value)

    def rank(self, key: str) -> int:
        """A required rank: a whole number, 0 is best."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.fail(key, f"must be a whole number from 0 (best), got {_shown(value)}")
        return value

    def rows(self, key: str) -> list["Row"]:
        """A required list of objects."""
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.fail(key, f"must be a list of objects, got {_shown(value)}")
        return [Row(self.path, self.line, item, f"{self.where}{key}[{index}].") for index, item in enumerate(value)]


def read_lines(path: Path) -> Iterator[Row]:
    """The objects of a `.jsonl` or `.jsonl.gz` file, blank lines skipped. Raises DataError naming file and line."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    if not isinstance(value, dict):
                        raise DataError(f"{path} line {number}: must be a JSON object, got {_shown(value)}")
                    yield Row(path, number, value)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} line {number}: not JSON in UTF-8: {error}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}; check seed.path") from error


def load_files(folder: Path) -> SeedData:
    """Read a seed folder; see the module's table. Raises DataError for a missing file or a malformed row."""
    if not folder.is_dir():
        raise DataError(f"seed folder {str(folder)!r} does not exist; set seed.path to a folder that holds {IFT_FILE}")
    for name in (IFT_FILE, HELDOUT_PROMPTS_FILE):
        if not (folder / name).is_file():
            raise DataError(f"seed folder {str(folder)!r} has no {name}; it holds {sorted(p.name for p in folder.iterdir())}")
    return SeedData(
        ift=tuple(_demonstration(row) for row in _optional(folder / IFT_FILE)),
        eft_train=tuple(_eft_example(row) for row in _optional(folder / EFT_FILE)),
        ranked_train=tuple(_ranked_set(row, "ranked") for row in _optional(folder / RANKED_FILE)),
        prompts_heldout=tuple(_heldout_prompt(row) for row in _optional(folder / HELDOUT_PROMPTS_FILE)),
        ranked_heldout=tuple(_ranked_set(row, "heldout-ranked") for row in _optional(folder / HELDOUT_RANKED_FILE)),
    )


def _optional(path: Path) -> Iterator[Row]:
    if path.is_file():
        yield from read_lines(path)


def _demonstration(row: Row) -> Demonstration:
    return Demonstration(f"ift-{row.line}", row.text("prompt"), row.text("response"))


def _heldout_prompt(row: Row) -> Prompt:
    return Prompt(f"heldout-{row.line}", row.text("prompt"), "heldout")


def _eft_example(row: Row) -> EftExample:
    return EftExample(
        f"eft-{row.line}", row.text("instruction"), row.text("response"), row.text("judgement"), row.number("score")
    )


def _ranked_set(row: Row, prefix: str) -> RankedSet:
    responses = row.rows("responses")
    if len(responses) < 2:
        raise row.fail("responses", f"must hold at least two responses to compare, got {len(responses)}")
    return RankedSet(
        f"{prefix}-{row.line}",
        row.text("prompt"),
        tuple(response.text("text") for response in responses),
        tuple(response.rank("rank") for response in responses),
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
