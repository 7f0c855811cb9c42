"""The side of training that touches torch and TRL; imported by `train_sft` and `train_dpo` when they start.

TRL's trainers are used as they are, with four things of ours around them: rows come tokenised, the order of the rows is
ours, nothing is sent or written anywhere but the result, and what must hold (first DPO loss, finite numbers) is checked.
"""

import math
import os
from collections.abc import Iterator, Sequence
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
from selfreward.environment import current_versions
from selfreward.errors import ModelError, TrainingError
from selfreward.progress import Advance
from selfreward.storage import fingerprint, hash_model
from selfreward.training._base import Base, load_base, release, save, set_dropout, workspace
from selfreward.training._checkpoint import Checkpoints, ResumingMixin, Stored, check_finite
from selfreward.training.common import TrainContext, count_steps, epoch_order

__all__ = ["dpo_trainer", "fit", "load_base", "open_checkpoints", "release", "save", "set_dropout", "sft_trainer", "workspace"]

Columns = dict[str, list[list[int]]]

_KEPT = ("grad_norm", "dpo_loss", "nll", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
"""What of TRL's and our own measurements goes into the history, besides step, loss and lr."""
_TOLERANCE = 1e-4
_TOLERANCE_BF16 = 2e-2
"""How far the first DPO loss may lie from ln 2. With bf16 autocast the reference was computed in other batches, and a
long answer's log-probability is only good to a few tenths."""


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


class _OursMixin(ResumingMixin):
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

    def resume(self, stored: Stored) -> None:
        """As every trainer does; only the very first loss is ln 2, and that one was checked."""
        super().resume(stored)
        self._checked = stored.step > 0

    def __init__(self, *args: Any, advance: Advance, **kwargs: Any) -> None:
        """TRL takes the reference's log-probabilities in here; `advance` hears of every batch of pairs."""
        self._advance = advance
        super().__init__(*args, **kwargs)

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """TRL's log-probabilities of one batch, the chosen and the rejected answers'."""
        logps: tuple[torch.Tensor, torch.Tensor] = super().compute_ref_log_probs(model, inputs)
        self._advance(len(logps[0]))
        return logps

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """TRL's loss, measured and checked."""
        assert not return_outputs, "nothing here evaluates with TRL"
        if self.dropout and not self._checked:
            # With dropout the first loss is noise around ln 2: take a look without it first.
            self.model.eval()
            with torch.no_grad():
                self._measured_loss(model, inputs)
            self.model.train()
        return self._measured_loss(model, inputs)

    def _measured_loss(self, model: Any, inputs: Any) -> Any:
        """TRL's loss; its two parts become metrics."""
        loss = super().compute_loss(model, inputs)
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

    def _check_start(self, dpo_loss: float) -> None:
        """Raise TrainingError unless policy and reference agree before the first step."""
        self._checked = True
        tolerance = (_TOLERANCE_BF16 if self.args.bf16 else _TOLERANCE) * max(1.0, 10 * self.beta)
        if math.isfinite(dpo_loss) and abs(dpo_loss - math.log(2)) > tolerance:
            raise TrainingError(
                f"the first DPO loss is {dpo_loss:.6f}, not ln 2 = {math.log(2):.6f}: the reference is not the model that "
                f"training starts from (TRL {trl.__version__}); use the versions in constraints.txt"
            )


def sft_trainer(base: Base, columns: Columns, options: OptimConfig, seed: int, scratch: Path) -> SftTrainer:
    """TRL's trainer for rows of `input_ids` and `labels`."""
    _check_ids(base, columns["input_ids"])
    settings = _settings(options, base.device, seed, scratch)
    args = SFTConfig(**settings, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
    return SftTrainer(
        model=base.model, args=args, train_dataset=datasets.Dataset.from_dict(columns), processing_class=base.tokenizer
    )


def dpo_trainer(base: Base, columns: Columns, options: DpoConfig, scratch: Path, context: TrainContext) -> DpoTrainer:
    """TRL's trainer for rows of `prompt_ids`, `chosen_ids` and `rejected_ids`; takes the reference's log-probabilities.

    They come from the weights in `base`, the start's: a checkpoint's weights take their place only when training goes on.
    """
    for ids in columns.values():
        _check_ids(base, ids)
    with_nll = options.nll_weight > 0
    args = DPOConfig(
        **_settings(options, base.device, context.seed, scratch),
        beta=options.beta,
        loss_type=["sigmoid", "sft"] if with_nll else ["sigmoid"],
        loss_weights=[1.0, options.nll_weight] if with_nll else [1.0],
        precompute_ref_log_probs=True,
        disable_dropout=options.dropout == 0,
        max_length=None,
    )
    base.model.eval()  # the reference is taken without dropout
    # TRL stores the log-probabilities beside the rows; those of rows in memory would stay in the temporary folder.
    datasets.Dataset.from_dict(columns).save_to_disk(scratch / "pairs")
    pairs = datasets.load_from_disk(scratch / "pairs")
    with context.progress.task("reference log-probabilities", len(pairs)) as advance:

        def advance_or_stop(count: int) -> None:
            advance(count)
            context.stop.check()  # no step is lost here, and the pass over long data takes its time

        trainer = DpoTrainer(
            model=base.model, args=args, train_dataset=pairs, processing_class=base.tokenizer, advance=advance_or_stop
        )
    trainer.nll_weight, trainer.dropout = options.nll_weight, options.dropout
    return trainer


def _settings(options: OptimConfig, device: str, seed: int, scratch: Path) -> dict[str, Any]:
    """Arguments of both trainers. What TRL would switch on by itself (bf16, checkpointing) is set outright."""
    return {
        "output_dir": str(scratch),
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": options.final_learning_rate},
        "warmup_steps": options.warmup_ratio,  # below 1 it means a share of all steps
        "num_train_epochs": options.num_epochs,
        "per_device_train_batch_size": options.micro_batch_size,
        "gradient_accumulation_steps": options.batch_size // options.micro_batch_size,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "gradient_checkpointing": options.gradient_checkpointing,
        "bf16": options.bf16,
        "use_cpu": device == "cpu",
        "seed": seed % 2**32,  # NumPy takes no larger seed
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": device == "cuda",
    }


def _check_ids(base: Base, rows: Sequence[Sequence[int]]) -> None:
    """Raise ModelError when a token has no embedding: the tokenizer and the model do not belong together."""
    largest, size = max(map(max, rows)), base.model.get_input_embeddings().num_embeddings
    if largest >= size:
        raise ModelError(f"the tokenizer in {str(base.path)!r} gives token {largest}, but its model knows only {size} tokens")


# --- training -----------------------------------------------------------------------------------------------------


def open_checkpoints(
    kind: str, base: Base, columns: Columns, options: OptimConfig, context: TrainContext
) -> Checkpoints | None:
    """The checkpoints of one training, told from others by all that decides its result; None without a place for them."""
    if context.keep is None:
        return None
    versions = current_versions()
    identity = {
        "training": context.keep.name,
        "kind": kind,
        "start": hash_model(base.path) if base.path.is_dir() else str(base.path),
        "rows": fingerprint(columns),
        "chat template": fingerprint(base.tokenizer.chat_template),
        "options": options,
        "seed": context.seed,
        "device": base.device,
        "versions": {name: versions[name] for name in ("torch", "transformers", "trl", "accelerate")},
    }
    return Checkpoints(context.keep, identity, context.config.checkpoints, context.logger)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Keeps the history, shows progress, stores checkpoints, and stops: before a step with a non-finite gradient, and after
    a stored one when that is wanted."""

    def __init__(self, trainer: Any, advance: Advance, context: TrainContext) -> None:
        self._trainer, self._advance, self._stop, self._say = trainer, advance, context.stop, context.progress.say
        self.history: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.check_restored()
        # Gradients are clipped by now; clipping leaves NaN and infinity in place, as NaN.
        gradients = [weight.grad for weight in self._trainer.model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise _not_finite("gradient norm", norm.item(), self._trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:  # the last call carries totals instead
            step = {"step": state.global_step, "loss": logs["loss"], "lr": logs["learning_rate"]}
            self.history.append(step | {key: logs[key] for key in _KEPT if key in logs})
            self._keep(is_last=state.global_step == state.max_steps)

    def _keep(self, is_last: bool) -> None:
        """A step is over once it is logged: now its state is whole. The last one's is the result, which is stored anyway."""
        checkpoints = self._trainer.checkpoints
        is_due = checkpoints and (self._stop.is_wanted or (not is_last and checkpoints.is_due()))
        if is_due and not checkpoints.store(self._trainer, self.history, self._stop, self._say):
            return  # a stop that came just now waits for the next step: this one's state is not there to go on from
        self._stop.check()


def fit(
    trainer: SftTrainer | DpoTrainer,
    lengths: Sequence[int],
    options: OptimConfig,
    context: TrainContext,
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Run all epochs, or those steps that follow the last checkpoint; returns the whole history.

    Raises TrainingError on a non-finite loss or gradient, StoppedError when `context.stop` wants it, after the step's
    state is stored.
    """
    num_steps = count_steps(len(lengths), options)
    trainer.order = _Order(lengths, options.batch_size, context.seed)
    trainer.remove_callback(PrinterCallback)
    trainer.checkpoints = checkpoints
    stored = checkpoints.load() if checkpoints else None
    name = "preference training" if isinstance(trainer, DpoTrainer) else "fine-tuning"
    if stored:
        context.logger.info("training resumed at step %d of %d", stored.step, num_steps, extra={"data": {"training": name}})
        name += f" (resumed at step {stored.step})"
    elif checkpoints and checkpoints.num_aside:
        name += " (from the beginning: its checkpoint cannot be used, see run.log)"
    with context.progress.task(name, num_steps) as advance:
        watch = _Watch(trainer, advance, context)
        trainer.add_callback(watch)
        if stored:
            watch.history.extend(stored.history)
            trainer.resume(stored)
            advance(stored.step)
        trainer.train(resume_from_checkpoint=str(stored.folder) if stored else None)
    trainer.check_restored()  # resumed after its last step, it took none before which this is looked at
    check_finite(trainer)  # the last step's weights are the result, stored as a state or not
    logged = [entry["step"] for entry in watch.history]
    first_epoch = stored.step * options.num_epochs // num_steps if stored else 0
    if trainer.order.served != list(range(first_epoch, options.num_epochs)) or logged != list(range(1, num_steps + 1)):
        raise TrainingError(
            f"the trainer went its own way: epochs {trainer.order.served} in our order, {len(logged)} steps logged, expected "
            f"{options.num_epochs - first_epoch} epochs and {num_steps} steps; use the TRL of constraints.txt (now "
            f"{trl.__version__})"
        )
    return watch.history


def _not_finite(what: str, value: float, trainer: Any) -> TrainingError:
    state, args = trainer.state, trainer.args
    kept = f". {trainer.checkpoints.kept()}" if trainer.checkpoints else ""
    return TrainingError(
        f"{what} is {value} at step {state.global_step + 1} of {state.max_steps}, stopped before the step; lower "
        f"learning_rate (now {args.learning_rate}) or max_grad_norm (now {args.max_grad_norm}); at step 1 the start model's "
        f"weights are the cause{kept}"
    )
