"""Who plays: the start model, judges, the proposer; a folder, a hub id, an endpoint or a script each."""

from pathlib import Path

from selfreward.config import MAX_STOPS, POLICY, SCRIPTED_PREFIX, Config, EndpointConfig, endpoint_name
from selfreward.engines import ROLE_PREFIXES, SCORES_CHOICES
from selfreward.engines.adapters import is_adapter, read_adapter
from selfreward.engines.loading import EMBEDDED, OWN_TEMPLATE, has_chat_template, resolve_model_path
from selfreward.engines.openai import need_package, read_key
from selfreward.engines.scripted import ScriptedEngine
from selfreward.engines.vllm import need_package as need_vllm
from selfreward.errors import ConfigError
from selfreward.preflight.findings import Findings
from selfreward.preflight.folders import ModelFolder, look_at, template_problem
from selfreward.rubrics import Rubric

START = "model.path"


def check_start(config: Config, findings: Findings) -> ModelFolder | None:
    """The model that is trained; None where its files are not here to be looked at.

    It may lack a chat template: training teaches it the default one. Whoever else chats must have been taught.
    """
    with findings.part():
        _check_template_file(config)
    found = check_model(config, START, config.model.path, True, findings)
    if found is not None and found.context is not None:
        _compare_context(config, found.context, findings)
    return found


def check_player(config: Config, setting: str, model: str, rubric: Rubric | None, findings: Findings) -> None:
    """A role's own player, who is asked with this rubric; nothing to check when the live model plays it.

    `rubric` None: it cannot be read, which was told already; what has nothing to do with it is looked at all the same.
    """
    if model == POLICY:
        return
    with findings.part():
        if endpoint_name(model) is not None:
            findings.line(_check_endpoint(config, setting, model, rubric))
        elif model.startswith(SCRIPTED_PREFIX):
            findings.line(check_script(model.removeprefix(SCRIPTED_PREFIX), setting))
        else:
            found = check_model(config, setting, model, rubric is not None and rubric.format == "chat", findings)
            role = "propose" if rubric is not None and rubric.kind == "propose" else "judge"
            if found is not None and found.context is not None and rubric is not None:
                _compare_reply(config, role, found.context, setting, findings)


def check_answerer(config: Config, setting: str, model: str, findings: Findings) -> None:
    """A model that answers instructions, by the settings of `sample`."""
    with findings.part():
        if (name := endpoint_name(model)) is not None:
            findings.line(_check_answering(config, setting, name))
        elif model.startswith(SCRIPTED_PREFIX):
            findings.line(check_script(model.removeprefix(SCRIPTED_PREFIX), setting))
        else:
            check_model(config, setting, model, True, findings)


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


def check_script(name: str, setting: str) -> str:
    """Open a scripted engine's table; returns the line about it."""
    try:
        ScriptedEngine.open(name).close()
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error
    return f"{setting}: script {name!r}"


def check_model(config: Config, setting: str, path: str, needs_chat: bool, findings: Findings) -> ModelFolder | None:
    """A local folder must hold what loading needs; a hub id needs permission to download. None: there is no folder to read."""
    if config.engine.name == "vllm":
        with findings.part():
            need_vllm()
    if path == EMBEDDED:
        with findings.part():
            found = look_at(Path(resolve_model_path(path)))
            findings.line(f"{setting}: the embedded model")
            return found
        return None
    folder = Path(path)
    if not folder.exists():
        if config.model.allow_download:
            findings.line(f"{setting}: {path} (from the hub)")
        else:
            findings.problem(
                ConfigError(
                    f"{setting}={path!r} is no folder here; give a local model folder, or set model.allow_download=true for a "
                    "hub id"
                )
            )
        return None
    note = ""
    if config.engine.name == "vllm" and setting != START and is_adapter(folder):
        base = _adapter_base(config, folder, findings)
        if base is None:
            return None
        folder, note = base, f", adapter of {base}"
    found = look_at(folder, config.model.trust_remote_code)
    what = f"{setting}={path!r}"
    for problem in found.problems:
        findings.problem(ConfigError(f"{what} {problem}"))
    if found.problems:
        return None
    for remark in found.remarks:
        findings.warn(f"{what} {remark}")
    # A tokenizer class that the folder ships may bring a template of its own.
    has_template = found.has_template or (Path(path) != folder and has_chat_template(Path(path)))
    lacks = needs_chat and not config.model.trust_remote_code and not has_template
    with findings.part():
        note += _without_template(config, setting, path) if lacks else ""
        findings.line(f"{setting}: {path} ({found.kind}){note}")
    return found


