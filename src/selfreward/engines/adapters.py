"""LoRA adapters: folders that change a base model without holding it. Engine `vllm` serves them; nothing here trains one."""

from dataclasses import dataclass
from pathlib import Path

from selfreward.config import Config
from selfreward.engines.loading import read_settings
from selfreward.errors import ModelError
from selfreward.texts import shown

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NOT_SERVED = (
    "alpha_pattern", "rank_pattern", "alora_invocation_tokens",
    "bias", "layer_replication", "lora_bias", "modules_to_save", "trainable_token_indices", "use_dora",
)  # fmt: skip
"""Settings that the engine does not serve. It would pass over the first three, and answer with other weights than were trained;
the others fail when the model is opened, which may be hours into a run."""
_UNSET: tuple[object, ...] = (None, False, "none", [], {})


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, as PEFT writes it. `base` is the folder (or hub id) of the model that it changes; `has_tokenizer`:
    it brings a tokenizer of its own, else it is the base model's."""

    folder: str
    base: str
    rank: int
    has_tokenizer: bool


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a whole model."""
    return (folder / SETTINGS).is_file()


def read_adapter(folder: Path, config: Config) -> Adapter | None:
    """The adapter of a folder; None where it holds none. Raises ModelError for one that cannot be served: no LoRA, more than
    a rank and an alpha for all of its layers, weights that are no safetensors, a base model that is not there."""
    if not is_adapter(folder):
        return None
    where, settings = f"the adapter in {str(folder)!r}", read_settings(folder / SETTINGS)
    kind, rank = settings.get("peft_type"), settings.get("r")
    if kind != "LORA" or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelError(f"{where} has peft_type={shown(kind)} and r={shown(rank)}; it must be LORA, with a rank of 1 or more")
    if found := [f"{name}={shown(settings[name])}" for name in _NOT_SERVED if settings.get(name) not in _UNSET]:
        raise ModelError(
            f"{where} has {', '.join(found)}, which engine.name=vllm does not serve; merge the adapter into its base model "
            "(PEFT's merge_and_unload), save the whole model and use that folder"
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{where} has no {WEIGHTS}; other formats can run code when they are loaded and are refused: save it with PEFT's "
            "save_pretrained"
        )
    base = base_of(folder)
    if not Path(base).is_dir() and not config.model.allow_download:
        raise ModelError(
            f"{where} is made for {shown(base)} (base_model_name_or_path), which is no folder here; correct it, or set "
            "model.allow_download=true if it is a hub id"
        )
    return Adapter(str(folder), base, rank, (folder / "tokenizer_config.json").is_file())


def base_of(folder: Path) -> str:
    """The base model's folder: as the adapter names it, or beside the adapter; a name that is no folder comes back unchanged.

    Raises ModelError where none is named.
    """
    base = read_settings(folder / SETTINGS).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"the adapter in {str(folder)!r} names no base model; set base_model_name_or_path in {SETTINGS}")
    beside = folder / base
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else base
