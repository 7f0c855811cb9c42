"""Log-probabilities of answers' tokens, for the policy and for the reference.

Only the positions that predict an answer's token reach the output layer. There are three ways to get there, the fastest first;
a model is scored in the first one that gives what its own forward gives, and what kept it from a faster one is logged:

    packed     one row of tokens, see `_packing`, and the output layer on the positions read
    compacted  a padded batch, and the output layer on the positions read
    plain      a padded batch through the model's own forward, which computes the logits of every position
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from selfreward.training._packing import ATTENTION, Packed, attention, pack
from selfreward.training.common import Row

Way = Literal["packed", "compacted", "plain"]
WAYS: tuple[Way, ...] = ("packed", "compacted", "plain")
_MOST_LOGITS = 1 << 27
"""More logits than this are computed in pieces, and again in the backward, instead of being kept."""
_TOLERANCE = 1e-3
"""How far the log-probabilities of another way may lie from those of the model's own forward, in float32."""


@dataclass
class Scorer:
    """Scores batches with one model. `way` is the one that `choose_way` found."""

    model: Any
    way: Way
    router_weight: float = 0.0
    """Above 0: the model balances its experts with a loss of its own, which comes back beside the log-probabilities."""

    def pack(self, rows: Sequence[Row], refs: Sequence[Sequence[float]] = ()) -> Packed:
        """A batch as this way wants it."""
        return pack(rows, in_one_block=self.way != "packed", refs=refs)

    def score(self, batch: Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities (N) of the answers' tokens, and the loss that balances experts."""
        if self.way == "plain":
            return self._score_plainly(batch)
        if self.way == "packed":
            attention.batch = batch
            hidden = self.model.base_model(
                input_ids=batch.input_ids, position_ids=batch.positions, use_cache=False
            ).last_hidden_state
            readers = batch.readers
        else:
            hidden = self.model.base_model(**_padded(batch), use_cache=False).last_hidden_state
            readers = batch.slot_readers
        hidden_ND = hidden.flatten(0, 1).index_select(0, readers)
        return self._score_hidden(hidden_ND, batch.targets), None

    def _score_plainly(self, batch: Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
        extra = {"output_router_logits": True} if self.router_weight else {}
        outputs = self.model(**_padded(batch), use_cache=False, **extra)
        logits_NV = outputs.logits.flatten(0, 1).index_select(0, batch.slot_readers)
        balance = self.router_weight * outputs.aux_loss if self.router_weight else None
        return -F.cross_entropy(logits_NV.float(), batch.targets, reduction="none"), balance

    def _score_hidden(self, hidden_ND: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        size = self.model.get_output_embeddings().weight.shape[0]
        piece = max(1, _MOST_LOGITS // size)
        if len(hidden_ND) <= piece:
            return self._score_piece(hidden_ND, targets)
        pieces = zip(torch.split(hidden_ND, piece), torch.split(targets, piece), strict=True)
        return torch.cat([checkpoint(self._score_piece, *each, use_reentrant=False) for each in pieces])

    def _score_piece(self, hidden_ND: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits_NV = _logits(self.model, hidden_ND)
        return -F.cross_entropy(logits_NV.float(), targets, reduction="none")


def _padded(batch: Packed) -> dict[str, torch.Tensor]:
    """The batch as a model takes it: one row a sequence."""
    ((count, width),) = batch.blocks
    filled = batch.filled.view(count, width)
    return {"input_ids": batch.input_ids[0][batch.slot_tokens].view(count, width) * filled, "attention_mask": filled.long()}


def _logits(model: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """The output layer on some positions, with what model families do to its logits: Cohere and others scale them, Granite
    divides them, Gemma 2 squashes them. A family that does something else is found out by `choose_way`."""
    logits_NV: torch.Tensor = model.get_output_embeddings()(hidden_ND)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None):
        logits_NV = logits_NV * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits_NV = logits_NV / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NV = cap * torch.tanh(logits_NV / cap)
    return logits_NV


def make_scorer(model: Any, rows: Sequence[Row], device: str, logger: logging.Logger) -> Scorer:
    """A scorer in the first way whose log-probabilities, on the shortest and the longest of the rows, are those of the model's
    own forward. A model that is scored packed has our attention from then on. `rows` come in order of length."""
    config = model.config.get_text_config()
    weight = getattr(config, "router_aux_loss_coef", None)
    if weight and hasattr(config, "output_router_logits"):
        logger.warning(
            "training scores this model by its own forward, which is slower: its experts are balanced by their own loss"
        )
        return Scorer(model, "plain", weight)
    was_training, own = model.training, config._attn_implementation
    probe = [rows[0], rows[-1]] if len(rows) > 1 else [rows[0]]
    plain = Scorer(model, "plain")
    model.eval()
    try:
        expected = _probe(plain, probe, device)
        for way in WAYS[:-1]:
            scorer = Scorer(model, way)
            reason = _why_not(scorer, probe, device, expected)
            if not reason:
                return scorer
            model.set_attn_implementation(own)
            logger.warning("training cannot score this model %s, and takes a slower way: %s", way, reason)
    finally:
        model.train(was_training)
    return plain


def _why_not(scorer: Scorer, probe: Sequence[Row], device: str, expected: torch.Tensor) -> str:
    """What keeps a model from being scored in this way; empty when nothing does."""
    model = scorer.model
    if scorer.way == "packed":
        if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
            return "its forward takes no positions"
        model.set_attn_implementation(ATTENTION)
        if model.config.get_text_config()._attn_implementation != ATTENTION:
            return "its attention cannot be exchanged"
    try:
        found = _probe(scorer, probe, device)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:  # what a forward raises that cannot do it
        return f"{type(error).__name__}: {error}"
    if torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        return ""
    return f"its log-probabilities differ by {(found - expected).abs().max().item():.2g} from those of its own forward"


def _probe(scorer: Scorer, probe: Sequence[Row], device: str) -> torch.Tensor:
    with torch.no_grad():
        return scorer.score(scorer.pack(probe).to(device))[0]