def _adapter_base(config: Config, folder: Path, findings: Findings) -> Path | None:
    """The folder of the model that an adapter changes; None where there is none to look at: a hub id, or a problem."""
    with findings.part():
        adapter = read_adapter(folder, config)
        if adapter is not None and Path(adapter.base).is_dir():
            return Path(adapter.base)
    return None


def _without_template(config: Config, setting: str, path: str) -> str:
    """What becomes of a model without a chat template. Raises ConfigError where it cannot chat."""
    template, is_start = config.model.chat_template, setting == START
    if is_start and template is None:
        return ", no chat template: it gets the default one (ChatML)"
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
    return ""


def _check_template_file(config: Config) -> None:
    template = config.model.chat_template
    if template in (None, OWN_TEMPLATE):
        return
    assert template is not None, "told apart above"
    what = f"model.chat_template={template!r}"
    if not Path(template).is_file():
        raise ConfigError(f"{what} is not a file, nor {OWN_TEMPLATE!r}")
    try:
        text = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}") from error
    if problem := template_problem(text):
        raise ConfigError(f"{what} is no Jinja template: {problem}")


def _check_endpoint(config: Config, setting: str, model: str, rubric: Rubric | None) -> str:
    """Everything about an endpoint that can be known without asking it. Raises MissingExtraError without the package."""
    name = endpoint_name(model) or ""
    endpoint, where, what = config.endpoints[name], f"endpoints.{name}", f"{setting}={model!r}"
    if rubric is not None:
        _check_request(config, rubric, endpoint, (where, what))
    need_package()
    read_key(name, endpoint)
    return f"{setting}: {endpoint.model} at {endpoint.base_url} ({endpoint.api})"


def _check_answering(config: Config, setting: str, name: str) -> str:
    """As `_check_endpoint`, for one that is asked what people ask it."""
    endpoint, where, what = config.endpoints[name], f"endpoints.{name}", f"{setting}='endpoint:{name}'"
    if endpoint.api != "chat":
        raise ConfigError(f"{what} answers instructions, so {where}.api must be chat, got {endpoint.api}")
    if config.sample.max_tokens >= endpoint.context_length:
        raise ConfigError(
            f"{what}: sample.max_tokens={config.sample.max_tokens} leaves no room for a prompt in "
            f"{where}.context_length={endpoint.context_length}; lower it, or set the context length that the server has"
        )
    need_package()
    read_key(name, endpoint)
    return f"{setting}: {endpoint.model} at {endpoint.base_url}"


def _check_request(config: Config, rubric: Rubric, endpoint: EndpointConfig, names: tuple[str, str]) -> None:
    """What is asked with a rubric must be something that the endpoint takes."""
    where, what = names
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


def _compare_context(config: Config, context: int, findings: Findings) -> None:
    """Longest examples and replies against the positions that the start model has."""
    for name, options in (("sft", config.sft), ("dpo", config.dpo)):
        if options.max_length > context:
            findings.warn(
                f"{name}.max_length={options.max_length} is above the context of {START}, {context} tokens; longer examples "
                "are dropped as too_long"
            )
    if config.engine.name != "scripted":
        roles = {"propose": config.propose.model} if config.propose.source == "self-instruct" else {}
        roles |= {f"judge {place}": seat.model for place, seat in enumerate(config.judge.members)}
        asked = {"sample", *(role.split()[0] for role, model in roles.items() if model == POLICY)}
        for role in ("sample", "propose", "judge"):
            if role in asked:
                _compare_reply(config, role, context, START, findings)


def _compare_reply(config: Config, role: str, context: int, setting: str, findings: Findings) -> None:
    longest = {"sample": config.sample.max_tokens, "propose": config.propose.max_tokens, "judge": config.judge.max_tokens}[role]
    if longest >= context:
        findings.warn(
            f"{role}.max_tokens={longest} leaves no room for a prompt in the context of {setting}, {context} tokens; replies "
            "end with the context and count as truncated"
        )
