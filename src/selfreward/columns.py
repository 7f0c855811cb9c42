"""Dataclasses as Parquet columns: the Arrow type of each field, and its values there and back."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, cast

import pyarrow as pa

from selfreward.errors import DataError


def arrow_schema(cls: type[Any]) -> pa.Schema:
    """The Parquet columns of a dataclass, from its type hints."""
    return pa.schema(list(record_codec(cls).arrow))


@dataclasses.dataclass(frozen=True)
class Codec:
    """How one type hint is stored: its Arrow type, Python -> plain value (with the field's name, for errors), and back."""

    arrow: pa.DataType
    encode: Callable[[Any, str], Any]
    decode: Callable[[Any], Any]
    nullable: bool = False


_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


_CODECS: dict[type[Any], Codec] = {}


def record_codec(cls: type[Any]) -> Codec:
    """Codec of a dataclass, made once; its Arrow type is a struct."""
    if cls not in _CODECS:
        _CODECS[cls] = _make_record_codec(cls)
    return _CODECS[cls]


def _make_record_codec(cls: type[Any]) -> Codec:
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
    return Codec(arrow, encode, decode)


def can_read(stored: pa.DataType, hint: Any) -> bool:
    """Whether values of a stored type can be read as `hint`: the same type, or one from before a field with a default was
    added or a field could be None."""
    if dataclasses.is_dataclass(hint) and pa.types.is_struct(stored):
        names = [field.name for field in stored]
        has_default = {field.name: field.default is not dataclasses.MISSING for field in dataclasses.fields(hint)}
        hints = typing.get_type_hints(hint)
        return names == [name for name in hints if name in names or not has_default[name]] and all(
            field.nullable <= _codec(hints[field.name]).nullable and can_read(field.type, hints[field.name]) for field in stored
        )
    arguments = [argument for argument in typing.get_args(hint) if argument not in (type(None), Ellipsis)]
    if typing.get_origin(hint) is tuple and pa.types.is_list(stored):
        inner = stored.value_field
        return bool(inner.nullable <= _codec(arguments[0]).nullable and can_read(inner.type, arguments[0]))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return can_read(stored, arguments[0])
    return bool(stored == _codec(hint).arrow)


def _codec(hint: Any) -> Codec:
    """Codec of a type hint: a scalar, a Literal, `X | None`, `tuple[X, ...]` or a dataclass."""
    if hint in _SCALARS:
        return _scalar_codec(hint)
    if dataclasses.is_dataclass(hint):
        return record_codec(cast(type[Any], hint))
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


def _scalar_codec(hint: type[Any]) -> Codec:
    # Checked here and not by Arrow, which would cut 4.5 to 4 inside a struct.
    allowed = (float, int) if hint is float else (hint,)

    def encode(value: Any, where: str) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
            raise DataError(f"{where}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
        return value

    return Codec(_SCALARS[hint], encode, lambda value: value)


def _literal_codec(allowed: tuple[Any, ...]) -> Codec:
    kinds = {type(value) for value in allowed}
    if len(kinds) != 1:
        raise TypeError(f"rows cannot hold a Literal of mixed types: {allowed}")

    def encode(value: Any, where: str) -> Any:
        if value not in allowed:
            raise DataError(f"{where}: expected one of {allowed}, got {value!r}")
        return value

    return Codec(_SCALARS[kinds.pop()], encode, lambda value: value)


def _optional_codec(inner: Codec) -> Codec:
    return Codec(
        inner.arrow,
        lambda value, where: None if value is None else inner.encode(value, where),
        lambda value: None if value is None else inner.decode(value),
        nullable=True,
    )


def _tuple_codec(inner: Codec) -> Codec:
    def encode(value: Any, where: str) -> Any:
        if not isinstance(value, tuple):
            raise DataError(f"{where}: expected a tuple, got {type(value).__name__} {value!r}")
        return [inner.encode(item, f"{where}[{index}]") for index, item in enumerate(value)]

    arrow = pa.list_(pa.field("element", inner.arrow, nullable=inner.nullable))
    return Codec(arrow, encode, lambda value: tuple(inner.decode(item) for item in value))
