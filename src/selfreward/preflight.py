"""What can be known before a model loads: files that a config names, the model folder, rubrics. Needs no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from selfreward.config import FIRST, MAX_STOPS, POLICY, SCRIPTED_PREFIX, Config, endpoint_name
from selfreward.engines import ROLE_PREFIXES, SCORES_CHOICES
from selfreward.engines.loading import EMBEDDED, OWN_TEMPLATE, folder_problem, has_chat_template, read_settings
from selfreward.engines.openai import need_package, read_key
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import ConfigError, DataError, ModelError
from selfreward.filters import check_language, read_unsafe_words
from selfreward.judging import check_judge_mode
from selfreward.rubrics import Rubric, load_rubric
from selfreward.rubrics.header import Kind
from selfreward.sources import read_source
from selfreward.stages._panel import panel_rubrics
from selfreward.stages._prompt_file import count_prompts
from selfreward.stages.seed import located_sources

FIRST_ROWS = 20
"""Rows of each seed source that are read before a run."""


def check_config(config: Config) -> list[str]:
    """Check everything a config points to; returns one line a finding for people.

    Raises ConfigError naming the first setting that cannot work.
    """
    lines = [f"config {config.name!r} is valid: {config.num_rounds} rounds, mode {config.mode}"]
    template = config.model.chat_template
    if template not in (None, OWN_TEMPLATE) and not Path(template or "").is_file():
        raise ConfigError(f"model.chat_template={template!r} is not a file, nor {OWN_TEMPLATE!r}")
    lines += _check_rubrics(config)
    for rubric in (load_rubric(config.judge.rubric, "pointwise"), *panel_rubrics(config.judge)):
        check_judge_mode(rubric, config)
    check_judge_engines(config)
    proposer = load_rubric(config.propose.template, "propose")
    if config.engine.name == "scripted":
        lines.append(_check_script(config.engine.script or "", "engine.script"))
    lines.append(_check_model(config, "model.path", config.model.path))
    lines += _check_judges(config)
    lines += check_role(config, "propose.model", config.propose.model, proposer)
    lines += _check_filters(config)
    lines += check_seed(config)
    return lines


def _check_rubrics(config: Config) -> list[str]:
    wanted: list[tuple[str, str, Kind]] = [
        ("judge.rubric", config.judge.rubric, "pointwise"),
        ("propose.template", config.propose.template, "propose"),
    ]
    if config.eval.head_to_head == POLICY:
        wanted.append(("eval.pairwise_rubric", config.eval.pairwise_rubric, "pairwise"))
    return [_describe(setting, load_rubric(name, kind)) for setting, name, kind in wanted]


def _check_filters(config: Config) -> list[str]:
    """What the filters of new prompts read, and a user's own prompts."""
    propose, lines = config.propose, []
    if propose.source == "file":
        lines.append(f"propose.path: {count_prompts(propose.path or ''):,} prompts in {propose.path}")
    if propose.unsafe_words_file is not None:
        lines.append(f"propose.unsafe_words_file: {len(read_unsafe_words(propose.unsafe_words_file)):,} words and phrases")
    if propose.lang is not None:
        check_language(propose.lang, "propose.lang")
        lines.append(f"propose.lang: {propose.lang}")
    return lines


def _check_judges(config: Config) -> list[str]:
    """Who judges, and by which rubrics. `m1` is made by the run itself."""
    lines = []
    for number, (seat, rubric) in enumerate(zip(config.judge.members, panel_rubrics(config.judge), strict=True)):
        place = f"judge.panel[{number}]" if config.judge.panel else "judge"
        if config.judge.panel:
            lines.append(_describe(f"{place}.rubric", rubric))
        if seat.model != FIRST:
            lines += check_role(config, f"{place}.model", seat.model, rubric)
    return lines


def check_judge_engines(config: Config) -> None:
    """Expected scores need engines that weigh given continuations, for the policy (it judges in evaluations) and all judges."""
    judge = config.judge
    wanted: dict[str, str] = {f"engine.name={config.engine.name}": config.engine.name}
    for number, seat in enumerate(judge.members):
        setting = f"judge.panel[{number}].model" if judge.panel else "judge.model"
        for prefix, engine in ROLE_PREFIXES.items():
            if seat.model.startswith(prefix):
                wanted[f"{setting}={seat.model}"] = engine
    for setting, engine in wanted.items():
        if judge.mode == "expected" and engine not in SCORES_CHOICES:
            raise ConfigError(
                f"judge.mode=expected needs an engine that weighs given scores ({', '.join(sorted(SCORES_CHOICES))}); "
                f"{setting} cannot: change either"
            )


