"""Model folders to models and tokenizers; used by the engines and by training.

Only safetensors weights are read, code inside a model folder only runs with `model.trust_remote_code`, and the network is
only used with `model.allow_download`. torch and transformers are imported when something is loaded.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.config import Config
from selfreward.engines.chatml import Added, add_default_template
from selfreward.environment import num_threads
from selfreward.errors import ConfigError, ModelError
from selfreward.texts import one_line, shown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "lab"
"""The `model.path` that means the micro-world's own model."""
OWN_TEMPLATE = "own"
"""The `model.chat_template` that means: the tokenizer's own, and no default for one that has none."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SHOWN_KEYS = 3
_NO_LIMIT = 2**31
"""Tokenizers without a length limit say 10^30."""


def resolve_model_path(path: str) -> str:
    """The folder that `path` means: the embedded model for `lab`, else the path itself; a hub id comes back unchanged.

    Raises ModelError for a path that is neither a folder nor could be a hub id.
    """
    if path == EMBEDDED:
        from selfreward.lab import model_dir

        return str(model_dir())
    if Path(path).is_dir() or (_HUB_ID.fullmatch(path) and not Path(path).exists()):
        return path
    raise ModelError(f"there is no model folder {path!r}; set model.path to a Hugging Face model folder or to {EMBEDDED!r}")


def pick_device(config: Config) -> str:
    """`cpu` or `cuda`, as `engine.device` says; `auto` takes the GPU when there is one.

    Raises ConfigError for `cuda` where there is none.
    """
    import torch

    wanted = config.engine.device
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError("engine.device=cuda, but PyTorch finds no usable GPU; set engine.device=cpu or auto")
    if wanted == "auto":
        return "cuda" if has_gpu else "cpu"
    return wanted


def set_threads(config: Config) -> int:
    """Give PyTorch `engine.threads` CPU threads (0: as OMP_NUM_THREADS says, else one a core); returns the number.

    The number decides how sums are split, so results repeat bit for bit only with the same number.
    """
    import torch

    threads = num_threads(config.engine.threads)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return threads


def load_model(path: str | Path, config: Config, device: str, dtype: str | None = None) -> "PreTrainedModel":
    """The causal language model of a folder, in evaluation mode, on `device`.

    `dtype` (`float32`, ...) overrides `model.dtype`. Also applies `engine.threads`. Raises ModelError when there is no such
    folder, no safetensors weights, when the folder is an adapter, and when weights and architecture do not match.
    """
    folder = check_folder(path, config)
    if Path(folder).is_dir() and (problem := folder_problem(Path(folder))):
        raise ModelError(f"{folder!r} (model.path or a stage's checkpoint) {problem}")
    import torch
    from transformers import AutoModelForCausalLM

    _quiet()
    set_threads(config)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype or config.model.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **_access(config),
        )
    except Exception as error:  # foreign code: Transformers raises many classes for a broken folder
        raise ModelError(f"the model in {folder!r} (model.path or a stage's checkpoint) does not load: {error}") from error
    _check_report(folder, report)
    model.to(device)
    model.eval()
    return model


def load_tokenizer(path: str | Path, config: Config) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, with a padding token; M0's gets the template of `model.chat_template` if that is a file.

    Trained checkpoints carry M0's template in their own files; a frozen judge or proposer keeps its own. The
    padding token is EOS where the folder names none.

    Raises ModelError when it cannot be loaded or has neither a padding nor an EOS token, ConfigError when the
    template file cannot be read.
    """
    folder = check_folder(path, config)
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_access(config))
    except Exception as error:  # foreign code, as above
        raise ModelError(f"the tokenizer in {folder!r} (model.path or a stage's checkpoint) does not load: {error}") from error
    if config.model.chat_template not in (None, OWN_TEMPLATE) and folder == resolve_model_path(config.model.path):
        tokenizer.chat_template = _read_template(config.model.chat_template)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer in {folder!r} has neither a padding nor an EOS token; name one in its config")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_chat_model(
    path: str | Path, config: Config, device: str, dtype: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Added | None]":
    """Model and tokenizer of a folder, as `load_model` and `load_tokenizer` give them, ready to chat.

    M0 without a chat template gets the default one, for generation as for training (the last value says what that
    changed), unless `model.chat_template=own`. Checkpoints carry it in their files. Another folder without a template
    stays without: nothing has taught its model one.
    """
    tokenizer = load_tokenizer(path, config)
    model = load_model(path, config, device, dtype)
    is_m0 = resolve_model_path(str(path)) == resolve_model_path(config.model.path)
    if tokenizer.chat_template or not is_m0 or config.model.chat_template == OWN_TEMPLATE:
        return model, tokenizer, None
    return model, tokenizer, add_default_template(model, tokenizer)


