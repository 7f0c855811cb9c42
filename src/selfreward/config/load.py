"""YAML file + `a.b=c` overrides -> `Config`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfreward.config.errors import SECRETIVE, dotted, explain
from selfreward.config.overrides import apply, parse_override
from selfreward.config.rules import Broken, broken_rules
from selfreward.config.secrets import ADVICE, secret_values
from selfreward.config.tree import Config
from selfreward.config.yaml_text import Parsed, parse_yaml
from selfreward.config.yaml_text import Path as Setting
from selfreward.errors import ConfigError, ProblemsError
from selfreward.texts import one_line, shown

COMMAND_LINE = "command line"


@dataclass
class _Origin:
    """Where settings come from: a file with lines, or the command line."""

    name: str
    parsed: Parsed = field(default_factory=lambda: Parsed({}, {}))
    shell: set[Setting] = field(default_factory=set)

    def has_shell(self, path: Setting) -> bool:
        """Whether a setting, or a part of it, was given on the command line."""
        return any(path[: len(leaf)] == leaf for leaf in self.shell)

    def of(self, path: Setting) -> str:
        """Where a setting comes from."""
        if self.has_shell(path):
            return COMMAND_LINE
        line = self.parsed.line_of(path)
        if line is None and any(leaf[: len(path)] == path for leaf in self.shell):  # a section that only the shell names
            return COMMAND_LINE
        return self.name if line is None else f"{self.name} line {line}"

    def of_rule(self, broken: Broken) -> str:
        """A rule reads several settings: the command line's, where one of them was given there."""
        reads = [tuple(setting.split(".")) for setting in broken.rule.reads]
        given = any(leaf[: len(path)] == path or path[: len(leaf)] == leaf for path in reads for leaf in self.shell)
        return COMMAND_LINE if given else self.name


def load_config(path: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, validate. `name` stands in for a file's without one.

    Raises ConfigError for one wrong key or value, ProblemsError (a ConfigError) with each of several.
    """
    origin = _Origin(str(path), _read(Path(path)))
    tree = origin.parsed.value if name is None else {"name": name} | origin.parsed.value
    return _with_overrides(tree, overrides, origin)


def default_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The default settings, with `a.b=c` overrides applied; raises ConfigError as `load_config` does."""
    return _with_overrides({"name": name}, overrides, _Origin("settings"))


def parse_config(tree: Any, origin: str = "config") -> Config:
    """Validate a plain mapping; see `load_config`."""
    return _parse(tree, _Origin(origin))


def _read(path: Path) -> Parsed:
    """The file's settings. Raises ConfigError where it is no YAML mapping."""
    if path.is_dir():
        raise ConfigError(f"config file {str(path)!r} is a folder; give the YAML file in it")
    if not path.exists():
        raise ConfigError(f"config file {str(path)!r} does not exist")
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} is no plain file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror or one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at place {error.start}; save it as UTF-8"
        ) from error
    try:
        parsed = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from error
    if parsed.value is None:
        raise ConfigError(f"{path} is empty; it must hold settings, at least name: NAME")
    if not isinstance(parsed.value, dict):
        kind = "a list" if isinstance(parsed.value, list) else "one value"
        raise ConfigError(f"{path} must hold a mapping of settings at its top level, not {kind}")
    return parsed


def _with_overrides(tree: dict[str, Any], overrides: Sequence[str], origin: _Origin) -> Config:
    problems = []
    for text in overrides:
        try:
            override = parse_override(text)
            origin.shell |= apply(tree, override)
        except ConfigError as error:
            problems.append(f"{COMMAND_LINE}: {error}")
    if problems:
        raise ProblemsError.of([ConfigError(problem) for problem in problems])
    return _parse(tree, origin)


def _parse(tree: Any, origin: _Origin) -> Config:
    # First of all: nothing below may put a secret into a message.
    if refused := [*_secrets(tree, origin), *_interpolations(tree, origin)]:
        raise ProblemsError.of([ConfigError(problem) for problem in refused])
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["loc"]]
        problems = [f"{origin.of(item['loc'])}: {explain(item, Config, origin.has_shell(item['loc']))}" for item in wrong]
        if not isinstance(tree, Mapping):
            problems.append(f"{origin.name}: must be a mapping of settings, got {shown(tree)}")
        else:
            broken = _broken_among_valid(tree, {str(item["loc"][0]) for item in wrong})
            problems += [f"{origin.of_rule(item)}: {item}" for item in broken]
        raise ProblemsError.of([ConfigError(problem) for problem in dict.fromkeys(problems)]) from error


def _broken_among_valid(tree: Mapping[str, Any], wrong: set[str]) -> list[Broken]:
    """The rules that do not hold between sections that are valid for themselves."""
    valid = {name: item for name, item in Config.model_fields.items() if name not in wrong}
    parts = {
        name: TypeAdapter[Any](item.annotation or Any).validate_python(tree[name])
        for name, item in valid.items()
        if name in tree
    }
    return broken_rules(Config.model_construct(**parts), frozenset(valid))


def _secrets(tree: Any, origin: _Origin) -> list[str]:
    return [f"{origin.of(path)}: {dotted(path) or 'a value'} looks like {what}; {ADVICE}" for path, what in secret_values(tree)]


def _interpolations(value: Any, origin: _Origin, path: Setting = ()) -> list[str]:
    """A text with `${...}` would mean something in other tools; here it would be taken as it is, and nobody wants that."""
    if isinstance(value, str) and "${" in value:
        return [
            f"{origin.of(path)}: {dotted(path)}{'' if path[0] in SECRETIVE else '=' + shown(value)}: nothing is filled in for "
            f'${{...}}; write the value, or give it on the command line, where the shell fills in: {dotted(path)}="$NAME"'
        ]
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    return [line for key, item in items for line in _interpolations(item, origin, (*path, key))]
