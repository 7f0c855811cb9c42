"""Engine `hf`: any Hugging Face causal language model, on CPU or GPU, through its own forward pass.

Requests with equal prompts share one prefill. Prompts of like length run together; the rows of a batch advance one token at
a time over memory that is written in place, and rows that have ended leave the batch. A request's tokens depend on its
prompt, its settings and its seed; its neighbours only move floating-point sums by their rounding.

Tensor names end in their shape: B prompts, R rows (replies), T tokens, V vocabulary.
"""

import gc
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from selfreward.chat import encode_prompt, stop_token_ids
from selfreward.config import Config
from selfreward.engines._cache import PromptCache, SlotCache, can_use_slots
from selfreward.engines._replies import Reader, Reply
from selfreward.engines._sampling import Sampler
from selfreward.engines.base import Engine, check_requests
from selfreward.engines.loading import load_model, load_tokenizer, pick_device
from selfreward.errors import EngineError, ModelError
from selfreward.types import Generation, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Most prompt tokens, padding included, in one forward pass; a single longer prompt has a pass of its own. A pass that stays in
a CPU's caches is faster than one that does not; a GPU needs more to be busy."""
COMPACT_SHARE = 16
"""Rows that have ended leave the batch when they are more than one in this many."""


@dataclass(frozen=True)
class _Job:
    """One prompt and the requests that continue it, at most a batch full."""

    ids: tuple[int, ...]
    requests: tuple[Request, ...]