def read_context_length(path: str | Path, config: Config, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Positions that the model of a folder was built for, by its settings alone; where they name none (relative positions), the
    tokenizer's limit. Raises ModelError where neither names one."""
    from transformers import AutoConfig

    return context_length_of(AutoConfig.from_pretrained(check_folder(path, config), **_access(config)), tokenizer)


def context_length_of(settings: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    """As `read_context_length`, from a model's config."""
    inner = settings.get_text_config(decoder=True)
    for limit in (getattr(inner, "max_position_embeddings", None), tokenizer.model_max_length):
        if isinstance(limit, int) and 0 < limit < _NO_LIMIT:
            return limit
    raise ModelError(
        f"neither the config of the {inner.model_type} model nor its tokenizer names a context length; set "
        "max_position_embeddings in config.json or model_max_length in tokenizer_config.json"
    )


def has_chat_template(folder: Path) -> bool:
    """Whether a model folder's files hold a chat template. Raises ModelError when they cannot be read. Loads nothing."""
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return False
    return bool(read_settings(settings).get("chat_template"))


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder. Raises ModelError when it cannot be read or holds no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path.name} must hold a JSON object")
    return value


def check_folder(path: str | Path, config: Config) -> str:
    """What Transformers shall load. Raises ModelError for something that is no folder, unless it may be downloaded."""
    folder = resolve_model_path(str(path))
    if not Path(folder).is_dir() and not config.model.allow_download:
        raise ModelError(
            f"there is no model folder {folder!r}; set model.path to one, or model.allow_download=true if it is a hub id"
        )
    return folder


def folder_problem(folder: Path) -> str | None:
    """Why a folder can be no model, as the end of a sentence about it; None when its files are there. Loads nothing."""
    if (folder / "adapter_config.json").is_file():
        return "is an adapter, not a whole model; merge it into its base model and use that folder"
    if not (folder / "config.json").is_file():
        return "has no config.json; give a Hugging Face model folder"
    if not any(folder.glob("*.safetensors")):
        return (
            "holds no .safetensors weights; other formats can run code when they are loaded and are refused: "
            "save the model with save_pretrained and use that folder"
        )
    return _index_problem(folder)


def _index_problem(folder: Path) -> str | None:
    """Weights in several files are found by an index; whatever it names would be loaded, in whatever format it is."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = {str(name) for name in read_settings(index)["weight_map"].values()}
        except (ModelError, KeyError, AttributeError) as error:
            return f"has an index of weights that cannot be read, {index.name}: {one_line(error)}"
        if wrong := sorted(name for name in names if not name.endswith(".safetensors") or Path(name).name != name):
            return (
                f"has an index of weights, {index.name}, that names {shown(wrong[0])}: only .safetensors files of the folder "
                "itself are loaded; save the model with save_pretrained and use that folder"
            )
        if lost := sorted(name for name in names if not (folder / name).is_file()):
            return f"lacks {lost[0]}, one of {len(names)} files of weights that {index.name} names; copy the folder again"
    return None


def _check_report(folder: str, report: dict[str, Any]) -> None:
    """Weights that were made up or left out must never pass: the model would not be the one that was saved."""
    for kind, meaning in (
        ("missing_keys", "are not in the files"),
        ("mismatched_keys", "have another shape in the files"),
        ("unexpected_keys", "are in the files but not in the architecture"),
        ("error_msgs", "failed to load"),
    ):
        keys = sorted(map(str, report.get(kind) or ()))
        if keys:
            shown = ", ".join(keys[:_SHOWN_KEYS])
            raise ModelError(f"weights of the model in {folder!r} {meaning} ({len(keys)}): {shown}; check its config.json")


def _access(config: Config) -> dict[str, Any]:
    return {"trust_remote_code": config.model.trust_remote_code, "local_files_only": not config.model.allow_download}


def _read_template(path: str | None) -> str:
    assert path is not None, "only called for a file"
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.chat_template={path!r} cannot be read: {error}") from error


def _quiet() -> None:
    """No progress bars and warnings of Transformers between ours; what matters is checked and raised here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
