"""The side of training that touches torch and TRL; imported by `train_sft` and `train_dpo` when they start.

TRL's trainers are used as they are, with four things of ours around them: rows come tokenised, the order of the rows is
ours, nothing is sent or written anywhere but the result, and what must hold (first DPO loss, finite numbers) is checked.
"""

import copy
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it matmuls may not repeat

import datasets
import torch
import trl
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from selfreward.config import DpoConfig, OptimConfig
from selfreward.engines.loading import load_model, load_tokenizer, pick_device
from selfreward.errors import ConfigError, ModelError, TrainingError
from selfreward.storage import TEMPORARY_PREFIX
from selfreward.training.common import TrainContext, count_steps, epoch_order

Columns = dict[str, list[list[int]]]

_KEPT = ("grad_norm", "dpo_loss", "nll", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
"""What of TRL's and our own measurements goes into the history, besides step, loss and lr."""
_TOLERANCE = 1e-4
_TOLERANCE_BF16 = 2e-2
"""How far the first DPO loss may lie from ln 2. With bf16 autocast the reference was computed in other batches, and a
long answer's log-probability is only good to a few tenths."""


@dataclass(frozen=True)
class Base:
    """The start model, ready to train. `limit`: longest sequence in tokens. `configs`: its configurations as loaded."""

    path: Path
    model: Any
    tokenizer: Any
    device: str
    limit: int
    configs: tuple[Any, Any]


def load_base(start: Path, options: OptimConfig, context: TrainContext) -> Base:
    """Load the start model with float32 weights: a small learning rate's updates would vanish in 16 bits.

    Raises ModelError when it cannot be used, ConfigError when dropout is asked for and it has none.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"training runs in one process, but WORLD_SIZE={os.environ['WORLD_SIZE']}; start it without a launcher")
    device = pick_device(context.config)
    tokenizer = load_tokenizer(start, context.config)
    model = load_model(start, context.config, device, dtype="float32")
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise ModelError(f"{str(start)!r}: the tokenizer has {len(tokenizer)} tokens, the model only {num_embeddings}")
    set_dropout(model, options.dropout)
    model_length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or options.max_length
    return Base(
        path=start,
        model=model,
        tokenizer=tokenizer,
        device=device,
        limit=min(options.max_length, model_length),
        configs=(copy.deepcopy(model.config), copy.deepcopy(model.generation_config)),
    )


def set_dropout(model: torch.nn.Module, rate: float) -> None:
    """Set every dropout in the model; 0 switches all of it off. Raises ConfigError when there is none to set.

    Llama-like attention reads its rate from an attribute of the module, so changing the model's config does nothing.
    """
    found = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p, found = rate, True
        elif isinstance(getattr(module, "attention_dropout", None), float | int):
            module.attention_dropout, found = rate, True
    if rate and not found:
        raise ConfigError(f"dropout={rate}, but {type(model).__name__} has no dropout to set; set sft.dropout and dpo.dropout to 0")


# --- trainers -----------------------------------------------------------------------------------------------------


class _Order(torch.utils.data.Sampler[int]):
    """The row indices of each epoch; see `epoch_order`."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0
        self.served: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.served.append(self._epoch)
        return iter(epoch_order(self._lengths, self._batch_size, self._seed, self._epoch))

    def __len__(self) -> int:
        return len(self._lengths)


class _OursMixin:
    """What is ours in both trainers."""

    order: _Order

    def _get_train_sampler(self, train_dataset: Any = None) -> _Order:
        return self.order

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # tokenised already, with our mask

    def _send_telemetry(self) -> None:
        """Nothing: a run talks to nobody."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not torch.isfinite(loss):
            raise _not_finite("loss", loss.item(), self)
        return loss


class SftTrainer(_OursMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer on our rows."""


class DpoTrainer(_OursMixin, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer on our rows; splits the loss into its parts and checks that training starts at the reference."""

    nll_weight: float = 0.0
    dropout: float = 0.0
    _checked = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """TRL's loss; records its two parts as `dpo_loss` and `nll`."""
        assert not return_outputs, "nothing here evaluates with TRL"
        if not self._checked and self.dropout:
            self._check_without_dropout(model, inputs)
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        metrics = self._metrics["train" if self.model.training else "eval"]
        num_pairs = len(inputs["input_ids"]) // 2  # TRL's collator puts the chosen answers first, then the rejected ones
        num_tokens = inputs["completion_mask"][:num_pairs, 1:].sum().item()
        nll = -metrics["logps/chosen"][-1] * num_pairs / num_tokens
        dpo_loss = loss.item() - self.nll_weight * nll
        metrics["nll"].append(nll)
        metrics["dpo_loss"].append(dpo_loss)
        if not self._checked:
            self._check_start(dpo_loss)
        return loss

    def _check_without_dropout(self, model: Any, inputs: Any) -> None:
        """With dropout the first loss is noise around ln 2, so the check takes a look without it."""
        model.eval()
        with torch.no_grad():
            self.compute_loss_unchecked(model, inputs)
        model.train()

    def _check_start(self, dpo_loss: float) -> None:
        """Raise TrainingError unless policy and reference agree before the first step."""
        self._checked = True
        tolerance = (_TOLERANCE_BF16 if self.args.bf16 else _TOLERANCE) * max(1.0, 10 * self.beta)
        if math.isfinite(dpo_loss) and abs(dpo_loss - math.log(2)) > tolerance:
            raise TrainingError(
                f"the first DPO loss is {dpo_loss:.6f}, not ln 2 = {math.log(2):.6f}: the reference is not the model that "
                f"training starts from (TRL {trl.__version__}); use the versions in constraints.txt"
            )
