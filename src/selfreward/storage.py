"""Files of a run: rows (Parquet), JSON, hashes, derived seeds. Knows no stage and no run directory.

Writing is atomic (temporary file in the same folder, fsync, rename), so a killed process leaves either the old
file or the new one. The same rows give the same bytes with the same pyarrow version.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from selfreward.columns import arrow_schema, can_read, record_codec
from selfreward.disk import writing
from selfreward.errors import ConfigError, CorruptArtifactError, DataError, ModelError
from selfreward.redaction import holds_secret
from selfreward.texts import one_line

T = TypeVar("T")

TEMPORARY_PREFIX = ".tmp-"
"""Names of half-written files start with this; they never count as part of an artifact."""
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "additional_chat_templates/*.jinja")
"""What decides how a model folder behaves: weights, settings, templates, vocabularies, shipped code."""
_HASH_BLOCK = 1 << 20
_BATCH_ROWS = 256
"""What `iter_rows` decodes at a time."""
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


def hash_file(path: str | Path, look: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file's content, in hex. Raises CorruptArtifactError when it cannot be read. `look` is called between
    blocks: what it raises ends the work."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                digest.update(block)
                look()
    except OSError as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def hash_model(path: str | Path, look: Callable[[], None] = lambda: None) -> str:
    """SHA-256 over the names and contents of the files that decide a model folder's behaviour, in hex.

    Optimizer states, pickles and read-me files do not count. Raises ModelError when the folder holds none of them. `look`
    is called between blocks.
    """
    folder = Path(path)
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise ModelError(f"{str(path)!r} is not a model folder: it holds none of {', '.join(MODEL_FILES)}")
    hashes = [(file.relative_to(folder).as_posix(), hash_file(file, look)) for file in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


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


def refuse_secrets(*values: Any) -> None:
    """What a run folder keeps of its settings and command must not hold a key."""
    if holds_secret(json.dumps(values, default=to_plain, ensure_ascii=False)):
        raise ConfigError(
            "the value of an API key stands in the settings or in the command itself; the run's folder would keep it. Leave it "
            "in the environment variable that endpoints.NAME.api_key_env names"
        )


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
    encode = record_codec(cls).encode
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
    _check_columns(path, table.schema, cls)
    decode = record_codec(cls).decode
    return [decode(row) for row in table.to_pylist()]


def iter_rows(path: str | Path, cls: type[T]) -> Iterator[T]:
    """The rows that `read_rows` gives, a few hundred in memory at a time. Raises CorruptArtifactError as it does, for damage
    inside the file when it is met."""
    with _naming_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        _check_columns(path, file.schema_arrow, cls)
        decode = record_codec(cls).decode
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from map(decode, batch.to_pylist())


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


def _check_columns(path: str | Path, stored: pa.Schema, cls: type[Any]) -> None:
    expected = arrow_schema(cls)
    if not can_read(pa.struct(list(stored)), cls):
        raise CorruptArtifactError(
            f"{path} does not hold {cls.__name__} rows: it has columns {stored.names}, expected {expected.names}"
            f"{'' if stored.names != expected.names else ' with other types'}"
        )


def _read_table(path: str | Path) -> pa.Table:
    with _naming_damage(path):
        data = Path(path).read_bytes()
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


@contextmanager
def _naming_damage(path: str | Path) -> Iterator[None]:
    try:
        yield
    except CorruptArtifactError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifactError(
            f"{path} cannot be read: {one_line(error)}; delete its stage folder to make it again"
        ) from error
