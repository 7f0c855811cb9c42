"""Files of text -> rows: JSON lines, a JSON array, a JSON object with one list, CSV, TSV; plain, gzip or zstd. Beside them,
for who asks for it, text whose lines are prompts.

What a file is, its content tells. All but the JSON object are streamed: memory holds one row at a time. Nothing is ever
unpickled. A line that is not a JSON object in UTF-8 is a bad row; damage that hides where the next row begins (a file cut off,
another encoding, broken syntax in a JSON array or a CSV) is a DataError.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from selfreward.errors import DataError
from selfreward.sources.compressed import open_bytes, reading
from selfreward.sources.rows import BadRow, Row, Rows, excerpt
from selfreward.texts import one_line, shown

MAX_ROW = 64 << 20
"""Bytes of one row; a JSON object that holds the list of rows must fit in it as a whole."""
PARQUET = b"PAR1"
KINDS = "JSON lines, a JSON array, CSV, TSV or Parquet, as they are or as .gz or .zst (not Parquet)"
LINE_SUFFIXES = {".jsonl", ".ndjson"}
TEXT_SUFFIX = ".txt"
"""Lines of prompts, where a file of prompts is asked for. No kind of seed data: read-me files end so, too."""
DATA_SUFFIXES = {".json", ".csv", ".tsv", ".parquet"} | LINE_SUFFIXES
PACKED_SUFFIXES = {".gz", ".zst"}
_CHUNK = 1 << 16
_LONGEST_WORD = 16
"""No JSON word or escape is as long as this."""
_BLANK = " \t\r\n"

IsRow = Callable[[Mapping[str, Any]], bool]
"""Whether an object looks like one row of data, and not like a wrapper around the list of rows."""


def data_suffix(path: Path) -> str:
    """The suffix that names the kind of data, `.jsonl` for `a.jsonl.gz`; in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def text_rows(path: Path, is_row: IsRow) -> Rows:
    """How to read a file of text. Raises DataError when it is empty, blank, or of no known kind."""
    suffix = data_suffix(path)
    with reading(path), open_bytes(path) as file:
        first = _first_piece(path, file)
        if first.startswith(b"["):
            return lambda: _array(path)
        if first.startswith(b"{"):
            is_lines = suffix in LINE_SUFFIXES or _begins_with_a_line(first, file, is_row)
            return (lambda: _lines(path)) if is_lines else (lambda: _wrapped(path, is_row))
    if suffix in LINE_SUFFIXES:
        return lambda: _lines(path)
    text = first.decode(errors="replace").strip()  # It may end inside a character.
    for delimiter, own in ((",", ".csv"), ("\t", ".tsv")):
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        if suffix == own or (suffix not in DATA_SUFFIXES and is_row(dict.fromkeys(names, "text"))):
            return lambda: _table(path, delimiter)
    raise DataError(f"{path} is not {KINDS}; it begins with {shown(text)}")


def text_lines(path: Path) -> Rows:
    """How to read a file whose lines are prompts, whatever they look like. Raises DataError when it is empty, blank, or in
    another encoding."""
    with reading(path), open_bytes(path) as file:
        _first_piece(path, file)
    return lambda: _prompt_lines(path)


def _first_piece(path: Path, file: BinaryIO) -> bytes:
    """The first line that is not blank, or its beginning when it is long, without blanks before it."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    is_first = True
    while piece := file.readline(_CHUNK):
        if is_first:
            _refuse_other_encodings(path, piece)
        is_first = False
        if decoder.decode(piece).strip():
            return piece.removeprefix(codecs.BOM_UTF8).lstrip()
    raise DataError(f"{path} is empty" if is_first else f"{path} holds blank lines only")


def _begins_with_a_line(first: bytes, file: BinaryIO, is_row: IsRow) -> bool:
    """Whether JSON lines begin here: an object on one line, with something below or with the fields of a row."""
    line = first if first.endswith(b"\n") else first + file.readline(MAX_ROW)
    value = _object(line.decode(errors="replace"))  # a bad byte in it is a bad row, when its turn comes
    return value is not None and (is_row(value) or any(text.strip() for text in iter(lambda: file.readline(_CHUNK), b"")))


def _refuse_other_encodings(path: Path, line: bytes) -> None:
    """UTF-16 and UTF-32 have their own marks, or a NUL next to each ASCII character. Pickles begin with 0x80."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line[:2]:
        raise DataError(f"{path} is not text in UTF-8 but in UTF-16 or UTF-32; convert the file to UTF-8")
    if line.startswith((b"\x80", b"PK\x03\x04")) or line[257:262] == b"ustar":
        raise DataError(f"{path} is a pickle or an archive, which is not read; give {KINDS}")


def _raw_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise DataError(f"{path} line {number} is longer than {MAX_ROW >> 20} MB; split the row")
        yield line


def _lines(path: Path) -> Iterator[Row | BadRow]:
    return (item if isinstance(item, BadRow) else _line(path, number, item) for number, item in _texts(path))


def _prompt_lines(path: Path) -> Iterator[Row | BadRow]:
    return (item if isinstance(item, BadRow) else Row(str(path), number, {"prompt": item}) for number, item in _texts(path))


