"""Files of a run: rows (Parquet), JSON, hashes, derived seeds. Knows no stage and no run directory.

Writing is atomic (temporary file in the same folder, fsync, rename), so a killed process leaves either the old
file or the new one. The same rows give the same bytes with the same pyarrow version.
"""

import dataclasses
import hashlib
import json
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from selfreward.disk import writing
from selfreward.errors import CorruptArtifactError, DataError, ModelError
from selfreward.texts import one_line

T = TypeVar("T")

TEMPORARY_PREFIX = ".tmp-"
"""Names of half-written files start with this; they never count as part of an artifact."""
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "additional_chat_templates/*.jinja")
"""What decides how a model folder behaves: weights, settings, templates, vocabularies, shipped code."""
_HASH_BLOCK = 1 << 20
_GROUP_ROWS, _GROUP_CHARACTERS = 8192, 1 << 23
"""What `writing_rows` holds back before it writes a row group."""


# --- seeds and hashes ---------------------------------------------------------------------------------------------


def derive_seed(*parts: str | int) -> int:
    """A number in [0, 2**63) from the parts, equal on every machine and in every process.

    The encoding is unambiguous: ("ab", "c"), ("a", "bc") and ("1",) against (1,) give different seeds.
    """
    digest = hashlib.sha256(json.dumps(parts).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of the value's canonical JSON (keys sorted; dataclasses, paths, pydantic models allowed)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=to_plain)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def hash_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hex. Raises CorruptArtifactError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def hash_model(path: str | Path) -> str:
    """SHA-256 over the names and contents of the files that decide a model folder's behaviour, in hex.

    Optimizer states, pickles and read-me files do not count. Raises ModelError when the folder holds none of them.
    """
    folder = Path(path)
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise ModelError(f"{str(path)!r} is not a model folder: it holds none of {', '.join(MODEL_FILES)}")
    return hashlib.sha256(json.dumps([(f.relative_to(folder).as_posix(), hash_file(f)) for f in files]).encode()).hexdigest()


# --- JSON -----------------------------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """What `json` shall store for an object that it does not know. Raises TypeError for a type without a plain form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON: {value!r}")


def write_json(path: str | Path, value: Any) -> None:
    """Store a value as readable JSON, atomically. NaN and infinity raise ValueError: JSON has no such numbers, use None."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=to_plain)
    write_bytes(path, (text + "\n").encode("utf-8", errors="surrogatepass"))


def read_json(path: str | Path) -> Any:
    """Read what `write_json` wrote. Raises CorruptArtifactError when the file is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8", errors="surrogatepass"))
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}; delete its stage folder to make it again") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file's content atomically; its folder is created when missing. Raises StorageError where the disk refuses."""
    with replacing(path, len(data)) as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A file to write in pieces; it takes `path`'s place when the block ends, and vanishes when the block raises.

    `needed`: its bytes, where they are known. Raises StorageError where the disk refuses.
    """
    with writing(path, needed), _replacing(Path(path)) as file:
        yield file


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # only there a folder can be flushed, so that the rename itself survives a power cut
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- rows -----------------------------------------------------------------------------------------------------------


def write_rows(
    path: str | Path, items: Sequence[Any], cls: type[Any] | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Store dataclass rows as Parquet (zstd), atomically.

    All rows have one type: `cls`, or the first row's. Pass `cls` when the list may be empty, so that even an empty
    file has its columns. Raises DataError naming the field when a value does not fit its type hint, StorageError where the
    disk refuses.
    """
    write_bytes(path, encode_rows(path, items, cls, metadata))


