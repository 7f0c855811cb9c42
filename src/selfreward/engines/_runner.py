"""Forward passes of models whose attention is their own: prompts into memory, then one token a row at a time.

Only equal prompts are shared, and rows begin together. Tensor names end in their shape: B prompts, R rows (replies), T tokens,
V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from selfreward.engines._cache import PromptCache, SlotCache, can_use_slots
from selfreward.engines._tree import Job, Leaf

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Most prompt tokens, padding included, in one forward pass; a single longer prompt has a pass of its own. A pass that stays in
a CPU's caches is faster than one that does not; a GPU needs more to be busy."""


class _Batch:
    """What rows that began together remember."""

    def __init__(self, cache: Any, padding_R: torch.Tensor, position_R: torch.Tensor) -> None:
        """`padding_R` counts the hidden slots before each row's prompt, `position_R` is where its next token goes."""
        self.cache = cache
        self.padding_R = padding_R
        self.position_R = position_R

    def take(self, index: Sequence[int]) -> None:
        """Keep `len(index)` rows: new row i is old row `index[i]`."""
        index_R = torch.tensor(index, device=self.position_R.device)
        self.padding_R, self.position_R = self.padding_R[index_R], self.position_R[index_R]
        if isinstance(self.cache, SlotCache):
            self.cache.take(index)
        else:
            self.cache.reorder_cache(index_R)


class SlotMemory:
    """A session (see `_backends`) whose rows all begin together."""

    def __init__(self, runner: "SlotRunner", most_new: int) -> None:
        self._runner, self._most_new = runner, most_new
        self._batch: _Batch | None = None
        self.num_read = 0

    def admit(self, leaves: Sequence[Leaf]) -> torch.Tensor:
        """See Session; there may be no rows yet."""
        assert self._batch is None, "rows join a session with slots only when it is empty"
        self._batch, logits_RV = self._runner.prefill([leaf.job for leaf in leaves], self._most_new)
        self.num_read += sum(len(leaf.job.ids) for leaf in leaves)
        return logits_RV

    def step(self, ids_R: torch.Tensor) -> torch.Tensor:
        """See Session."""
        assert self._batch is not None, "no rows"
        return self._runner.step(ids_R, self._batch)

    def take(self, index: Sequence[int]) -> None:
        """See Session."""
        assert self._batch is not None, "no rows"
        if index:
            self._batch.take(index)
        else:
            self._batch = None

    def num_kept(self, num_prompts: int, longest: int, num_rows: int, most_new: int) -> int:
        """See Session; each row has its prompt of its own."""
        return num_rows * (longest + most_new)

    def read(self, leaves: Sequence[Leaf]) -> torch.Tensor:
        """See Session."""
        self.num_read += sum(len(leaf.job.ids) for leaf in leaves)
        return self._runner.read([leaf.job for leaf in leaves])


