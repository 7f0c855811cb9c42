"""Log-probabilities of answers' tokens, for the policy and for the reference.

Only the positions that predict an answer's token reach the output layer. There are three ways to get there, the fastest first;
a model is scored in the first one that gives what its own forward gives, and what kept it from a faster one is logged:

    packed     one row of tokens, see `_packing`, and the output layer on the positions read
    compacted  a padded batch, and the output layer on the positions read
    plain      a padded batch through the model's own forward, which computes the logits of every position
"""

import inspect
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from selfreward.engines._memory import is_out_of_memory
from selfreward.errors import ConfigError
from selfreward.training._base import is_unrepeatable
from selfreward.training._packing import ATTENTION, Packed, attention, pack
from selfreward.training.common import Row

Way = Literal["packed", "compacted", "plain"]
WAYS: tuple[Way, ...] = ("packed", "compacted", "plain")
_MOST_LOGITS = 1 << 27
"""More logits than this are computed in pieces, and again in the backward, instead of being kept."""
_TOLERANCE = 1e-4
"""How far the log-probabilities of another way may lie from those of the model's own forward, in float32. Right ways lie a few
millionths apart; a way that is wrong may be wrong by little on a short probe."""
_TOLERANCE_16 = 1e-3
"""The same in 16 bits, besides as much as a share of the log-probability."""
_PROBED = 128
"""Of a row that a way is tried with, at most so many tokens of the prompt and of each answer."""
_MIXER = re.compile("conv|linear|mamba|recurrent|ssm|hybrid|chunked|lightning|rwkv")
"""Kinds of layers that mix tokens, but not by causal attention over a sequence."""
_CANNOT = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, AssertionError)
"""What a forward raises that cannot do what it is asked for."""


@dataclass
class Scorer:
    """Scores batches with one model. `way` is the one that `make_scorer` found."""

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
    divides them, Gemma 2 and RecurrentGemma squash them. A family that does something else is found out by `make_scorer`."""
    logits_NV: torch.Tensor = model.get_output_embeddings()(hidden_ND)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None):
        logits_NV = logits_NV * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits_NV = logits_NV / divisor
    if cap := getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None):
        logits_NV = cap * torch.tanh(logits_NV / cap)
    return logits_NV


def make_scorer(model: Any, rows: Sequence[Row], device: str, logger: logging.Logger) -> Scorer:
    """A scorer in the first way whose log-probabilities, on the shortest and the longest of the rows, are those of the model's
    own forward. A model that is scored packed has our attention from then on. `rows` come in order of length."""
    was_training, own = model.training, model.config.get_text_config()._attn_implementation
    probes = _probes(model, rows)
    model.eval()
    try:
        if weight := _balance_weight(model, probes[0], device, logger):
            return Scorer(model, "plain", weight)
        expected = torch.cat([_own_logps(model, probe, device) for probe in probes])
        for way in WAYS[:-1]:
            scorer = Scorer(model, way)
            reason = _why_not(scorer, probes, device, expected)
            if not reason:
                return scorer
            model.set_attn_implementation(own)
            logger.warning("training cannot score this model %s, and takes a slower way: %s", way, reason)
    finally:
        model.train(was_training)
    return Scorer(model, "plain")


def settle_repeats(model: Any, rows: Sequence[Row], device: str, logger: logging.Logger) -> None:
    """Go through the shortest row, forwards and backwards, where operations must repeat their results. A model that has one
    without such a form is trained all the same: its results may differ in their last bits, which is logged."""
    scorer = Scorer(model, "plain")
    try:
        logps_N, _ = scorer.score(scorer.pack([_cut(rows[0])]).to(device))
        logps_N.sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if not is_unrepeatable(error):
            raise
        logger.warning("training of this model may not repeat bit for bit on this device: %s", error)
        torch.use_deterministic_algorithms(True, warn_only=True)
    finally:
        model.zero_grad(set_to_none=True)


def _balance_weight(model: Any, probe: Sequence[Row], device: str, logger: logging.Logger) -> float:
    """How much the loss weighs that balances a model's experts; 0 where it has none. Some families' configs always name a
    weight, also of a model that has no experts: whether there is such a loss, only a forward can tell."""
    config = model.config.get_text_config()
    weight: float | None = getattr(config, "router_aux_loss_coef", None)
    if not weight or not hasattr(config, "output_router_logits"):
        return 0.0
    try:
        with torch.no_grad():
            scorer = Scorer(model, "plain", weight)
            balance = scorer.score(scorer.pack(probe[:1]).to(device))[1]
        reason = "" if isinstance(balance, torch.Tensor) else "its forward gives none"
    except _CANNOT as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}"
    if reason:
        logger.warning(
            "this model's config asks for a loss that balances experts (router_aux_loss_coef=%s), but the model has none, and "
            "training goes on without it: %s", weight, reason,
        )  # fmt: skip
        config.output_router_logits = False  # where it is on, every forward would look for them
        return 0.0
    logger.warning("training scores this model by its own forward, which is slower: its experts are balanced by their own loss")
    return weight


def _why_not(scorer: Scorer, probes: Sequence[Sequence[Row]], device: str, expected: torch.Tensor) -> str:
    """What keeps a model from being scored in this way; empty when nothing does."""
    model = scorer.model
    if scorer.way == "packed":
        if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
            return "its forward takes no positions"
        if mixer := _other_mixer(model):
            return f"{mixer} passes on what stands in one sequence to the next"
        model.set_attn_implementation(ATTENTION)
        if model.config.get_text_config()._attn_implementation != ATTENTION:
            return "its attention cannot be exchanged"
    try:
        found = torch.cat([_logps(scorer, probe, device) for probe in probes])
    except _CANNOT as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    if _are_close(found, expected, model):
        return ""
    return f"its log-probabilities differ by {(found - expected).abs().max().item():.2g} from those of its own forward"


def _other_mixer(model: Any) -> str:
    """What in the model lets tokens see each other outside of attention as ours is; empty when there is nothing. A few tokens
    of another sequence may change too little for a probe to tell."""
    config = model.config.get_text_config()
    for setting in ("layer_types", "layers_block_type", "block_types"):
        if kinds := sorted({str(kind) for kind in getattr(config, setting, None) or () if _MIXER.search(str(kind))}):
            return f"{setting}={kinds[0]}"
    for name, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.Conv1d):
            return f"the convolution {name}"
    return ""


def _are_close(found: torch.Tensor, expected: torch.Tensor, model: Any) -> bool:
    relative, absolute = (0.0, _TOLERANCE) if model.dtype == torch.float32 else (_TOLERANCE_16, _TOLERANCE_16)
    return torch.allclose(found, expected, rtol=relative, atol=absolute, equal_nan=True)


# --- probes -------------------------------------------------------------------------------------------------------


def _probes(model: Any, rows: Sequence[Row]) -> list[list[Row]]:
    """What a way is tried with: the shortest and the longest row, both cut so that a probe never takes more memory than
    training does; and, where a forward computes the logits of some positions only, the longest sequence in full length."""
    longest = rows[-1]
    probes = [[_cut(row) for row in ((rows[0], longest) if len(rows) > 1 else (longest,))]]
    if longest.length > 2 * _PROBED and _keeps_logits(model):
        answer = max(longest.answers, key=len)
        start = max(0, len(answer) - _PROBED)
        probes.append([Row(longest.prompt_ids + answer[:start], (answer[start:],))])
    return probes


def _cut(row: Row) -> Row:
    return Row(row.prompt_ids[:_PROBED], tuple(answer[:_PROBED] for answer in row.answers))


def _keeps_logits(model: Any) -> bool:
    """Whether the model's forward computes the logits of the last positions only, if told so."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _logps(scorer: Scorer, probe: Sequence[Row], device: str) -> torch.Tensor:
    with torch.no_grad():
        return scorer.score(scorer.pack(probe).to(device))[0]


