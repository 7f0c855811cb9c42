"""The side of training that touches torch and TRL; imported by `train_sft` and `train_dpo` when they start.

TRL's trainers run the loop, with five things of ours around them: rows come tokenised, their order is ours, a step's loss is
computed by `_trainers` and `_scoring`, nothing is sent or written anywhere but the result, and what must hold (first DPO loss,
finite numbers) is checked.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it matmuls may not repeat

import datasets
import torch
import trl
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, SFTConfig

from selfreward.config import DpoConfig, OptimConfig
from selfreward.environment import current_versions
from selfreward.errors import ModelError, TrainingError
from selfreward.progress import Advance
from selfreward.storage import fingerprint, hash_model
from selfreward.training._base import Base, errors_told, load_base, release, save, set_dropout, workspace
from selfreward.training._checkpoint import Checkpoints, check_finite
from selfreward.training._scoring import Scorer, check_quiet, make_scorer, settle_repeats
from selfreward.training._trainers import Collator, DpoTrainer, Order, SftTrainer, not_finite, row_of
from selfreward.training.common import Row, TrainContext, count_steps

__all__ = [
    "dpo_trainer", "errors_told", "fit", "load_base", "open_checkpoints", "release", "save", "set_dropout", "sft_trainer",
    "workspace",
]  # fmt: skip

Columns = dict[str, list[list[int]]]

_LOGGER = logging.getLogger("selfreward.training")
_SCORING = 3
"""Changes when the same arguments give other weights than before: no checkpoint of before is gone on from then."""
_KEPT = ("grad_norm", "dpo_loss", "nll", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
"""What of TRL's and our own measurements goes into the history, besides step, loss and lr."""


# --- trainers -----------------------------------------------------------------------------------------------------


def sft_trainer(
    base: Base, columns: Columns, options: OptimConfig, seed: int, scratch: Path, logger: logging.Logger = _LOGGER
) -> SftTrainer:
    """TRL's trainer for rows of `input_ids` and `labels`."""
    _check_ids(base, columns["input_ids"])
    settings = _settings(options, base.device, seed, scratch)
    args = SFTConfig(**settings, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
    scorer = _scorer(base, columns, options, logger)
    trainer = SftTrainer(
        model=base.model,
        args=_on_one_device(args),
        data_collator=Collator(scorer),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=base.tokenizer,
    )
    trainer.scorer = scorer
    return trainer


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
    scorer = _scorer(base, columns, options, context.logger)
    # TRL stores the log-probabilities beside the rows; those of rows in memory would stay in the temporary folder.
    datasets.Dataset.from_dict(columns).save_to_disk(scratch / "pairs")
    pairs = datasets.load_from_disk(scratch / "pairs")
    with context.progress.task("reference log-probabilities", len(pairs)) as advance:

        def advance_or_stop(count: int) -> None:
            advance(count)
            context.stop.check()  # no step is lost here, and the pass over long data takes its time

        trainer = DpoTrainer(
            model=base.model,
            args=_on_one_device(args),
            data_collator=Collator(scorer),
            train_dataset=pairs,
            processing_class=base.tokenizer,
            scorer=scorer,
            advance=advance_or_stop,
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


def _on_one_device(args: Any) -> Any:
    """The arguments, for one device: where a machine has several GPUs, a training in one process takes the first. Without
    this they count as devices to share the batches among, which TRL refuses."""
    assert args.device is not None, "the number of GPUs is found when the device is asked for, and set over then"
    args._n_gpu = 1
    return args


def _scorer(base: Base, columns: Columns, options: OptimConfig, logger: logging.Logger) -> Scorer:
    """How the model is scored; where dropout is off it is seen that nothing else in it is random."""
    rows = _rows(columns)
    if base.device == "cuda":
        settle_repeats(base.model, rows, base.device, logger)
    scorer = make_scorer(base.model, rows, base.device, logger)
    if not options.dropout:
        check_quiet(scorer, rows, base.device)
    return scorer


def _rows(columns: Columns) -> list[Row]:
    return [row_of(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


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
        "scoring": _SCORING,
        "kind": kind,
        "start": hash_model(base.path) if base.path.is_dir() else str(base.path),
        "rows": fingerprint(columns),
        "chat template": fingerprint(base.tokenizer.chat_template),
        "options": options,
        "seed": context.seed,
        "device": base.device,
        "threads": torch.get_num_threads() if base.device == "cpu" else None,  # it decides how a CPU splits sums
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
        norm = self._trainer.take_norm()
        if not torch.isfinite(norm):
            raise not_finite("gradient norm", norm.item(), self._trainer)

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
    trainer.order = Order(lengths, options.batch_size, context.seed)
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
            advance.found(stored.step)
        trainer.train(resume_from_checkpoint=str(stored.folder) if stored else None)
    trainer.check_step()
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
