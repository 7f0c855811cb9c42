"""Engine `hf`: any Hugging Face causal language model, on CPU or GPU, through its own forward pass.

Requests with equal prompts share one prefill. Prompts of like length run together; the rows of a batch advance one token at
a time over memory that is written in place, and rows that have ended leave the batch. A request's tokens depend on its
prompt, its settings and its seed; its neighbours only move floating-point sums by their rounding. Requests with choices
are scored apart (`_choices`). A batch that does not fit into memory is halved (`_memory`).
"""

import gc
from collections.abc import Iterator, Sequence
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any

import torch

from selfreward.chat import encode_continuations, encode_prompt, stop_token_ids
from selfreward.config import Config
from selfreward.engines._choices import ChoiceScorer, Piece
from selfreward.engines._memory import Fitting
from selfreward.engines._replies import Reader, Reply
from selfreward.engines._runner import Job, Runner, cut_batches
from selfreward.engines._sampling import Sampler
from selfreward.engines.base import Engine, Shortage, check_requests
from selfreward.engines.loading import load_chat_model, pick_device
from selfreward.errors import EngineError, ModelError
from selfreward.types import Generation, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPACT_SHARE = 16
"""Rows that have ended leave the batch once they are more than one in this many."""
_NO_LIMIT = 2**31
"""Tokenizers without a length limit say 10^30."""


