"""Engines: the visible table of who can answer requests, and the one way to open one."""

from collections.abc import Callable, Mapping

from selfreward.config import SCRIPTED_PREFIX, Config
from selfreward.engines.base import Engine

__all__ = ["ENGINES", "SCORES_CHOICES", "Engine", "open_engine"]


def _open_hf(model: str, config: Config) -> Engine:
    from selfreward.engines.hf import HfEngine  # torch and transformers take seconds to import

    return HfEngine.open(model, config)


def _open_scripted(model: str, config: Config) -> Engine:
    from selfreward.engines.scripted import ScriptedEngine

    return ScriptedEngine.open(config.engine.script or "")


ENGINES: Mapping[str, Callable[[str, Config], Engine]] = {"hf": _open_hf, "scripted": _open_scripted}
"""`engine.name` -> how to open it for a model folder."""
SCORES_CHOICES = frozenset({"hf", "scripted"})
"""Engines that can tell how probable given continuations are (`Request.choices`)."""


def open_engine(model: str, config: Config) -> Engine:
    """The engine for a model: a folder (opened by `engine.name`), or `scripted:NAME` whatever `engine.name` is.

    Raises ModelError when the folder cannot be used, ConfigError when a script or device cannot.
    """
    if model.startswith(SCRIPTED_PREFIX):
        from selfreward.engines.scripted import ScriptedEngine

        return ScriptedEngine.open(model.removeprefix(SCRIPTED_PREFIX))
    return ENGINES[config.engine.name](model, config)
