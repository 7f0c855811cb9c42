"""Key-value memory of a batch of replies, as a Transformers cache.

Tensor names end in their shape: B prompts, R rows (replies), H key-value heads, T tokens, D head size.

All rows have the same number of slots; shorter prompts start later (left padding, hidden by the attention mask). New tokens are
written in place. HF's growing cache copies everything at each token, and its static one attends to empty slots.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

FIRST_SLOTS = 64
"""Slots for new tokens at first; doubled when they are full, so that a high max_tokens costs nothing until it is used."""


def can_use_slots(config: Any) -> bool:
    """Whether every layer of a model keeps plain keys and values (full or sliding-window attention).

    A sliding window then lies in the attention mask alone. Other layers (recurrent, compressed, shared) need HF's caches.
    """
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class PromptCache(Cache):  # type: ignore[misc]
    """Keeps what one forward pass over whole prompts hands over, without a copy. For a single pass."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_PromptLayer() for _ in range(num_layers)])


class SlotCache(Cache):  # type: ignore[misc]
    """The memory of R rows: `num_slots` slots for prompts, filled by `admit`, then up to `max_new` for new tokens."""

    def __init__(self, num_layers: int, num_rows: int, num_slots: int, max_new: int) -> None:
        super().__init__(layers=[_SlotLayer(num_rows, num_slots, max_new) for _ in range(num_layers)])

    def admit(self, prompts: PromptCache, source_R: torch.Tensor, first_row: int) -> None:
        """Copy prompts into the rows from `first_row` on: row `first_row + i` continues prompt `source_R[i]`."""
        for layer, prompt in zip(self.layers, prompts.layers, strict=True):
            layer.admit(prompt.keys, prompt.values, source_R, first_row)

    def take(self, index: Sequence[int]) -> None:
        """Keep `len(index)` rows: new row i is old row `index[i]`. Only rows that move are copied."""
        moves = [(row, old) for row, old in enumerate(index) if row != old]
        for layer in self.layers:
            layer.take(moves, len(index))


class _PromptLayer(CacheLayerMixin):  # type: ignore[misc]
    """Refers to the keys and values of one pass."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.is_initialized, "a PromptCache serves one forward pass"
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[2])

    def get_max_length(self) -> int:
        return -1


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of SlotCache."""

    def __init__(self, num_rows: int, num_slots: int, max_new: int) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._num_prompt_slots = num_slots
        self._length = num_slots
        self._limit = num_slots + max_new

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        capacity = min(self._limit, self._num_prompt_slots + FIRST_SLOTS)
        self.keys, self.values = (
            states.new_empty(self._num_rows, states.shape[1], capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def admit(self, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor, source_R: torch.Tensor, first_row: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys_BHTD, values_BHTD)
        rows = slice(first_row, first_row + len(source_R))
        start = self._num_prompt_slots - keys_BHTD.shape[2]
        for store, states_BHTD in ((self.keys, keys_BHTD), (self.values, values_BHTD)):
            # Hidden slots still enter a sum with weight 0, and 0 times whatever lay in this memory may be NaN.
            store[rows, :, :start] = 0
            store[rows, :, start : self._num_prompt_slots] = states_BHTD.index_select(0, source_R)

    def take(self, moves: Sequence[tuple[int, int]], num_rows: int) -> None:
        self._num_rows = num_rows
        if not moves:
            return
        to, come_from = (torch.tensor(side, device=self.keys.device) for side in zip(*moves, strict=True))
        for store in (self.keys, self.values):
            used = store[:, :, : self._length]
            used[to] = used[come_from]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._length + key_states.shape[2]
        assert self.is_initialized, "SlotCache: admit prompts first"
        assert end <= self._limit, f"SlotCache: {end} tokens, made for {self._limit}"
        if end > self.keys.shape[2]:
            self._grow(end)
        rows = slice(0, self._num_rows)
        self.keys[rows, :, self._length : end] = key_states
        self.values[rows, :, self._length : end] = value_states
        self._length = end
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def _grow(self, needed: int) -> None:
        doubled = 2 * self.keys.shape[2] - self._num_prompt_slots
        capacity = min(self._limit, max(needed, doubled))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(self._num_rows, old.shape[1], capacity, old.shape[3])
            new[:, :, : self._length] = old[: self._num_rows, :, : self._length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return self._limit
