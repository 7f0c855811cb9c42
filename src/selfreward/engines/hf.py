"""Engine `hf`: any Hugging Face causal language model, on CPU or GPU, through its own forward pass.

What prompts share is read once: a beginning that all have (`_tree`), a prompt that several requests continue. Rows advance one
token at a time; those that have ended leave, waiting ones enter (`_decoder`). A request's tokens depend on its prompt, its
settings and its seed; its neighbours only move floating-point sums by their rounding, and the same requests in one call give
the same bits. Requests with choices are scored apart (`_choices`). What does not fit into memory runs in halves (`_memory`).
"""

import gc
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from selfreward.chat import encode_continuations, stop_token_ids
from selfreward.config import Config
from selfreward.engines import _kernels, _matrices
from selfreward.engines._backends import Backend
from selfreward.engines._choices import ChoiceScorer
from selfreward.engines._decoder import Clock, Parts, decode_family
from selfreward.engines._memory import GIB, Budget, Fitting
from selfreward.engines._replies import Reader
from selfreward.engines._tree import Job, plan_families
from selfreward.engines.base import Engine, Shortage, Usage, check_requests
from selfreward.engines.loading import context_length_of, load_chat_model, pick_device
from selfreward.errors import EngineError
from selfreward.types import Generation, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOGIT_COPIES = 4
"""How many numbers of 4 bytes a row takes for each token of the vocabulary, while one is drawn."""


class HfEngine(Engine):
    """See the module. `model` and `tokenizer` may be looked at from outside; None after closing. On a CPU the model's large
    matrices are replaced (`_matrices`); with such it can serve, but not be trained or saved. `num_parameters`: as it came."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        memory_gb: float | None = None,
    ) -> None:
        """`batch_size` is the most replies generated at a time; `memory_gb`, in GiB, the most memory for them.

        Raises ModelError for a model that cannot serve, EngineError where memory is short.
        """
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self._device: torch.device = model.device
        self._batch_size = batch_size
        self._shortages: list[Shortage] = []
        self._clock = Clock()
        self.num_parameters: int = model.num_parameters()
        if self._device.type == "cpu":
            _kernels.prepare()
            _matrices.pack(model)
        self._context_length = context_length_of(model.config, tokenizer)
        backend = Backend(model, tokenizer.pad_token_id or 0, self._context_length)
        reader = Reader(tokenizer, stop_token_ids(tokenizer))
        self._parts: Parts | None = Parts(backend, reader, tokenizer, self._context_length, self._device)
        vocabulary = model.get_input_embeddings().num_embeddings
        num_bytes = None if memory_gb is None else memory_gb * GIB
        self._budget = Budget(num_bytes, backend.bytes_per_token, 4 * _LOGIT_COPIES * vocabulary)
        self._scorer: ChoiceScorer | None = ChoiceScorer(self._parts, self._budget)

    @classmethod
    def open(cls, path: str, config: Config) -> "HfEngine":
        """Load a model folder as `model.*` and `engine.*` say. Raises ModelError, or ConfigError for a missing GPU."""
        model, tokenizer, _ = load_chat_model(path, config, pick_device(config))
        return cls(model, tokenizer, config.engine.batch_size, config.engine.memory_gb)

    @staticmethod
    def prepare(config: Config) -> None:
        """Compile the loops for a CPU, where there is no GPU to run on. Opening a model does so too."""
        if pick_device(config) == "cpu":
            _kernels.prepare()

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its reply together: the model's `max_position_embeddings`."""
        return self._context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer all requests, each as soon as it is done. See Engine."""
        parts, scorer = self._open_parts()
        check_requests(requests)
        jobs, refused = self._encode([request for request in requests if not request.choices])
        pieces, too_long = scorer.pieces([request for request in requests if request.choices])
        fitting = Fitting(self._batch_size, self._shortages.append)
        families = plan_families(jobs)
        replies = (decode_family(parts, family, self._budget, fitting, self._clock) for family in families)
        return chain(refused, chain.from_iterable(replies), too_long, scorer.run(pieces, fitting, self._clock))

    def take_shortages(self) -> list[Shortage]:
        """Batches that did not fit and were halved since the last call."""
        taken, self._shortages[:] = list(self._shortages), []
        return taken

    def take_usage(self) -> Usage:
        """Tokens and seconds since the last call."""
        return self._clock.take()

    def close(self) -> None:
        """Drop the model and give its memory back."""
        self.model = self.tokenizer = self._parts = self._scorer = None
        gc.collect()  # a model is full of reference cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _open_parts(self) -> tuple[Parts, ChoiceScorer]:
        if self._parts is None or self._scorer is None:
            raise EngineError("the engine is closed; open another one")
        return self._parts, self._scorer

    def _encode(self, requests: Sequence[Request]) -> tuple[list[Job], list[Generation]]:
        """Jobs, each with one prompt; and the replies to requests whose prompts leave no room."""
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
            else:
                jobs.append(Job(tuple(ids), tuple(group)))
        return jobs, refused
