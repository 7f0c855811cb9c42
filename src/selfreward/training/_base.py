"""The model that a training starts from: loading it for training, the workspace around it, storing the result."""

import copy
import gc
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.nn.modules.dropout import _DropoutNd

from selfreward.config import OptimConfig
from selfreward.engines._memory import is_out_of_memory
from selfreward.engines.chatml import Added
from selfreward.engines.loading import load_chat_model, pick_device
from selfreward.errors import ConfigError, SelfRewardError, TrainingError
from selfreward.storage import TEMPORARY_PREFIX
from selfreward.training.common import TrainContext

_RATE = re.compile(r"(^|_)(dropout|pdrop)(_p|_prob|_rate|_ratio)?$")
"""Attributes of modules that are rates of dropout: dropout, attention_dropout, resid_pdrop, attn_dropout_p, ..."""
_OTHER_NOISE = re.compile(r"layerdrop|jitter")


@dataclass(frozen=True)
class Base:
    """The start model, ready to train. `limit`: longest sequence in tokens. `configs`: its configurations as loaded.
    `added`: what the default chat template changed, None for a model with a template."""

    path: Path
    model: Any
    tokenizer: Any
    device: str
    limit: int
    configs: tuple[Any, Any]
    added: Added | None


def load_base(start: Path, options: OptimConfig, context: TrainContext) -> Base:
    """Load the start model with float32 weights: a small learning rate's updates would vanish in 16 bits.

    Raises ModelError when it cannot be used, ConfigError when dropout is asked for and it has none.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"training runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without a launcher"
        )
    device = pick_device(context.config)
    if options.bf16 and device == "cpu" and not has_bf16(torch.cpu.get_capabilities()):
        context.logger.warning(
            "bf16 is on, but this CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16), which makes it slower than "
            "float32; set sft.bf16 and dpo.bf16 to false"
        )
    model, tokenizer, added = load_chat_model(start, context.config, device, dtype="float32")
    set_dropout(model, options.dropout)
    model_length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or options.max_length
    return Base(
        path=start,
        model=model,
        tokenizer=tokenizer,
        device=device,
        limit=min(options.max_length, model_length),
        configs=(copy.deepcopy(model.config), copy.deepcopy(model.generation_config)),
        added=added,
    )


def has_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU multiplies bfloat16 by instructions of its own; `capabilities` as `torch.cpu.get_capabilities` tells."""
    return any(value for name, value in capabilities.items() if name.endswith("bf16"))


def set_dropout(model: torch.nn.Module, rate: float) -> None:
    """Set every dropout in the model; 0 switches all of it off. Raises ConfigError when there is none to set.

    Much dropout is no module: attention, OPT, Starcoder 2 and others read their rates from attributes of modules, so changing
    the model's config does nothing. Layers left out as a whole and jitter of routers are no dropout that a rate is asked for:
    they are off, always.
    """
    found = False
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p, found = rate, True
        for name, value in vars(module).items():
            if not isinstance(value, float | int) or isinstance(value, bool):
                continue
            if _RATE.search(name):
                setattr(module, name, rate)
                found = True
            elif _OTHER_NOISE.search(name):
                setattr(module, name, 0.0)
    if rate and not found:
        raise ConfigError(
            f"dropout={rate}, but {type(model).__name__} has no dropout to set; set sft.dropout and dpo.dropout to 0"
        )


@contextmanager
def workspace(base: Base) -> Iterator[Path]:
    """A scratch folder for the trainer; meanwhile the libraries show no bars of theirs, and a GPU takes operations that repeat
    their results or refuses the others: only warned, PyTorch would keep the backward of attention that does not repeat."""
    bars, tqdm = datasets.are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if base.device == "cuda":
        torch.use_deterministic_algorithms(True)
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with tempfile.TemporaryDirectory(prefix="selfreward-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the libraries' notes to each other
            yield Path(folder)
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if tqdm is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm
        if not bars:
            datasets.enable_progress_bars()


def save(base: Base, output: Path) -> None:
    """Store model (safetensors) and tokenizer, atomically: the folder appears whole or not at all.

    The start model's configurations are stored, not the ones that the trainers changed for training.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.parent / f"{TEMPORARY_PREFIX}{output.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    base.model.config, base.model.generation_config = base.configs
    for key in ("is_local", "local_files_only"):  # how the tokenizer was loaded is no property of it
        base.tokenizer.init_kwargs.pop(key, None)
    base.model.save_pretrained(temporary)
    base.tokenizer.save_pretrained(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            sync(file)
    if output.exists():
        shutil.rmtree(output)
    temporary.rename(output)
    sync(output.parent)


@contextmanager
def errors_told(kind: str, options: OptimConfig) -> Iterator[None]:
    """Raise TrainingError for a full memory, and for an operation that a GPU cannot repeat. `kind`: `sft` or `dpo`."""
    try:
        yield
    except SelfRewardError:
        raise  # some of ours are RuntimeErrors too
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TrainingError(
                f"no memory to train on {options.micro_batch_size} rows at a time; lower {kind}.micro_batch_size, set "
                f"{kind}.gradient_checkpointing to true (now {str(options.gradient_checkpointing).lower()}), lower "
                f"{kind}.max_length (now {options.max_length}), or use a smaller model or a machine with more memory"
            ) from error
        if is_unrepeatable(error):
            raise TrainingError(
                f"an operation of this model does not repeat its results on a GPU: {error}; set engine.device to cpu"
            ) from error
        raise


def is_unrepeatable(error: BaseException) -> bool:
    """What PyTorch raises for an operation without a deterministic form."""
    return isinstance(error, RuntimeError) and "deterministic" in str(error)


def release() -> None:
    """Free what a finished training held: trainers sit in reference cycles, and the next stage needs the memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
