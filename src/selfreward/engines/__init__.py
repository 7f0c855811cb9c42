"""Engines: the visible tables of who can answer requests, and the one way to open one."""

from collections.abc import Callable, Mapping

from selfreward.config import ENDPOINT_PREFIX, SCRIPTED_PREFIX, Config
from selfreward.engines.base import Engine

__all__ = ["ENGINES", "ROLE_ENGINES", "ROLE_PREFIXES", "SCORES_CHOICES", "Engine", "open_engine", "prepare"]


def _open_hf(model: str, config: Config) -> Engine:
    from selfreward.engines.hf import HfEngine  # torch and transformers take seconds to import

    return HfEngine.open(model, config)


def _open_vllm(model: str, config: Config) -> Engine:
    from selfreward.engines.vllm import VllmEngine

    return VllmEngine.open(model, config)


def _open_scripted(model: str, config: Config) -> Engine:
    return _open_script(config.engine.script or "", config)


def _open_script(name: str, config: Config) -> Engine:
    from selfreward.engines.scripted import ScriptedEngine

    return ScriptedEngine.open(name)


def _open_endpoint(name: str, config: Config) -> Engine:
    from selfreward.engines.openai import OpenAIEngine

    return OpenAIEngine.open(name, config)


ENGINES: Mapping[str, Callable[[str, Config], Engine]] = {"hf": _open_hf, "vllm": _open_vllm, "scripted": _open_scripted}
"""`engine.name` -> how to open it for a model folder. These can play the policy: their models are trained here."""
ROLE_ENGINES: Mapping[str, Callable[[str, Config], Engine]] = {"scripted": _open_script, "openai": _open_endpoint}
"""Engine -> how to open it for a role's player that is no model folder: a script, an endpoint."""
ROLE_PREFIXES: Mapping[str, str] = {SCRIPTED_PREFIX: "scripted", ENDPOINT_PREFIX: "openai"}
"""What a role's `model` begins with -> the engine in ROLE_ENGINES that opens the rest."""
SCORES_CHOICES = frozenset({"hf", "scripted"})
"""Engines that can tell how probable given continuations are (`Request.choices`)."""


def open_engine(model: str, config: Config) -> Engine:
    """The engine for a model: a folder (opened by `engine.name`), `scripted:NAME` or `endpoint:NAME` whatever `engine.name` is.

    Raises ModelError when the folder cannot be used, ConfigError when a script, device or endpoint cannot, and
    MissingExtraError when a package for it is not installed.
    """
    for prefix, name in ROLE_PREFIXES.items():
        if model.startswith(prefix):
            return ROLE_ENGINES[name](model.removeprefix(prefix), config)
    return ENGINES[config.engine.name](model, config)


def prepare(config: Config) -> None:
    """Compile what the engine `engine.name` compiles once on a machine; nothing where it was done before."""
    if config.engine.name == "hf":
        from selfreward.engines.hf import HfEngine

        HfEngine.prepare(config)