def encode_rows(
    path: str | Path, items: Sequence[Any], cls: type[Any] | None = None, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes that `write_rows` stores; `path` is only named in errors."""
    row_type = cls or (type(items[0]) if items else None)
    table = pa.Table.from_pylist([], schema=pa.schema([])) if row_type is None else _table(path, items, row_type)
    if metadata is not None:
        table = table.replace_schema_metadata(dict(metadata))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def _table(path: str | Path, items: Sequence[Any], cls: type[Any]) -> pa.Table:
    encode = _record_codec(cls).encode
    rows = [encode(item, cls.__name__) for item in items]
    try:
        return pa.Table.from_pylist(rows, schema=arrow_schema(cls))
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise DataError(f"{path}: {cls.__name__} rows cannot be stored: {error}") from error


@contextmanager
def writing_rows(path: str | Path, cls: type[T]) -> Iterator[Callable[[T], None]]:
    """A function that adds one row to a Parquet file of any length; at most one row group waits in memory.

    The file takes its place when the block ends, whole; when the block raises, nothing is left. `read_rows` reads it.
    Raises DataError as `write_rows` does, at the latest when the block ends.
    """
    waiting: list[T] = []
    texts = [field.name for field in dataclasses.fields(cast(Any, cls))]
    length = 0
    with (
        replacing(path) as file,
        pq.ParquetWriter(file, arrow_schema(cls), compression="zstd", write_page_checksum=True) as writer,
    ):

        def flush() -> None:
            nonlocal length
            writer.write_table(_table(path, waiting, cls))
            waiting.clear()
            length = 0

        def add(row: T) -> None:
            nonlocal length
            waiting.append(row)
            length += sum(len(value) for name in texts if isinstance(value := getattr(row, name), str))
            if len(waiting) >= _GROUP_ROWS or length >= _GROUP_CHARACTERS:
                flush()

        yield add
        flush()


def read_rows(path: str | Path, cls: type[T]) -> list[T]:
    """Read rows of type `cls` that `write_rows` wrote.

    Fields with a default may be absent: a file from before they were added gives rows with the default. Raises
    CorruptArtifactError when the file is missing, truncated, damaged, or holds rows of another type.
    """
    table = _read_table(path)
    if table.num_rows == 0 and table.num_columns == 0:
        return []
    expected = arrow_schema(cls)
    if not _can_read(pa.struct(list(table.schema)), cls):
        raise CorruptArtifactError(
            f"{path} does not hold {cls.__name__} rows: it has columns {table.schema.names}, expected {expected.names}"
            f"{'' if table.schema.names != expected.names else ' with other types'}"
        )
    decode = _record_codec(cls).decode
    return [decode(row) for row in table.to_pylist()]


def holds_rows(path: str | Path, cls: type[Any]) -> bool:
    """Whether a file is a table that `write_rows` wrote of rows of type `cls`. False for a file that is no Parquet."""
    try:
        return bool(pq.read_schema(path).equals(arrow_schema(cls)))
    except (OSError, pa.ArrowException):
        return False


def read_rows_metadata(path: str | Path) -> dict[str, str]:
    """The `metadata` that `write_rows` stored. Raises CorruptArtifactError as `read_rows` does."""
    metadata = _read_table(path).schema.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if not key.startswith(b"ARROW:")}


def arrow_schema(cls: type[Any]) -> pa.Schema:
    """The Parquet columns of a dataclass, from its type hints."""
    return pa.schema(list(_record_codec(cls).arrow))


def _read_table(path: str | Path) -> pa.Table:
    try:
        data = Path(path).read_bytes()
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifactError(
            f"{path} cannot be read: {one_line(error)}; delete its stage folder to make it again"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Codec:
    """How one type hint is stored: its Arrow type, Python -> plain value (with the field's name, for errors), and back."""

    arrow: pa.DataType
    encode: Callable[[Any, str], Any]
    decode: Callable[[Any], Any]
    nullable: bool = False


_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


_CODECS: dict[type[Any], _Codec] = {}


def _record_codec(cls: type[Any]) -> _Codec:
    """Codec of a dataclass, made once; its Arrow type is a struct."""
    if cls not in _CODECS:
        _CODECS[cls] = _make_record_codec(cls)
    return _CODECS[cls]


def _make_record_codec(cls: type[Any]) -> _Codec:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"rows must be dataclasses, got {cls!r}")
    hints = typing.get_type_hints(cls)
    codecs = {field.name: _codec(hints[field.name]) for field in dataclasses.fields(cls)}

    def encode(value: Any, where: str) -> Any:
        if type(value) is not cls:
            raise DataError(f"{where}: expected {cls.__name__}, got {type(value).__name__} {value!r}")
        return {name: codec.encode(getattr(value, name), f"{where}.{name}") for name, codec in codecs.items()}

    def decode(value: Any) -> Any:
        return cls(**{name: codec.decode(value[name]) for name, codec in codecs.items() if name in value})

    arrow = pa.struct([pa.field(name, codec.arrow, nullable=codec.nullable) for name, codec in codecs.items()])
    return _Codec(arrow, encode, decode)


def _can_read(stored: pa.DataType, hint: Any) -> bool:
    """Whether values of a stored type can be read as `hint`: the same type, or one from before a field with a default was
    added or a field could be None."""
    if dataclasses.is_dataclass(hint) and pa.types.is_struct(stored):
        names = [field.name for field in stored]
        has_default = {field.name: field.default is not dataclasses.MISSING for field in dataclasses.fields(hint)}
        hints = typing.get_type_hints(hint)
        return names == [name for name in hints if name in names or not has_default[name]] and all(
            field.nullable <= _codec(hints[field.name]).nullable and _can_read(field.type, hints[field.name])
            for field in stored
        )
    arguments = [argument for argument in typing.get_args(hint) if argument not in (type(None), Ellipsis)]
    if typing.get_origin(hint) is tuple and pa.types.is_list(stored):
        inner = stored.value_field
        return bool(inner.nullable <= _codec(arguments[0]).nullable and _can_read(inner.type, arguments[0]))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _can_read(stored, arguments[0])
    return bool(stored == _codec(hint).arrow)


def _codec(hint: Any) -> _Codec:
    """Codec of a type hint: a scalar, a Literal, `X | None`, `tuple[X, ...]` or a dataclass."""
    if hint in _SCALARS:
        return _scalar_codec(hint)
    if dataclasses.is_dataclass(hint):
        return _record_codec(cast(type[Any], hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _literal_codec(arguments)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1 and len(arguments) == 2:
            return _optional_codec(_codec(inner[0]))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _tuple_codec(_codec(arguments[0]))
    raise TypeError(f"rows cannot hold fields of type {hint}; use str, int, float, bool, Literal, X | None, tuple[X, ...]")


def _scalar_codec(hint: type[Any]) -> _Codec:
    # Checked here and not by Arrow, which would cut 4.5 to 4 inside a struct.
    allowed = (float, int) if hint is float else (hint,)

    def encode(value: Any, where: str) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
            raise DataError(f"{where}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
        return value

    return _Codec(_SCALARS[hint], encode, lambda value: value)


def _literal_codec(allowed: tuple[Any, ...]) -> _Codec:
    kinds = {type(value) for value in allowed}
    if len(kinds) != 1:
        raise TypeError(f"rows cannot hold a Literal of mixed types: {allowed}")

    def encode(value: Any, where: str) -> Any:
        if value not in allowed:
            raise DataError(f"{where}: expected one of {allowed}, got {value!r}")
        return value

    return _Codec(_SCALARS[kinds.pop()], encode, lambda value: value)


def _optional_codec(inner: _Codec) -> _Codec:
    return _Codec(
        inner.arrow,
        lambda value, where: None if value is None else inner.encode(value, where),
        lambda value: None if value is None else inner.decode(value),
        nullable=True,
    )


def _tuple_codec(inner: _Codec) -> _Codec:
    def encode(value: Any, where: str) -> Any:
        if not isinstance(value, tuple):
            raise DataError(f"{where}: expected a tuple, got {type(value).__name__} {value!r}")
        return [inner.encode(item, f"{where}[{index}]") for index, item in enumerate(value)]

    arrow = pa.list_(pa.field("element", inner.arrow, nullable=inner.nullable))
    return _Codec(arrow, encode, lambda value: tuple(inner.decode(item) for item in value))