class HfEngine(Engine):
    """See the module. `model` and `tokenizer` may be looked at from outside; None after closing."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> None:
        """`batch_size` is the most replies generated at a time. Raises ModelError for a model that cannot serve."""
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self._device: torch.device = model.device
        self._batch_size = batch_size
        self._shortages: list[Shortage] = []
        self._context_length = _context_length(model, tokenizer)
        self._reader: Reader | None = Reader(tokenizer, stop_token_ids(tokenizer))
        self._runner: Runner | None = Runner(model, tokenizer.pad_token_id or 0, self._context_length)
        self._scorer: ChoiceScorer | None = ChoiceScorer(tokenizer, self._reader, self._runner, self._context_length)

    @classmethod
    def open(cls, path: str, config: Config) -> "HfEngine":
        """Load a model folder as `model.*` and `engine.*` say. Raises ModelError, or ConfigError for a missing GPU."""
        model, tokenizer, _ = load_chat_model(path, config, pick_device(config))
        return cls(model, tokenizer, config.engine.batch_size)

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its reply together: the model's `max_position_embeddings`."""
        return self._context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer all requests; the replies of a batch come together when the batch is done. See Engine."""
        self._parts()
        check_requests(requests)
        jobs, refused = self._encode([request for request in requests if not request.choices])
        batches = cut_batches(jobs, self._batch_size)
        with_choices = [request for request in requests if request.choices]
        pieces, too_long = self._parts()[2].pieces(with_choices, self._batch_size)
        fitting = Fitting(self._batch_size, self._shortages.append)
        return chain(self._answer(batches, refused, fitting), self._score(pieces, too_long, fitting))

    def take_shortages(self) -> list[Shortage]:
        """Batches that did not fit and were halved since the last call."""
        taken, self._shortages[:] = list(self._shortages), []
        return taken

    def close(self) -> None:
        """Drop the model and give its memory back."""
        self.model = self.tokenizer = self._reader = self._runner = self._scorer = None
        gc.collect()  # a model is full of reference cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _parts(self) -> tuple[Runner, Reader, ChoiceScorer]:
        if self._runner is None or self._reader is None or self._scorer is None:
            raise EngineError("the engine is closed; open another one")
        return self._runner, self._reader, self._scorer

    def _encode(self, requests: Sequence[Request]) -> tuple[list[Job], list[Generation]]:
        """Jobs, longest prompt first, each with one prompt and at most a batch full of requests; and the replies to
        requests whose prompts leave no room."""
        same_prompt: dict[Any, list[Request]] = {}
        for request in requests:
            same_prompt.setdefault((request.prompt, request.reply_prefix), []).append(request)
        jobs: list[Job] = []
        refused: list[Generation] = []
        for (prompt, prefix), group in same_prompt.items():
            (ids,) = encode_continuations(self.tokenizer, prompt, [prefix])
            if not ids:
                raise EngineError(f"the prompt of request {group[0].id!r} has no tokens; there is nothing to continue")
            if len(ids) >= self._context_length:
                refused += [Generation(request.id, "", len(ids), 0, "error", "too_long") for request in group]
                continue
            for start in range(0, len(group), self._batch_size):
                jobs.append(Job(tuple(ids), tuple(group[start : start + self._batch_size])))
        jobs.sort(key=lambda job: -len(job.ids))
        return jobs, refused

    def _answer(
        self, batches: Sequence[Sequence[Job]], refused: Sequence[Generation], fitting: Fitting
    ) -> Iterator[Generation]:
        yield from refused
        for batch in batches:
            for _, replies in fitting.run(self._run_batch, batch):
                yield from replies

    def _score(
        self, batches: Sequence[Sequence[Piece]], refused: Sequence[Generation], fitting: Fitting
    ) -> Iterator[Generation]:
        """Replies to requests with choices. A request's choices may lie in two batches, so all are scored first."""
        yield from refused
        scored: list[tuple[Piece, tuple[float, ...]]] = []
        for batch in batches:
            for part, values in fitting.run(self._score_batch, batch):
                scored += zip(part, values, strict=True)
        yield from self._parts()[2].generations(scored)

    @torch.inference_mode()
    def _score_batch(self, batch: Sequence[Piece]) -> list[tuple[float, ...]]:
        return self._parts()[2].score(batch)

    @torch.inference_mode()
    def _run_batch(self, jobs: Sequence[Job]) -> list[Generation]:
        """Prefill the jobs' prompts, then decode all their rows to the end."""
        runner, reader, _ = self._parts()
        rows = [self._row(job, request, reader) for job in jobs for request in job.requests]
        replies = tuple(rows)
        max_new = max(row.limit for row in rows)
        sampler = Sampler([row.request for row in rows], [row.limit for row in rows], self._device)
        memory, logits_RV = runner.prefill(jobs, max_new)
        for step in range(max_new):
            ids_R = sampler.draw(logits_RV, step)
            for row, token in zip(rows, ids_R.tolist(), strict=True):
                if not row.is_done:
                    row.add(token)
            num_done = sum(row.is_done for row in rows)
            if num_done == len(rows):
                break
            if num_done * COMPACT_SHARE > len(rows):
                index = _compaction([row.is_done for row in rows])
                rows = [rows[old] for old in index]
                ids_R = ids_R[torch.tensor(index, device=self._device)]
                sampler.take(index)
                memory.take(index)
            logits_RV = runner.step(ids_R, memory)
        return [reply.generation() for reply in replies]

    def _row(self, job: Job, request: Request, reader: Reader) -> Reply:
        """A reply that has not begun yet."""
        limit = min(request.sampling.max_tokens, self._context_length - len(job.ids))
        if not request.reply_prefix:
            return Reply(request, len(job.ids), limit, reader)
        prompt_ids = encode_prompt(self.tokenizer, request.prompt)
        num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt_ids, job.ids, strict=False)))
        return Reply(request, len(job.ids), limit, reader, job.ids[num_shared:])


def _compaction(is_done: Sequence[bool]) -> list[int]:
    """Old numbers of the rows to keep: they stay where they are, only rows from the end move into the gaps."""
    num_left = len(is_done) - sum(is_done)
    from_the_end = iter([row for row in range(num_left, len(is_done)) if not is_done[row]])
    return [next(from_the_end) if is_done[row] else row for row in range(num_left)]


def _context_length(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Positions that the model was built for; where its config names none (relative positions), the tokenizer's limit."""
    config = model.config.get_text_config(decoder=True)
    for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length):
        if isinstance(limit, int) and 0 < limit < _NO_LIMIT:
            return limit
    raise ModelError(
        f"neither the config of the {config.model_type} model nor its tokenizer names a context length; "
        "set max_position_embeddings in config.json or model_max_length in tokenizer_config.json"
    )