class HfEngine(Engine):
    """See the module. `model` and `tokenizer` are free for tests and tools to look at; None after closing."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> None:
        """`batch_size` is the most replies generated at a time. Raises ModelError for a model that cannot serve."""
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self._device = str(model.device)
        self._batch_size = batch_size
        self._context_length = _context_length(model, tokenizer)
        self._reader = Reader(tokenizer, stop_token_ids(tokenizer))
        self._num_layers = len(DynamicCache(config=model.config).layers)
        self._has_slots = can_use_slots(model.config)
        self._accepted = _accepted_arguments(model)

    @classmethod
    def open(cls, path: str, config: Config) -> "HfEngine":
        """Load a model folder as `model.*` and `engine.*` say. Raises ModelError, or ConfigError for a missing GPU."""
        model = load_model(path, config, pick_device(config))
        return cls(model, load_tokenizer(path, config), config.engine.batch_size)

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its reply together: the model's `max_position_embeddings`."""
        return self._context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer all requests; each batch's replies come when the batch is done. See Engine."""
        if self.model is None:
            raise EngineError("the engine is closed; open another one")
        check_requests(requests)
        jobs, refused = self._encode(requests)
        return self._answer(_batches(jobs, self._batch_size), refused)

    def close(self) -> None:
        """Drop the model and give its memory back."""
        self.model = self.tokenizer = None
        self._reader = Reader(None, frozenset())
        gc.collect()  # a model is full of reference cycles
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _encode(self, requests: Sequence[Request]) -> tuple[list[_Job], list[Generation]]:
        """One job a distinct prompt, longest first, and the requests whose prompts leave no room."""
        same_prompt: dict[Any, list[Request]] = {}
        for request in requests:
            same_prompt.setdefault(request.prompt, []).append(request)
        jobs: list[_Job] = []
        refused: list[Generation] = []
        for prompt, group in same_prompt.items():
            ids = encode_prompt(self.tokenizer, prompt)
            if not ids:
                raise EngineError(f"the prompt of request {group[0].id!r} has no tokens; there is nothing to continue")
            if len(ids) >= self._context_length:
                refused += [Generation(request.id, "", len(ids), 0, "error", "too_long") for request in group]
                continue
            for start in range(0, len(group), self._batch_size):
                jobs.append(_Job(tuple(ids), tuple(group[start : start + self._batch_size])))
        jobs.sort(key=lambda job: -len(job.ids))
        return jobs, refused

    def _answer(self, batches: Sequence[Sequence[_Job]], refused: Sequence[Generation]) -> Iterator[Generation]:
        yield from refused
        for batch in batches:
            if self.model is None:
                raise EngineError("the engine was closed before all requests were answered")
            try:
                replies = self._run_batch(batch)
            except RuntimeError as error:
                if isinstance(error, EngineError) or not _is_out_of_memory(error):
                    raise
                rows = sum(len(job.requests) for job in batch)
                raise EngineError(f"no memory left for {rows} replies at a time; lower engine.batch_size: {error}") from error
            yield from replies

    @torch.inference_mode()
    def _run_batch(self, jobs: Sequence[_Job]) -> list[Generation]:
        """Prefill the jobs' prompts, then decode all their rows to the end."""
        replies = [self._reply(request, len(job.ids)) for job in jobs for request in job.requests]
        rows = list(replies)
        sampler = Sampler(
            [row.request.sampling for row in rows],
            [row.request.seed for row in rows],
            [row.limit for row in rows],
            self._device,
        )
        lengths = [len(job.ids) for job in jobs for _ in job.requests]
        max_new = max(row.limit for row in rows)
        cache, logits_RV = self._prefill(jobs, len(rows), max_new)
        position_R = torch.tensor(lengths, device=self._device)
        padding_R = max(lengths) - position_R
        for step in range(max_new):
            ids_R = sampler.draw(logits_RV, step)
            for row, token in zip(rows, ids_R.tolist(), strict=True):
                if not row.is_done:
                    row.add(token)
            num_left = sum(not row.is_done for row in rows)
            if not num_left:
                break
            if (len(rows) - num_left) * COMPACT_SHARE > len(rows):
                index = _compaction([row.is_done for row in rows])
                rows = [rows[old] for old in index]
                index_R = torch.tensor(index, device=self._device)
                ids_R, position_R, padding_R = ids_R[index_R], position_R[index_R], padding_R[index_R]
                sampler.take(index)
                if isinstance(cache, SlotCache):
                    cache.take(index)
                else:
                    cache.reorder_cache(index_R)
            logits_RV = self._forward(ids_R[:, None], padding_R, position_R[:, None], cache)
            position_R = position_R + 1
        return [reply.generation() for reply in replies]

    def _reply(self, request: Request, num_prompt_tokens: int) -> Reply:
        limit = min(request.sampling.max_tokens, self._context_length - num_prompt_tokens)
        return Reply(request, num_prompt_tokens, limit, self._reader)

    def _prefill(self, jobs: Sequence[_Job], num_rows: int, max_new: int) -> tuple[Any, torch.Tensor]:
        """The memory of all rows after their prompts, and the logits of their first tokens."""
        num_slots = max(len(job.ids) for job in jobs)
        if not self._has_slots:
            # These caches cannot be put together from parts: one pass over all prompts, then one row for each reply.
            cache = DynamicCache(config=self.model.config)
            logits_BV = self._forward_prompts(jobs, cache)
            source_R = self._sources(jobs)
            cache.reorder_cache(source_R)
            return cache, logits_BV[source_R]
        slots = SlotCache(self._num_layers, num_rows, num_slots, max_new)
        logits = []
        first_row = 0
        for part in _passes(jobs):
            prompts = PromptCache(self._num_layers)
            logits_BV = self._forward_prompts(part, prompts)
            source_R = self._sources(part)
            slots.admit(prompts, source_R, first_row)
            logits.append(logits_BV[source_R])
            first_row += len(source_R)
        return slots, torch.cat(logits)

    def _forward_prompts(self, jobs: Sequence[_Job], cache: Any) -> torch.Tensor:
        """Run the prompts of these jobs, shorter ones padded on the left; logits of the last token, shape B, V."""
        width = max(len(job.ids) for job in jobs)
        padding = [width - len(job.ids) for job in jobs]
        pad = self.tokenizer.pad_token_id or 0
        ids_BT = torch.tensor(
            [[pad] * gap + list(job.ids) for gap, job in zip(padding, jobs, strict=True)], device=self._device
        )
        padding_B = torch.tensor(padding, device=self._device)
        positions_BT = (torch.arange(width, device=self._device) - padding_B[:, None]).clamp(min=0)
        return self._forward(ids_BT, padding_B, positions_BT, cache)

    def _forward(self, ids_RT: torch.Tensor, padding_R: torch.Tensor, positions_RT: torch.Tensor, cache: Any) -> torch.Tensor:
        """One pass over new tokens on top of the cache; logits of the last position, shape R, V."""
        seen = torch.arange(cache.get_seq_length() + ids_RT.shape[1], device=self._device)
        optional = {"position_ids": positions_RT, "logits_to_keep": 1}
        output = self.model(
            input_ids=ids_RT,
            attention_mask=(seen >= padding_R[:, None]).long(),
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        logits_RV: torch.Tensor = output.logits[:, -1]
        return logits_RV

    def _sources(self, jobs: Sequence[_Job]) -> torch.Tensor:
        """For each row the number of its prompt among these jobs."""
        return torch.tensor([number for number, job in enumerate(jobs) for _ in job.requests], device=self._device)


def _batches(jobs: Sequence[_Job], batch_size: int) -> list[list[_Job]]:
    """Cut jobs into batches of at most `batch_size` rows, in order, no job cut."""
    batches: list[list[_Job]] = []
    num_rows = batch_size
    for job in jobs:
        if num_rows + len(job.requests) > batch_size:
            batches.append([])
            num_rows = 0
        batches[-1].append(job)
        num_rows += len(job.requests)
    return batches


def _passes(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Cut jobs, which come longest first, into forward passes of at most PREFILL_TOKENS tokens."""
    passes: list[list[_Job]] = []
    for job in jobs:
        if not passes or (len(passes[-1]) + 1) * len(passes[-1][0].ids) > PREFILL_TOKENS:
            passes.append([])
        passes[-1].append(job)
    return passes


def _compaction(is_done: Sequence[bool]) -> list[int]:
    """Old numbers of the rows to keep: they stay where they are, only rows from the end move into the gaps."""
    num_left = len(is_done) - sum(is_done)
    from_the_end = iter([row for row in range(num_left, len(is_done)) if not is_done[row]])
    return [next(from_the_end) if is_done[row] else row for row in range(num_left)]


def _context_length(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Positions that the model was built for; where its config names none (relative positions), the tokenizer's limit."""
    config = model.config.get_text_config(decoder=True)
    for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length):
        # Tokenizers without a limit say 10^30.
        if isinstance(limit, int) and 0 < limit < 2**31:
            return limit
    raise ModelError(
        f"neither the config of the {config.model_type} model nor its tokenizer names a context length; "
        "set max_position_embeddings in config.json or model_max_length in tokenizer_config.json"
    )


def _accepted_arguments(model: "PreTrainedModel") -> frozenset[str]:
    """Names of the forward pass's arguments. Raises ModelError for a model without HF's caches (Mamba's own, for instance)."""
    names = frozenset(inspect.signature(model.forward).parameters)
    if "past_key_values" not in names:
        raise ModelError(f"engine.name=hf needs a model that takes past_key_values; {type(model).__name__} does not")
    return names


def _is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a class for a full GPU, but for a full main memory only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
