"""A micro-batch as one row of tokens: nothing is padded, and the prompt that two answers share stands there once.

    prompt 0 | prompt 1 | ... | chosen 0 | chosen 1 | ... | rejected 0 | rejected 1 | ...

Everything in a transformer but attention looks at one token at a time, so it runs over this row as it is. Attention needs the
sequences: it takes queries, keys and values out into slots, sequence by sequence, those of similar length in one block, and
puts what it finds back. A shared prompt is then in two sequences; causal attention gives it the same output in both, and only
the first one is kept. Forwards and gradients are those of the padded batch up to rounding.

Tensor names: T tokens of the row, K of them in prompts, N in answers (T = K + N); P slots; S sequences of L slots; A answers;
D width, H heads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from selfreward.training.common import Row

ATTENTION = "selfreward_packed"
"""The name of our attention in transformers' attention interface."""
_SPREAD = 1.25
"""Sequences share a block while the longest is at most this many times the shortest: less padding against more calls."""
_SMALL = 32
"""A block may always grow to this many slots a sequence: below it a call costs more than its padding."""


@dataclass(frozen=True)
class Packed:
    """One micro-batch. Answers are in order of side, then of row: chosen 0, chosen 1, ..., rejected 0, ...

    `input_ids`, `positions` (1 x T). `slot_tokens` (P): the token in each slot, any one where `filled` (P) is False. `blocks`:
    (S, L) of each block of slots. `homes` (T): the slot that gives a token its output; `owned` (P): 1 for these slots, else 0.
    `again` (K): the slot of each prompt token in its second sequence; empty where nothing is shared. `readers` (N): the token
    whose output predicts an answer's token; `owners` (N): the answer that it belongs to. `num_answers`: A. `num_first_tokens`:
    those of N in the rows' first answers; they come first. `refs` (A): the reference's log-probabilities, where known.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slot_tokens: torch.Tensor
    filled: torch.Tensor
    blocks: tuple[tuple[int, int], ...]
    homes: torch.Tensor
    owned: torch.Tensor
    again: torch.Tensor
    readers: torch.Tensor
    owners: torch.Tensor
    num_answers: int
    num_first_tokens: int
    refs: torch.Tensor | None = None

    @property
    def targets(self) -> torch.Tensor:
        """The answers' tokens, one answer after the other."""
        return self.input_ids[0, -len(self.readers) :]

    @property
    def slot_readers(self) -> torch.Tensor:
        """The slots that predict the answers' tokens: each the one before its token's own."""
        return self.homes[-len(self.readers) :] - 1

    def to(self, device: torch.device | str) -> "Packed":
        """The batch on a device."""
        inputs = self.as_inputs()
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return Packed.of(inputs | {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def as_inputs(self) -> dict[str, Any]:
        """As the trainers hand batches around."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Packed":
        """The batch that `as_inputs` took apart."""
        return cls(**inputs)


def pack(rows: Sequence[Row], in_one_block: bool = False, refs: Sequence[Sequence[float]] = ()) -> Packed:
    """Lay out rows that have equally many answers, one or two. `refs`: of each side, the rows' reference log-probabilities."""
    num_rows, num_sides = len(rows), len(rows[0].answers)
    answers = [row.answers[side] for side in range(num_sides) for row in rows]
    prompt_lengths = np.array([len(row.prompt_ids) for row in rows] * num_sides)
    answer_lengths = np.array([len(answer) for answer in answers])
    assert prompt_lengths.all(), "the first token of an answer is predicted from its prompt"
    num_prompt_tokens = int(prompt_lengths[:num_rows].sum())
    prompt_starts = np.tile(_starts(prompt_lengths[:num_rows]), num_sides)
    answer_starts = num_prompt_tokens + _starts(answer_lengths)
    lengths = prompt_lengths + answer_lengths
    order = np.argsort(lengths, kind="stable")
    blocks = _blocks(lengths[order], in_one_block)
    slot_starts = np.empty_like(lengths)
    slot_starts[order] = _starts(np.concatenate([np.full(count, width) for count, width in blocks]))

    prompt_places, answer_places = _counts_up(prompt_lengths), _counts_up(answer_lengths)
    prompt_tokens = np.repeat(prompt_starts, prompt_lengths) + prompt_places
    prompt_slots = np.repeat(slot_starts, prompt_lengths) + prompt_places
    answer_tokens = np.repeat(answer_starts, answer_lengths) + answer_places
    answer_slots = np.repeat(slot_starts + prompt_lengths, answer_lengths) + answer_places
    num_slots = sum(count * width for count, width in blocks)
    slot_tokens, filled, owned = np.zeros(num_slots, np.int64), np.zeros(num_slots, bool), np.zeros(num_slots, np.float32)
    slot_tokens[prompt_slots], slot_tokens[answer_slots] = prompt_tokens, answer_tokens
    filled[prompt_slots] = filled[answer_slots] = True
    homes = np.concatenate([prompt_slots[:num_prompt_tokens], answer_slots])
    owned[homes] = 1.0
    ends = prompt_starts + prompt_lengths - 1  # the token that predicts an answer's first one
    readers = np.where(answer_places == 0, np.repeat(ends, answer_lengths), answer_tokens - 1)
    positions = np.concatenate([prompt_places[:num_prompt_tokens], np.repeat(prompt_lengths, answer_lengths) + answer_places])
    ids = [token for row in rows for token in row.prompt_ids] + [token for answer in answers for token in answer]
    return Packed(
        input_ids=torch.tensor([ids]),
        positions=torch.from_numpy(positions)[None],
        slot_tokens=torch.from_numpy(slot_tokens),
        filled=torch.from_numpy(filled),
        blocks=blocks,
        homes=torch.from_numpy(homes),
        owned=torch.from_numpy(owned),
        again=torch.from_numpy(prompt_slots[num_prompt_tokens:]),
        readers=torch.from_numpy(readers),
        owners=torch.from_numpy(np.repeat(np.arange(len(answers)), answer_lengths)),
        num_answers=len(answers),
        num_first_tokens=int(answer_lengths[:num_rows].sum()),
        refs=torch.tensor([value for side in refs for value in side]) if refs else None,
    )


def _starts(lengths: Any) -> Any:
    """Where each of several runs of these lengths begins when they follow one another."""
    return np.cumsum(lengths) - lengths


def _counts_up(lengths: Any) -> Any:
    """0, 1, ..., length - 1 for each of the lengths."""
    return np.arange(lengths.sum()) - np.repeat(_starts(lengths), lengths)


def _blocks(lengths: Any, in_one_block: bool) -> tuple[tuple[int, int], ...]:
    """(sequences, slots of each) for sequences in order of their lengths, from short to long."""
    cuts = [0]
    if not in_one_block:
        for index, length in enumerate(lengths):
            if length > max(_SMALL, _SPREAD * lengths[cuts[-1]]):
                cuts.append(index)
    cuts = sorted({*cuts, len(lengths)})
    return tuple((end - start, int(lengths[end - 1])) for start, end in pairwise(cuts))


# --- attention ----------------------------------------------------------------------------------------------------


class _Take(torch.autograd.Function):
    """Tokens into slots. Padding gets no gradient: no query of a sequence looks at the slots after it."""

    @staticmethod
    def forward(ctx: Any, tokens_TD: torch.Tensor, batch: Packed) -> torch.Tensor:
        ctx.batch = batch
        return tokens_TD.index_select(0, batch.slot_tokens)

    @staticmethod
    def backward(ctx: Any, grad_PD: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch: Packed = ctx.batch
        grad_TD = grad_PD.index_select(0, batch.homes)
        if len(batch.again):
            grad_TD[: len(batch.again)] += grad_PD.index_select(0, batch.again)
        return grad_TD, None


class _Put(torch.autograd.Function):
    """Slots back into tokens: of each token the slot that is its home."""

    @staticmethod
    def forward(ctx: Any, slots_PD: torch.Tensor, batch: Packed) -> torch.Tensor:
        ctx.batch = batch
        return slots_PD.index_select(0, batch.homes)

    @staticmethod
    def backward(ctx: Any, grad_TD: torch.Tensor) -> tuple[torch.Tensor, None]:
        batch: Packed = ctx.batch
        grad_PD = grad_TD.index_select(0, batch.slot_tokens)
        return grad_PD.mul_(batch.owned.to(grad_PD.dtype)[:, None]), None


_take: Callable[[torch.Tensor, Packed], torch.Tensor] = _Take.apply
_put: Callable[[torch.Tensor, Packed], torch.Tensor] = _Put.apply


class PackedAttention:
    """Causal attention inside the sequences of the batch that was opened last, as transformers calls it.

    The batch stays open after the forward: with gradient checkpointing the backward runs layers again.
    """

    batch: Packed | None = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """`query`: 1 x H x T x width, `key` and `value` the same with as many heads as they have; gives 1 x T x H x width.

        Raises ValueError for attention that does more than this one can.
        """
        assert self.batch is not None, "a packed model runs on packed batches"
        if unknown := [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]:
            raise ValueError(f"its attention uses {', '.join(unknown)}")
        batch, dropout, scale = self.batch, options.get("dropout", 0.0), options.get("scaling")
        window = options.get("sliding_window")
        parts = [_take(heads[0].transpose(0, 1).flatten(1), batch) for heads in (query, key, value)]
        num_heads = [heads.shape[1] for heads in (query, key, value)]
        found, start = [], 0
        for count, width in batch.blocks:
            end = start + count * width
            q, k, v = (
                part[start:end].view(count, width, heads, -1).transpose(1, 2)
                for part, heads in zip(parts, num_heads, strict=True)
            )
            mask = None
            if window is not None and window < width:
                places = torch.arange(width, device=q.device)
                distance = places[:, None] - places
                mask = (distance >= 0) & (distance < window)
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            found.append(attended.transpose(1, 2).reshape(count * width, -1))
            start = end
        slots = found[0] if len(found) == 1 else torch.cat(found)
        return _put(slots, batch).view(1, -1, query.shape[1], value.shape[-1]), None


attention = PackedAttention()
AttentionInterface.register(ATTENTION, attention)
