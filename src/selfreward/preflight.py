"""What can be known before a model loads: files that a config names, the model folder, rubrics. Needs no torch."""

import json
from pathlib import Path

from selfreward.config import POLICY, SCRIPTED_PREFIX, Config
from selfreward.errors import ConfigError
from selfreward.rubrics import Kind, load_rubric

EMBEDDED = "lab"


def check_config(config: Config) -> list[str]:
    """Check everything a config points to; returns one line a finding for people.

    Raises ConfigError naming the first setting that cannot work.
    """
    lines = [f"config {config.name!r} is valid: {config.num_rounds} rounds, mode {config.mode}"]
    if config.engine.name == "hf":
        lines.append(_check_model(config.model.path, "model.path", config.model.allow_download))
    for setting, model in (("judge.model", config.judge.model), ("propose.model", config.propose.model)):
        if model != POLICY and not model.startswith(SCRIPTED_PREFIX):
            lines.append(_check_model(model, setting, config.model.allow_download))
    if config.model.chat_template is not None and not Path(config.model.chat_template).is_file():
        raise ConfigError(f"model.chat_template={config.model.chat_template!r} is not a file")
    lines.append(_check_seed(config))
    wanted: tuple[tuple[str, str, Kind], ...] = (
        ("judge.rubric", config.judge.rubric, "pointwise"),
        ("propose.template", config.propose.template, "propose"),
    )
    for setting, name, kind in wanted:
        rubric = load_rubric(name, kind)
        lines.append(f"{setting}: {rubric.name} ({rubric.content_hash[:12]})")
    if config.eval.head_to_head == POLICY:
        rubric = load_rubric(config.eval.pairwise_rubric, "pairwise")
        lines.append(f"eval.pairwise_rubric: {rubric.name} ({rubric.content_hash[:12]})")
    return lines


def _check_model(path: str, setting: str, allow_download: bool) -> str:
    """A local folder must hold a config and safetensors weights; a hub id needs permission to download."""
    if path == EMBEDDED:
        return f"{setting}: the embedded model"
    folder = Path(path)
    if not folder.exists():
        if allow_download:
            return f"{setting}: {path} (from the hub)"
        raise ConfigError(
            f"{setting}={path!r} is no folder here; give a local model folder, or set model.allow_download=true for a hub id"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{setting}={path!r} holds no config.json; give a Hugging Face model folder")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"{setting}={path!r}: config.json cannot be read: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{setting}={path!r} holds no .safetensors weights; other formats can run code when loaded and are refused"
        )
    return f"{setting}: {path} ({kind})"


def _check_seed(config: Config) -> str:
    seed = config.seed
    if seed.source == "lab":
        return f"seed: the micro-world, held-out set {seed.heldout!r}"
    path = Path(seed.path or "")
    wanted, exists = ("folder", path.is_dir()) if seed.source == "files" else ("file", path.is_file())
    if not exists:
        raise ConfigError(f"seed.path={seed.path!r} is no {wanted}; seed.source={seed.source} needs one")
    return f"seed: {seed.source} from {path}"
