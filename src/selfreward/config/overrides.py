"""Settings of the command line, `section.key=value`, laid over those of a file."""

import re
from dataclasses import dataclass
from typing import Any

from selfreward.config.errors import SECRETIVE, dotted
from selfreward.config.secrets import names_secret, secret_in
from selfreward.config.yaml_text import Path, parse_yaml
from selfreward.errors import ConfigError
from selfreward.texts import shown

_PART = re.compile(r"(?P<name>[^.\[\]=\s]+)(?P<places>(\[\d+\])*)")


@dataclass(frozen=True, slots=True)
class Override:
    """One setting of the command line."""

    path: Path
    value: Any


def parse_override(text: str) -> Override:
    """Read one. Raises ConfigError; a value that may be a secret is not shown."""
    key, found, value = text.partition("=")
    key = key.strip()
    hidden = key.startswith(SECRETIVE) or names_secret(key.rpartition(".")[2]) or secret_in(text) is not None
    said = shown(f"{key}=..." if found and hidden else text)
    if not found or not key:
        raise ConfigError(f"{said if found or not hidden else 'a word'} must look like section.key=value")
    path: list[str | int] = []
    for part in key.split("."):
        match = _PART.fullmatch(part)
        if match is None:
            raise ConfigError(f"{said} must look like section.key=value; the key {shown(key)} is none")
        path.append(match["name"])
        path += [int(place) for place in re.findall(r"\d+", match["places"])]
    try:
        return Override(tuple(path), parse_yaml(value).value)
    except ConfigError as error:
        problem = re.sub(r"^line 1: ", "", str(error))
        raise ConfigError(f"{said}: the value {problem}; inside the shell's quotes, put a text in quotes of its own") from error


def apply(tree: dict[str, Any], override: Override) -> set[Path]:
    """Lay a setting over a tree, in place; a mapping is laid over the mapping that is there, all else replaces it.

    Returns the paths of the settings that now come from the override. Raises ConfigError where the path leads through
    something that holds no settings.
    """
    here: Any = tree
    for depth, part in enumerate(override.path[:-1]):
        if isinstance(part, str) and isinstance(here, dict):
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
        else:
            here = _item(here, override.path[: depth + 1])
    last = override.path[-1]
    if isinstance(last, int):
        _item(here, override.path)
        here[last] = override.value
        return {override.path}
    if not isinstance(here, dict):
        raise ConfigError(f"{dotted(override.path)} cannot be set: {dotted(override.path[:-1])} is {shown(here)}")
    return _lay(here, last, override.value, override.path)


def _item(here: Any, path: Path) -> Any:
    place = path[-1]
    if not isinstance(here, list) or not isinstance(place, int) or place >= len(here):
        count = len(here) if isinstance(here, list) else 0
        raise ConfigError(
            f"{dotted(path)} cannot be set: {dotted(path[:-1])} lists {count} there; set the whole list, as in "
            f"{dotted(path[:-1])}=[...]"
        )
    return here[place]


def _lay(here: dict[str, Any], key: str, value: Any, path: Path) -> set[Path]:
    if not isinstance(value, dict) or not isinstance(here.get(key), dict):
        here[key] = value
        return {path}
    return {leaf for inner, item in value.items() for leaf in _lay(here[key], inner, item, (*path, inner))}