def _texts(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines that are not blank. One that is not UTF-8 is a bad row: the next line is as good as before."""
    with reading(path), open_bytes(path) as file:
        for number, line in enumerate(_raw_lines(path, file), start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                problem = f"not text in UTF-8 (byte 0x{line[error.start]:02x}: {error.reason}); convert the file to UTF-8"
                shown_line = line.decode("utf-8", "backslashreplace").strip()
                yield number, BadRow(number, DataError(f"{path} line {number}: {problem}"), excerpt(shown_line))
                continue
            if text:
                yield number, text


def _line(path: Path, number: int, text: str) -> Row | BadRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(number, DataError(f"{path} line {number}: not JSON: {one_line(error)}"), excerpt(text))
    if not isinstance(value, dict):
        return BadRow(number, DataError(f"{path} line {number}: must be a JSON object, got {shown(value)}"), excerpt(text))
    return Row(str(path), number, value)


def _array(path: Path) -> Iterator[Row | BadRow]:
    """The elements of a JSON array, one in memory at a time."""
    with reading(path), open_bytes(path) as file:
        text = _Text(path, file)
        text.expect("[")
        number = 0
        closed = text.peek() == "]"
        while not closed:
            number += 1
            value = text.element(number)
            if isinstance(value, dict):
                yield Row(str(path), number, value, unit="row")
            else:
                error = DataError(f"{path} row {number}: must be a JSON object, got {shown(value)}")
                yield BadRow(number, error, excerpt(shown(value)))
            closed = text.peek() == "]"
            if not closed:
                text.expect(",")
        text.expect("]")
        if text.peek():
            raise DataError(f"{path}: something follows after the JSON array's end; one array or JSON lines, not both")


class _Text:
    """A window that moves over the text of a JSON file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANK:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def expect(self, wanted: str) -> None:
        """Step over a character."""
        got = self.peek()
        if got != wanted:
            problem = f"expected {wanted!r}, got {got!r}" if got else f"the file ends where {wanted!r} was expected"
            raise DataError(f"{self._path}: the JSON array is broken: {problem}")
        self._at += 1

    def element(self, number: int) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._ended or self._is_broken(error):
                    problem = f"row {number} of the JSON array is broken or cut off: {one_line(error)}"
                    raise DataError(f"{self._path}: {problem}") from error
            else:
                # A bare number may go on behind the window's edge.
                if isinstance(value, dict) or self._ended or self._text[end : end + 1] in tuple(",]" + _BLANK):
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_ROW:
                raise DataError(f"{self._path}: row {number} of the JSON array is broken, or longer than {MAX_ROW >> 20} MB")
            self._more()

    def _is_broken(self, error: BaseException) -> bool:
        """Whether no further text can mend the value: the error is neither an open string nor at the window's edge."""
        if not isinstance(error, json.JSONDecodeError):
            return True
        return not error.msg.startswith("Unterminated") and error.pos < len(self._text) - _LONGEST_WORD

    def _more(self) -> None:
        """Let go of what was read and at least double the rest, so that long rows cost linear time."""
        rest = self._text[self._at :]
        raw = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not raw
        self._text, self._at = rest + self._decode.decode(raw, final=self._ended), 0


def _wrapped(path: Path, is_row: IsRow) -> Iterator[Row | BadRow]:
    """The rows of the one list that a JSON object holds; or the object itself, written over several lines."""
    with reading(path), open_bytes(path) as file:
        raw = file.read(MAX_ROW + 1)
    if len(raw) > MAX_ROW:
        raise DataError(f"{path} is one JSON object of more than {MAX_ROW >> 20} MB; convert it to JSON lines, one row a line")
    with reading(path):
        text = raw.decode("utf-8-sig")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON, nor JSON lines: {one_line(error)}") from error
    if is_row(value):
        yield Row(str(path), 1, value, unit="row")
        return
    lists = [key for key, items in value.items() if isinstance(items, list) and items]
    if len(lists) != 1:
        raise DataError(f"{path} is one JSON object with keys {shown(sorted(value))}; it must hold one list of rows")
    for number, item in enumerate(value[lists[0]], start=1):
        if isinstance(item, dict):
            yield Row(str(path), number, item, unit="row")
        else:
            problem = f"{path} row {number} of {lists[0]!r}: must be a JSON object, got {shown(item)}"
            yield BadRow(number, DataError(problem), excerpt(shown(item)))


def _table(path: Path, delimiter: str) -> Iterator[Row | BadRow]:
    """A CSV's rows; its first row names the columns. A row with too many or too few cells is a bad row."""
    csv.field_size_limit(MAX_ROW)
    with reading(path), open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names = next((cells for cells in reader if cells), [])
            if len(set(names)) < len(names) or not all(name.strip() for name in names):
                raise DataError(f"{path}: the first row must name each column, once; got {shown(names)}")
            number = 0
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) == len(names):
                    yield Row(str(path), number, dict(zip(names, cells, strict=True)), unit="row", is_text=True)
                else:
                    error = DataError(f"{path} row {number}: has {len(cells)} cells for {len(names)} columns {shown(names)}")
                    yield BadRow(number, error, excerpt(delimiter.join(cells)))
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: broken CSV: {one_line(error)}") from error


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
