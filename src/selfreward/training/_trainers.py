"""TRL's trainers with our rows, our order and our losses.

TRL runs the loop: epochs, gradient accumulation, clipping, AdamW, the learning rate, logging. A step's loss is computed here:
a sum over its micro-batches, divided by what the whole step holds. However a step is cut into micro-batches, it learns
the same, up to rounding.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
import trl
from trl import DPOTrainer, SFTTrainer

from selfreward.errors import TrainingError
from selfreward.progress import Advance
from selfreward.training._checkpoint import ResumingMixin, Stored
from selfreward.training._packing import Packed
from selfreward.training._scoring import Scorer
from selfreward.training.common import Row, epoch_order

_TOLERANCE = 1e-4
_TOLERANCE_BF16 = 2e-2
"""How far the first DPO loss may lie from ln 2. With bf16 autocast the reference was computed in other batches, and a
long answer's log-probability is only good to a few tenths."""
_NO_LOSS = -100
_DPO_SUMS = ("dpo_loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
"""What is measured of each pair, in this order; a step's figure is the mean over its pairs."""


class Order(torch.utils.data.Sampler[int]):
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


@dataclass
class _Step:
    """One optimizer step: what it holds, and how much of it was seen. `num_tokens`: of the rows' first answers."""

    num_rows: int
    num_tokens: int
    seen: int = 0


class OursMixin(ResumingMixin):
    """What is ours in both trainers."""

    args: Any
    accelerator: Any
    order: Order
    scorer: Scorer
    step: _Step | None = None
    _norm: torch.Tensor | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # tokenised already

    def _send_telemetry(self) -> None:
        """Nothing: a run talks to nobody."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of one step; here it is seen what they hold together."""
        self.check_step()
        samples, count = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        batches = [Packed.of(inputs) for inputs in samples]
        self.step = _Step(sum(map(self.count_rows, batches)), sum(batch.num_first_tokens for batch in batches))
        return samples, count

    def check_step(self) -> None:
        """Raise TrainingError unless the last step saw all that it was divided by."""
        if self.step and self.step.seen != self.step.num_rows:
            raise TrainingError(
                f"the trainer took {self.step.seen} of a step's {self.step.num_rows} rows; use the versions in "
                f"constraints.txt (TRL is {trl.__version__})"
            )

    def count_rows(self, batch: Packed) -> int:
        """Rows of a micro-batch."""
        return batch.num_answers

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Gradients of one micro-batch, added to those before; gives its part of the step's loss."""
        self.model.train()
        loss = self.compute_loss(model, inputs)
        if not torch.isfinite(loss):
            raise not_finite("loss", loss.item(), self)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A micro-batch's part of the step's loss: over the micro-batches of a step these add up to its loss."""
        if self.step is None:
            raise TrainingError(
                f"the trainer's steps are not ours; use the versions in constraints.txt (TRL is {trl.__version__})"
            )
        batch = Packed.of(inputs).to(self.args.device)
        self.step.seen += self.count_rows(batch)
        with self.accelerator.autocast():
            return self.loss_of(batch, self.step)

    def loss_of(self, batch: Packed, step: _Step) -> torch.Tensor:
        raise NotImplementedError

    def floating_point_ops(self, inputs: Any) -> int:
        """None: nobody reads the count, and walking through all weights for it costs a tiny model a part of its step."""
        return 0

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """Clip the gradients of a step; `take_norm` then has the norm that they had."""
        self._norm = torch.nn.utils.clip_grad_norm_(self._weights, self.args.max_grad_norm)
        return self._norm

    def take_norm(self) -> torch.Tensor:
        """The norm of the step's gradients; computed here where the trainer clips them in another way."""
        norm, self._norm = self._norm, None
        return torch.nn.utils.get_total_norm([p.grad for p in self._weights if p.grad is not None]) if norm is None else norm

    @cached_property
    def _weights(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def balance(self, loss: torch.Tensor, balance: torch.Tensor | None, share: float) -> torch.Tensor:
        """The loss, with the part of a mixture of experts that keeps its experts in use."""
        return loss if balance is None else loss + share * balance


class SftTrainer(OursMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer on our rows."""

    def loss_of(self, batch: Packed, step: _Step) -> torch.Tensor:
        """Mean negative log-likelihood of the answers' tokens of the step."""
        logps_N, balance = self.scorer.score(batch)
        return self.balance(-logps_N.sum() / step.num_tokens, balance, batch.num_answers / step.num_rows)


class DpoTrainer(OursMixin, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer on our rows; splits the loss into its parts and checks that training starts at the reference."""

    nll_weight: float = 0.0
    dropout: float = 0.0
    start_loss: float | None = None
    """The sigmoid part of the very first loss, without dropout."""
    _checked = False

    def __init__(self, *args: Any, scorer: Scorer, advance: Advance, **kwargs: Any) -> None:
        """TRL takes the reference's log-probabilities in here; `advance` hears of every batch of pairs."""
        self.scorer, self._advance = scorer, advance
        self._sums: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def resume(self, stored: Stored) -> None:
        """As every trainer does; only the very first loss is ln 2, and that one was checked."""
        super().resume(stored)
        self._checked = stored.step > 0

    def count_rows(self, batch: Packed) -> int:
        return batch.num_answers // 2

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference's log-probabilities of one batch, the chosen and the rejected answers'."""
        batch = Packed.of(inputs).to(self.args.device)
        with torch.no_grad(), self.accelerator.autocast():
            chosen, rejected = sum_answers(self.scorer.score(batch)[0], batch).view(2, -1)
        self._advance(len(chosen))
        return chosen, rejected

    def loss_of(self, batch: Packed, step: _Step) -> torch.Tensor:
        if self.dropout and not self._checked:
            # With dropout the first loss is noise around ln 2: take a look without it first.
            self.model.eval()
            with torch.no_grad():
                self._measure(batch, step)
            self.model.train()
        loss, sums = self._measure(batch, step)
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return loss

    def _measure(self, batch: Packed, step: _Step) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss, and by name the micro-batch's part of each of the step's figures."""
        assert batch.refs is not None, "pairs come with the reference's log-probabilities"
        logps_N, balance = self.scorer.score(batch)
        rewards = self.beta * (sum_answers(logps_N, batch) - batch.refs).view(2, -1)
        margins = rewards[0] - rewards[1]
        losses = F.softplus(-margins)
        nll = -logps_N[: batch.num_first_tokens].sum() / step.num_tokens
        loss = losses.sum() / step.num_rows + self.nll_weight * nll
        with torch.no_grad():
            each = (
                torch.stack([losses, margins, (margins > 0).to(margins.dtype), rewards[0], rewards[1]]).sum(1) / step.num_rows
            )
            *values, nll_value = torch.cat([each, nll[None]]).tolist()
        sums = dict(zip(_DPO_SUMS, values, strict=True)) | {"nll": nll_value}
        if not self._checked:
            self._check_start(sums["dpo_loss"] * step.num_rows / len(margins))
        return self.balance(loss, balance, len(margins) / step.num_rows), sums

    def _check_start(self, dpo_loss: float) -> None:
        """Raise TrainingError unless policy and reference agree before the first step."""
        self._checked, self.start_loss = True, dpo_loss
        tolerance = (_TOLERANCE_BF16 if self.args.bf16 else _TOLERANCE) * max(1.0, 10 * self.beta)
        if math.isfinite(dpo_loss) and abs(dpo_loss - math.log(2)) > tolerance:
            raise TrainingError(
                f"the first DPO loss is {dpo_loss:.6f}, not ln 2 = {math.log(2):.6f}: the reference is not the model that "
                f"training starts from (TRL {trl.__version__}); use the versions in constraints.txt"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """A step's figures join its loss; every step is logged."""
        logs.update(self._sums)
        self._sums = {}
        super().log(logs, *args, **kwargs)


def sum_answers(logps_N: torch.Tensor, batch: Packed) -> torch.Tensor:
    """Log-probability of each answer."""
    return logps_N.new_zeros(batch.num_answers).index_add(0, batch.owners, logps_N)


@dataclass(frozen=True)
class Collator:
    """Rows of a dataset, as our columns hold them, into a batch."""

    scorer: Scorer

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        refs = [
            [example[name] for example in examples]
            for name in ("ref_chosen_logps", "ref_rejected_logps")
            if name in examples[0]
        ]
        return self.scorer.pack([row_of(example) for example in examples], refs).as_inputs()


def row_of(example: Mapping[str, Any]) -> Row:
    """The row that our columns of a pair or of a conversation stand for."""
    if "prompt_ids" in example:
        return Row(example["prompt_ids"], (example["chosen_ids"], example["rejected_ids"]))
    num_prompt = example["labels"].count(_NO_LOSS)
    return Row(example["input_ids"][:num_prompt], (example["input_ids"][num_prompt:],))


def not_finite(what: str, value: float, trainer: Any) -> TrainingError:
    """What to raise before a step whose loss or gradient is no number."""
    state, args = trainer.state, trainer.args
    kept = f". {trainer.checkpoints.kept()}" if trainer.checkpoints else ""
    return TrainingError(
        f"{what} is {value} at step {state.global_step + 1} of {state.max_steps}, stopped before the step; lower "
        f"learning_rate (now {args.learning_rate}) or max_grad_norm (now {args.max_grad_norm}); at step 1 the start model's "
        f"weights are the cause{kept}"
    )