def _own_logps(model: Any, probe: Sequence[Row], device: str) -> torch.Tensor:
    """What a scorer gives, by the model's own forward, one sequence at a time: nothing is padded, and few logits are there."""
    found = []
    with torch.no_grad():
        for side in range(len(probe[0].answers)):
            for row in probe:
                answer = row.answers[side]
                ids = torch.tensor([row.prompt_ids + answer], device=device)
                few = {"logits_to_keep": len(answer) + 1} if _keeps_logits(model) else {}
                logits_LV = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **few).logits[0]
                targets = ids[0, -len(answer) :]
                found.append(-F.cross_entropy(logits_LV[-len(answer) - 1 : -1].float(), targets, reduction="none"))
    return torch.cat(found)


def check_quiet(scorer: Scorer, rows: Sequence[Row], device: str) -> None:
    """Raise ConfigError when a model whose dropout is off is another one in training than in evaluation all the same."""
    model = scorer.model
    was_training, probe = model.training, _probes(model, rows)[0]
    try:
        model.eval()
        expected = _logps(scorer, probe, device)
        model.train()
        if _are_close(_logps(scorer, probe, device), expected, model):
            return
        name = _first_noise(scorer, probe, device)
    finally:
        model.train(was_training)
    raise ConfigError(
        f"dropout=0, but {name} of this {type(model).__name__} computes something else in training than in evaluation; no "
        "setting of ours switches that off: use another model, or set sft.dropout and dpo.dropout above 0 to train with noise"
    )


def _first_noise(scorer: Scorer, probe: Sequence[Row], device: str) -> str:
    """The first module, in the order in which they finish, whose output is another one in training."""
    runs: list[list[tuple[str, float]]] = []
    for is_training in (False, True):
        seen: list[tuple[str, float]] = []
        hooks = [
            module.register_forward_hook(lambda module, args, output, name=name, seen=seen: seen.append((name, _sum(output))))
            for name, module in scorer.model.named_modules()
        ]
        scorer.model.train(is_training)
        try:
            _logps(scorer, probe, device)
        finally:
            for hook in hooks:
                hook.remove()
        runs.append(seen)
    differing = (then[0] for then, now in zip(*runs, strict=False) if then != now)
    name = next(differing, "")
    return f"{type(scorer.model.get_submodule(name)).__name__} {name!r}" if name else "the forward"


def _sum(output: Any) -> float:
    """A figure that tells outputs apart: the sum of the first tensor in it."""
    if isinstance(output, torch.Tensor):
        return output.double().sum().item()
    parts = list(output.values()) if isinstance(output, dict) else output if isinstance(output, tuple) else ()
    return next((_sum(part) for part in parts if isinstance(part, torch.Tensor)), 0.0)
