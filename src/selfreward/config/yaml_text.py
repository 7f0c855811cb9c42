"""YAML text -> plain values and the line of each setting; nothing surprising is read out of a text.

Numbers, true, false and null are what YAML 1.2 says: `no`, `on` and `1:30` are texts, `1e-4` is a number. Keys are texts and
stand once. Aliases are copied, within bounds: a few lines of them could otherwise spell millions of values.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from selfreward.errors import ConfigError
from selfreward.texts import one_line, shown

MAX_TEXT, MAX_VALUES, MAX_DEPTH = 65_536, 20_000, 40
"""A config is a few pages: characters, values with all aliases written out, and levels."""

Path = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_OCTAL = re.compile(r"[-+]?0[0-9_]+")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text holds. `lines`: path of a setting -> its line, from 1."""

    value: Any
    lines: Mapping[Path, int]

    def line_of(self, path: Path) -> int | None:
        """The line of a setting, or of the nearest one around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


class _Loader(yaml.SafeLoader):
    """Only composes: what its nodes mean is decided here."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way; it copies the mapping when it adds


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(f"(?:{_pattern})$"), ["" if c == "\0" else c for c in _first])


def parse_yaml(text: str) -> Parsed:
    """Read a text of one YAML document. Raises ConfigError that says where it is none; it shows no value that was read."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"has {len(text):,} characters; a config has {MAX_TEXT:,} at most")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"line {line}: is not valid YAML: the character {error.character:#06x} has no place in a text"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"is nested deeper than {MAX_DEPTH} levels") from error
    if node is None:
        return Parsed(None, {})
    builder = _Builder()
    value = builder.build(node, ())
    return Parsed(value, builder.lines)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> str:
    mark, problem = error.problem_mark or error.context_mark, error.problem or "it ends too early"
    line = "" if mark is None else f"line {mark.line + 1}: "
    if "\\t" in problem or (mark is not None and text.splitlines()[mark.line : mark.line + 1] and _tab_at(text, mark)):
        problem = "there is a tab; indent with blanks"
    elif "single document" in problem or "single document" in str(error.context):
        problem = "a second document begins (---); a config is one"
    elif "undefined alias" in problem:
        problem = "an alias (*) names no anchor (&)"
    elif "duplicate anchor" in problem:
        problem = "an anchor (&) is there twice"
    elif "mapping values are not allowed" in problem:
        problem = "a value holds ': '; put it in quotes"
    elif "stream end" in problem:
        problem = "it ends before a bracket or a quotation mark is closed"
    elif "cannot start any token" in problem:
        problem = f"{problem}; put the value in quotes"
    return f"{line}is not valid YAML: {problem}"


def _tab_at(text: str, mark: Any) -> bool:
    line = text.splitlines()[mark.line]
    return "\t" in line[: len(line) - len(line.lstrip())]


@dataclass
class _Builder:
    """Values of a document's nodes. An alias is the very node that its anchor marks."""

    lines: dict[Path, int] = field(default_factory=dict)
    _left: int = MAX_VALUES
    _open: list[int] = field(default_factory=list)

    def build(self, node: yaml.Node, path: Path) -> Any:
        """The value of a node."""
        self._left -= 1
        if self._left < 0:
            raise ConfigError(f"line {_line(node)}: its aliases spell more than {MAX_VALUES:,} values; write out what is meant")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"line {_line(node)}: is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self._open:
            raise ConfigError(f"line {_line(node)}: an alias (*) stands inside of what it names")
        self._open.append(id(node))
        value = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        self._open.pop()
        return value

    def _sequence(self, node: yaml.Node, path: Path) -> list[Any]:
        _check_tag(node, "seq")
        for place, item in enumerate(node.value):
            self.lines[(*path, place)] = _line(item)
        return [self.build(item, (*path, place)) for place, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        _check_tag(node, "map")
        value: dict[str, Any] = {}
        own: dict[str, int] = {}
        for key_node, item in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = _key(key_node)
            if key in own:
                raise ConfigError(f"line {_line(key_node)}: {shown(key)} is set twice, first in line {own[key]}; remove one")
            own[key] = self.lines[(*path, key)] = _line(key_node)
            value[key] = self.build(item, (*path, key))
        return {**self._merged(node, path, own), **value}

    def _merged(self, node: yaml.MappingNode, path: Path, own: Mapping[str, int]) -> dict[str, Any]:
        """What `<<` brings in: the first of several wins, and what the mapping sets itself wins over all."""
        merged: dict[str, Any] = {}
        for source in _sources(node):
            if not isinstance(source, yaml.MappingNode):
                raise ConfigError(f"line {_line(source)}: << takes a mapping, or a list of them")
            lines, self.lines = self.lines, {}
            found = self.build(source, path)
            inner, self.lines = self.lines, lines
            for key in found.keys() - merged.keys() - own.keys():
                merged[key] = found[key]
                self.lines |= {at: line for at, line in inner.items() if at[: len(path) + 1] == (*path, key)}
        return merged


def _sources(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    for key, item in node.value:
        if key.tag == _TAG + "merge":
            yield from item.value if isinstance(item, yaml.SequenceNode) else [item]


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in (_TAG + "str", _TAG + "null"):
        name = f" {shown(node.value)}" if isinstance(node, yaml.ScalarNode) else ""
        raise ConfigError(f"line {_line(node)}: the key{name} is no text; settings have names")
    if node.tag == _TAG + "null":
        raise ConfigError(f"line {_line(node)}: a key is empty; settings have names")
    return str(node.value)


def _scalar(node: yaml.ScalarNode) -> Any:
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind in ("str", "merge"):
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int" and _OCTAL.fullmatch(text):
        raise ConfigError(
            f"line {_line(node)}: {shown(text)} begins with 0, which may mean octal; leave the 0 out, or put a text in quotes"
        )
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError as error:
        raise ConfigError(f"line {_line(node)}: {shown(text)} is no number that can be read") from error
    raise ConfigError(f"line {_line(node)}: the tag {node.tag!r} is not read; write the value itself")


def _check_tag(node: yaml.Node, kind: str) -> None:
    if node.tag != _TAG + kind:
        raise ConfigError(f"line {_line(node)}: the tag {node.tag!r} is not read; write the value itself")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
