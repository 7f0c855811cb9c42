"""Rows as containers yield them: an object with checked access to its fields, or a row that cannot be read.

Every error names file, line (or row) and field. A field that is null counts as absent, because tables of fixed columns
cannot tell the two apart.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfreward.errors import DataError
from selfreward.texts import shown

MAX_EXCERPT = 1000
"""Characters of an unreadable row that its drop keeps."""
MAX_ID = 200
"""Characters of a row's own id."""
ID_KEYS = ("id", "prompt_id")
"""Fields that hold a row's own id, the first one that is there."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read: where it stands, why, and its raw beginning."""

    number: int
    error: DataError
    excerpt: str


@dataclass(frozen=True, slots=True)
class Row:
    """One object. `number` counts from 1: the line, or the row where the container has no lines (`unit`).

    `is_text`: the cells of a CSV, where numbers and lists are written as texts.
    """

    path: str
    number: int
    value: Mapping[str, Any]
    where: str = ""
    unit: str = "line"
    is_text: bool = False

    def fail(self, key: str, problem: str) -> DataError:
        """The error to raise about a field."""
        return DataError(f"{self.path} {self.unit} {self.number}: field {self.where + key!r} {problem}")

    def bad(self, error: DataError) -> BadRow:
        """This row as one that cannot be read."""
        return BadRow(self.number, error, excerpt(to_json(self.value)))

    def find(self, *keys: str) -> str:
        """The first of some keys whose field is there and not null."""
        for key in keys:
            if self.value.get(key) is not None:
                return key
        for key in keys:
            if key in self.value:
                raise self.fail(key, "is null")
        named = " or ".join(repr(self.where + key) for key in keys)
        keys_found = shown(sorted(map(str, self.value)))
        raise DataError(f"{self.path} {self.unit} {self.number}: field {named} is missing; the row has {keys_found}")

    def has(self, *keys: str) -> bool:
        """Whether all these fields are there and not null; a CSV writes null as an empty cell."""
        absent: tuple[Any, ...] = (None, "") if self.is_text else (None,)
        return all(self.value.get(key) not in absent for key in keys)

    def get(self, key: str) -> Any:
        """A required field."""
        return self.value[self.find(key)]

    def string(self, *keys: str) -> str:
        """A required text, blank or not: the first of the keys that is there."""
        key = self.find(*keys)
        value = self.value[key]
        if not isinstance(value, str):
            raise self.fail(key, f"must be a text, got {shown(value)}")
        if not is_unicode(value):
            raise self.fail(key, f"holds half of a surrogate pair, which no text in UTF-8 can, got {shown(value)}")
        return value

    def text(self, key: str) -> str:
        """A required text that is not blank."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, f"must be a text that is not blank, got {shown(value)}")
        return self.string(key)

    def optional(self, key: str) -> str | None:
        """A text that is not blank, or None."""
        return (self.string(key) if self.has(key) else "").strip() or None

    def number_at(self, key: str) -> float:
        """A required finite number."""
        value = self._plain(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self.fail(key, f"must be a finite number, got {shown(value)}")
        return float(value)

    def rank(self, key: str) -> int:
        """A required rank: a whole number from 0; 2.0 counts as 2, because tables with gaps store floats."""
        value = self._plain(key)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 0:
            raise self.fail(key, f"must be a whole number from 0, got {shown(value)}")
        return int(value)

    def items(self, key: str) -> Sequence[Any]:
        """A required list."""
        value = self._plain(key)
        if not isinstance(value, list):
            raise self.fail(key, f"must be a list, got {shown(value)}")
        return value

    def rows(self, key: str) -> list["Row"]:
        """A required list of objects."""
        value = self._plain(key)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.fail(key, f"must be a list of objects, got {shown(value)}")
        return [self.inner(item, f"{key}[{index}]") for index, item in enumerate(value)]

    def inner(self, value: Mapping[str, Any], key: str) -> "Row":
        """An object inside this row, so that errors name its place."""
        return replace(self, value=value, where=f"{self.where}{key}.", is_text=False)

    def own_id(self, *keys: str) -> str | None:
        """The row's own id, a text or a whole number; None where it has none."""
        for key in keys or ID_KEYS:
            value = self.value.get(key)
            if value is None or value == "":
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, str | int) or not 0 < len(str(value).strip()) <= MAX_ID:
                raise self.fail(key, f"must be a whole number or a text of at most {MAX_ID} characters, got {shown(value)}")
            return self.string(key).strip() if isinstance(value, str) else str(value)
        return None

    def _plain(self, key: str) -> Any:
        """A required field; a CSV's text is read as the number or list that it spells."""
        value = self.get(key)
        if self.is_text and isinstance(value, str):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value  # The caller's error shows the text.
        return value


Rows = Callable[[], Iterator[Row | BadRow]]
"""Opens a container anew and streams what it holds."""


def is_unicode(text: str) -> bool:
    """Whether the text can be written in UTF-8: no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_json(value: Any) -> str:
    """JSON text that UTF-8 can hold, whatever the value: lone surrogates are escaped, other types become their text."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except (ValueError, TypeError, RecursionError):  # NaN, odd keys, nesting: no JSON value, so its Python form.
        text = json.dumps(repr(value), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def excerpt(text: str) -> str:
    """The beginning of a raw row."""
    return text if len(text) <= MAX_EXCERPT else f"{text[:MAX_EXCERPT]}..."


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # A whole number beyond all floats.
        return False
