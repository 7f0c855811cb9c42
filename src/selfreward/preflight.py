"""What can be known before a model loads: files that a config names, the model folder, rubrics. Needs no torch."""

import json
from pathlib import Path

from selfreward.config import POLICY, SCRIPTED_PREFIX, Config
from selfreward.engines import SCORES_CHOICES
from selfreward.engines.loading import EMBEDDED, folder_problem
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import ConfigError
from selfreward.judging import check_judge_mode
from selfreward.rubrics import Kind, Rubric, load_rubric


def check_config(config: Config) -> list[str]:
    """Check everything a config points to; returns one line a finding for people.

    Raises ConfigError naming the first setting that cannot work.
    """
    lines = [f"config {config.name!r} is valid: {config.num_rounds} rounds, mode {config.mode}"]
    if config.model.chat_template is not None and not Path(config.model.chat_template).is_file():
        raise ConfigError(f"model.chat_template={config.model.chat_template!r} is not a file")
    lines += _check_rubrics(config)
    check_judge_mode(load_rubric(config.judge.rubric, "pointwise"), config)
    _check_judge_engine(config)
    proposer = load_rubric(config.propose.template, "propose")
    if config.engine.name == "scripted":
        lines.append(_check_script(config.engine.script or "", "engine.script"))
    lines.append(_check_model(config, "model.path", config.model.path))
    lines += _check_role(config, "judge.model", config.judge.model, needs_chat=True)
    lines += _check_role(config, "propose.model", config.propose.model, needs_chat=proposer.format == "chat")
    lines.append(_check_seed(config))
    return lines


def _check_rubrics(config: Config) -> list[str]:
    wanted: list[tuple[str, str, Kind]] = [
        ("judge.rubric", config.judge.rubric, "pointwise"),
        ("propose.template", config.propose.template, "propose"),
    ]
    if config.eval.head_to_head == POLICY:
        wanted.append(("eval.pairwise_rubric", config.eval.pairwise_rubric, "pairwise"))
    return [_describe(setting, load_rubric(name, kind)) for setting, name, kind in wanted]


def _check_judge_engine(config: Config) -> None:
    """Expected scores need an engine that weighs given continuations."""
    if config.judge.mode == "expected" and config.engine.name not in SCORES_CHOICES:
        raise ConfigError(
            f"judge.mode=expected needs an engine that weighs given scores ({', '.join(sorted(SCORES_CHOICES))}); "
            f"engine.name={config.engine.name} cannot: change either"
        )


def _describe(setting: str, rubric: Rubric) -> str:
    return f"{setting}: {rubric.name} ({rubric.content_hash[:12]})"


def _check_role(config: Config, setting: str, model: str, needs_chat: bool) -> list[str]:
    """A role's own player; nothing to check when the live model plays it."""
    if model == POLICY:
        return []
    if model.startswith(SCRIPTED_PREFIX):
        return [_check_script(model.removeprefix(SCRIPTED_PREFIX), setting)]
    return [_check_model(config, setting, model, needs_chat)]


def _check_script(name: str, setting: str) -> str:
    try:
        ScriptedEngine.open(name).close()
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error
    return f"{setting}: script {name!r}"


def _check_model(config: Config, setting: str, path: str, needs_chat: bool = True) -> str:
    """A local folder must hold what loading needs; a hub id needs permission to download."""
    if path == EMBEDDED:
        return f"{setting}: the embedded model"
    folder = Path(path)
    if not folder.exists():
        if config.model.allow_download:
            return f"{setting}: {path} (from the hub)"
        raise ConfigError(
            f"{setting}={path!r} is no folder here; give a local model folder, or set model.allow_download=true for a hub id"
        )
    if problem := folder_problem(folder):
        raise ConfigError(f"{setting}={path!r} {problem}")
    kind = _read_object(folder / "config.json", f"{setting}={path!r}").get("model_type")
    # A tokenizer class that the folder ships may bring a template of its own.
    if needs_chat and not config.model.trust_remote_code and config.model.chat_template is None:
        _check_template(folder, f"{setting}={path!r}")
    return f"{setting}: {path} ({kind})"


def _check_template(folder: Path, what: str) -> None:
    if (folder / "chat_template.jinja").is_file():
        return
    settings = folder / "tokenizer_config.json"
    if not (settings.is_file() and _read_object(settings, what).get("chat_template")):
        raise ConfigError(
            f"{what}: its tokenizer has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "set model.chat_template to a Jinja file"
        )


def _read_object(path: Path, what: str) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{what}: {path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: {path.name} must hold a JSON object")
    return value


def _check_seed(config: Config) -> str:
    seed = config.seed
    if seed.source == "lab":
        return f"seed: the micro-world, held-out set {seed.heldout!r}"
    path = Path(seed.path or "").expanduser()
    wanted, exists = ("folder", path.is_dir()) if seed.source == "files" else ("file", path.is_file())
    if not exists:
        raise ConfigError(f"seed.path={seed.path!r} is no {wanted}; seed.source={seed.source} needs one")
    return f"seed: {seed.source} from {path}"