class SlotRunner:
    """Runs one model. All its methods belong into `torch.inference_mode`."""

    def __init__(self, model: "PreTrainedModel", pad_token_id: int, context_length: int) -> None:
        """`context_length`: positions that the model has."""
        self._model: Any = model
        self._pad = pad_token_id
        self._last_position = context_length - 1
        self._device: torch.device = model.device
        self._arguments = frozenset(inspect.signature(model.forward).parameters)
        self._num_layers = len(DynamicCache(config=model.config).layers)
        self._has_slots = can_use_slots(model.config)

    def prefill(self, jobs: Sequence[Job], max_new: int) -> tuple[_Batch, torch.Tensor]:
        """Run every job's prompt once; at most `max_new` tokens a row follow.

        Returns the memory of all rows and the logits of their first tokens, shape R, V.
        """
        source_R = self._sources(jobs)
        length_B = torch.tensor([len(job.ids) for job in jobs], device=self._device)
        num_slots = max(len(job.ids) for job in jobs)
        padding_R, position_R = (num_slots - length_B)[source_R], length_B[source_R]
        if not self._has_slots:
            # These caches cannot be put together from parts: one pass over all prompts, then one row for each reply.
            cache = DynamicCache(config=self._model.config)
            logits_BV = self._run_prompts(jobs, cache)
            cache.reorder_cache(source_R)
            return _Batch(cache, padding_R, position_R), logits_BV[source_R]
        slots = SlotCache(self._num_layers, len(source_R), num_slots, max_new)
        logits = []
        first_row = 0
        for part in _padded_passes(jobs, PREFILL_TOKENS[self._device.type]):
            prompts = PromptCache(self._num_layers)
            logits_BV = self._run_prompts(part, prompts)
            source_R = self._sources(part)
            slots.admit(prompts, source_R, first_row)
            logits.append(logits_BV[source_R])
            first_row += len(source_R)
        return _Batch(slots, padding_R, position_R), torch.cat(logits)

    def read(self, jobs: Sequence[Job]) -> torch.Tensor:
        """Run every job's prompt once and keep no memory of it; the logits of each job's next token, shape B, V."""
        logits = []
        for part in _padded_passes(jobs, PREFILL_TOKENS[self._device.type]):
            cache = PromptCache(self._num_layers) if self._has_slots else DynamicCache(config=self._model.config)
            logits.append(self._run_prompts(part, cache))
        return torch.cat(logits)

    def step(self, ids_R: torch.Tensor, memory: _Batch) -> torch.Tensor:
        """Append one token to every row; returns the logits of the next ones, shape R, V."""
        logits_RV = self._run(ids_R[:, None], memory.padding_R, memory.position_R[:, None], memory.cache)
        # Only rows that have ended and wait for compaction come this far; a position beyond the last has no embedding.
        memory.position_R = (memory.position_R + 1).clamp(max=self._last_position)
        return logits_RV

    def _run_prompts(self, jobs: Sequence[Job], cache: Any) -> torch.Tensor:
        """One pass over whole prompts, shorter ones padded on the left; logits of the last token, shape B, V."""
        width = max(len(job.ids) for job in jobs)
        padding = [width - len(job.ids) for job in jobs]
        rows = [[self._pad] * gap + list(job.ids) for gap, job in zip(padding, jobs, strict=True)]
        padding_B = torch.tensor(padding, device=self._device)
        positions_BT = (torch.arange(width, device=self._device) - padding_B[:, None]).clamp(min=0)
        return self._run(torch.tensor(rows, device=self._device), padding_B, positions_BT, cache)

    def _run(self, ids_RT: torch.Tensor, padding_R: torch.Tensor, positions_RT: torch.Tensor, cache: Any) -> torch.Tensor:
        """One pass over new tokens on top of the cache; logits of the last position, shape R, V."""
        slots = torch.arange(cache.get_seq_length() + ids_RT.shape[1], device=self._device)
        # Models without position embeddings take no position_ids; few old ones compute the logits of all positions.
        optional = {"position_ids": positions_RT, "logits_to_keep": 1}
        output = self._model(
            input_ids=ids_RT,
            attention_mask=(slots >= padding_R[:, None]).long(),
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._arguments},
        )
        logits_RV: torch.Tensor = output.logits[:, -1]
        return logits_RV

    def _sources(self, jobs: Sequence[Job]) -> torch.Tensor:
        """For each row the number of its prompt among these jobs."""
        return torch.tensor([number for number, job in enumerate(jobs) for _ in job.requests], device=self._device)


def _padded_passes(jobs: Sequence[Job], max_tokens: int) -> list[list[Job]]:
    """Cut jobs, in order, into forward passes of at most `max_tokens` tokens, padding included."""
    passes: list[list[Job]] = []
    longest = 0
    for job in jobs:
        longest = max(longest, len(job.ids))
        if not passes or (len(passes[-1]) + 1) * longest > max_tokens:
            passes.append([])
            longest = len(job.ids)
        passes[-1].append(job)
    return passes
