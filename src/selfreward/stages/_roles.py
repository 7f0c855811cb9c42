"""Who plays a role in a round: the live model, the run's frozen M1, a model folder, an endpoint, or a scripted table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, RunDir, hash_file, hash_model, read_json
from selfreward.config import FIRST, POLICY, SCRIPTED_PREFIX, Config, EndpointConfig, endpoint_name
from selfreward.engines.adapters import base_of, is_adapter
from selfreward.engines.loading import resolve_model_path


@dataclass(frozen=True, slots=True)
class Player:
    """A role filled. `model` is what `open_engine` takes, `label` what records show (`m1`, a folder, `endpoint:NAME`,
    `scripted:NAME`), `section` what decides its replies beside the weights of the live model, `inputs` those weights'
    artifact."""

    model: str
    label: str
    section: Mapping[str, Any]
    inputs: Mapping[str, Artifact] = field(default_factory=dict)


def cast_role(setting: str, policy: Artifact, config: Config, directory: RunDir | None = None) -> Player:
    """The player for a `model` setting; `policy` is the live model of the round. Only a role that may be played by the run's
    M1 gives the run's `directory`."""
    section = _local_section(config)
    if setting == FIRST and directory is not None:
        first = _finished(directory, FIRST)
        return Player(str(first.checkpoint), FIRST, section, {FIRST: first})
    if setting == POLICY:
        return Player(str(policy.checkpoint), model_name(policy), section, {"model": policy})
    return frozen_player(setting, config)


def frozen_player(setting: str, config: Config) -> Player:
    """The player for a `model` setting that names a model no run trains: a folder or hub id, an endpoint, a script."""
    if setting.startswith(SCRIPTED_PREFIX):
        return Player(setting, setting, {"script": _script_hash(setting.removeprefix(SCRIPTED_PREFIX))})
    if (name := endpoint_name(setting)) is not None:
        return Player(setting, setting, {"endpoint": _endpoint_section(config.endpoints[name])})
    return Player(setting, setting, {**_local_section(config), "weights": weights_of(resolve_model_path(setting))})


def weights_of(path: str, look: Callable[[], None] = lambda: None) -> str:
    """What identifies a model's weights: the hash of its folder, and for an adapter that of its base model too; a hub id not on
    this disk yet stands for itself. `look` is called now and then while a large folder is read."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    own = hash_model(path, look)
    return f"{own}+{weights_of(base_of(folder), look)}" if is_adapter(folder) else own


def model_name(model: Artifact) -> str:
    """`sft`, `m1` for stages of that key; `m2` for round-1/model, and so on."""
    if model.key.startswith("round-"):
        return f"m{int(model.key.split('/')[0].removeprefix('round-')) + 1}"
    return model.key


def _finished(directory: RunDir, key: str) -> Artifact:
    """A stage that is finished before any round begins. Raises CorruptArtifactError without its record."""
    path = directory.root / key
    return Artifact(key, path, read_json(path / "record.json")["fingerprint"])


def _local_section(config: Config) -> dict[str, Any]:
    return {"dtype": config.model.dtype, "engine": _engine_section(config)}


def _engine_section(config: Config) -> Mapping[str, Any]:
    """Engine settings that decide what is generated; device, threads and batch sizes do not."""
    if config.engine.name == "scripted":
        return {"name": "scripted", "script": _script_hash(config.engine.script or "")}
    return {"name": config.engine.name}


def _endpoint_section(endpoint: EndpointConfig) -> Mapping[str, Any]:
    """Who answers, and whether our seeds decide it; its key, limits and waits do not. What weights stand behind a model's name
    there only the server knows."""
    return {"base_url": endpoint.base_url, "model": endpoint.model, "api": endpoint.api, "send_seed": endpoint.send_seed}


def _script_hash(name: str) -> str:
    return hash_file(name) if Path(name).is_file() else name
