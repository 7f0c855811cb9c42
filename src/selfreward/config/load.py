"""YAML file + `a.b=c` overrides -> `Config`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from selfreward.config.errors import explain, explain_override
from selfreward.config.tree import Config
from selfreward.errors import ConfigError
from selfreward.texts import one_line


def load_config(path: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, validate. `name` stands in for a file's without one.

    Raises ConfigError naming every wrong key or value on a line of its own.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist")
    try:
        tree: Any = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(f"{path} must hold a mapping of settings at its top level")
    return _with_overrides(tree if name is None else OmegaConf.merge({"name": name}, tree), overrides, str(path))


def default_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The default settings, with `a.b=c` overrides applied; raises ConfigError as `load_config` does."""
    return _with_overrides(OmegaConf.create({"name": name}), overrides, "settings")


def parse_config(tree: Any, origin: str = "config") -> Config:
    """Validate a plain mapping; see `load_config`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [explain(item, Config) for item in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from error


def _with_overrides(tree: Any, overrides: Sequence[str], origin: str) -> Config:
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise ConfigError(f"override {override!r} must look like section.key=value")
        try:
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(explain_override(override, error)) from error
    try:
        plain = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin} cannot be resolved: {one_line(error)}") from error
    return parse_config(plain, origin)