def _describe(setting: str, rubric: Rubric) -> str:
    return f"{setting}: {rubric.name} ({rubric.content_hash[:12]})"


def check_role(config: Config, setting: str, model: str, rubric: Rubric) -> list[str]:
    """A role's own player, who is asked with this rubric; nothing to check when the live model plays it."""
    if model == POLICY:
        return []
    if endpoint_name(model) is not None:
        return [_check_endpoint(config, setting, model, rubric)]
    if model.startswith(SCRIPTED_PREFIX):
        return [_check_script(model.removeprefix(SCRIPTED_PREFIX), setting)]
    return [_check_model(config, setting, model, needs_chat=rubric.format == "chat")]


def _check_endpoint(config: Config, setting: str, model: str, rubric: Rubric) -> str:
    """Everything about an endpoint that can be known without asking it. Raises MissingExtraError without the package."""
    name = endpoint_name(model) or ""
    endpoint, where, what = config.endpoints[name], f"endpoints.{name}", f"{setting}={model!r}"
    wanted = "chat" if rubric.format == "chat" else "completions"
    if endpoint.api != wanted:
        raise ConfigError(f"{what}: rubric {rubric.name!r} has format {rubric.format}, so {where}.api must be {wanted}")
    if len(rubric.stop) > MAX_STOPS:
        raise ConfigError(f"{what}: rubric {rubric.name!r} has {len(rubric.stop)} stop strings; the API takes {MAX_STOPS}")
    role, max_tokens = (
        ("propose", config.propose.max_tokens) if rubric.kind == "propose" else ("judge", config.judge.max_tokens)
    )
    if max_tokens >= endpoint.context_length:
        raise ConfigError(
            f"{what}: {role}.max_tokens={max_tokens} leaves no room for a prompt in {where}.context_length="
            f"{endpoint.context_length}; lower it, or set the context length that the server has"
        )
    need_package()
    read_key(name, endpoint)
    return f"{setting}: {endpoint.model} at {endpoint.base_url} ({endpoint.api})"


def _check_script(name: str, setting: str) -> str:
    try:
        ScriptedEngine.open(name).close()
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error
    return f"{setting}: script {name!r}"


def _check_model(config: Config, setting: str, path: str, needs_chat: bool = True) -> str:
    """A local folder must hold what loading needs; a hub id needs permission to download.

    `model.path` may lack a chat template: training teaches it the default one. Whoever else chats must have been taught.
    """
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
    with _naming(f"{setting}={path!r}"):
        kind, has_template = read_settings(folder / "config.json").get("model_type"), has_chat_template(folder)
    # A tokenizer class that the folder ships may bring a template of its own.
    if needs_chat and not config.model.trust_remote_code and not has_template:
        template, is_start = config.model.chat_template, setting == "model.path"
        if is_start and template is None:
            return f"{setting}: {path} ({kind}), no chat template: it gets the default one (ChatML)"
        if template in (None, OWN_TEMPLATE) or path != config.model.path:
            raise ConfigError(
                f"{setting}={path!r}: its tokenizer has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); "
                + (
                    f"set model.chat_template to a Jinja file, or leave it unset (now {template!r}) for the default one"
                    if is_start
                    else "name a model that was trained to chat"
                )
            )
    return f"{setting}: {path} ({kind})"


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """A fault of a model folder's files as a fault of the setting that names the folder."""
    try:
        yield
    except ModelError as error:
        raise ConfigError(f"{what}: {error}") from error


def check_seed(config: Config) -> list[str]:
    """Each source of seed data by its first rows; a line each. Raises ConfigError for one that is not there, and what
    reading raises: DataError for an unknown format or a malformed row."""
    lines = []
    for place, source in enumerate(located_sources(config.seed)):
        label = f"seed.sources[{place}]"
        if source.format == "lab":
            lines.append(f"{label}: the micro-world, held-out set {config.seed.heldout!r}")
            continue
        path = Path(source.path).expanduser()
        if not path.exists() and not source.allow_download:
            raise ConfigError(
                f"{label}: {source.path!r} is no file or folder here; set its path (or seed.path), "
                f"or {label}.allow_download=true for a data set of the hub"
            )
        if source.lang is not None:
            check_language(source.lang, f"{label}.lang")
        reading, items = read_source(source, "", config.seed.on_bad_row)
        num_rows = sum(1 for _ in islice(items, FIRST_ROWS))
        if not num_rows:
            raise DataError(f"{label}: {source.path!r} holds no rows")
        found = "detected" if reading.detected else "named"
        lines.append(f"{label}: {source.path}, format {reading.format} ({found}), first {num_rows} rows can be read")
    return lines
