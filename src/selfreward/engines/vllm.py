"""Engine `vllm`: models that vLLM knows, on GPUs or with its CPU build, in processes of its own.

Prompts are encoded here (`chat`) and handed over as token ids, and replies are read from token ids as engine `hf` reads them:
vLLM sees no text, so its tokenizer, chat template and stop strings play no part. Each request is one of vLLM's with its own
seed; its prefix cache computes beginnings that prompts share once. A request's tokens depend on its prompt, its settings and
its seed; its neighbours move sums by their rounding only.

The weights lie in the processes that vLLM starts; closing the engine ends them, so all memory is free before training begins.
A folder with a LoRA adapter opens its base model with the adapter. Nothing is reported to anybody.
"""

import gc
import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from selfreward.chat import encode_continuations, stop_token_ids
from selfreward.config import Config
from selfreward.engines._replies import Reader, Reply
from selfreward.engines._vllm_start import Guard, start, surroundings
from selfreward.engines.adapters import read_adapter
from selfreward.engines.base import Engine, Usage, check_requests
from selfreward.engines.loading import check_folder, load_tokenizer, read_context_length
from selfreward.errors import EngineError, MissingExtraError
from selfreward.texts import one_line
from selfreward.types import Generation, Request

_SEEDS = 2**63
"""vLLM keeps seeds in 64 bits with a sign; -1 means none to it."""
_TEMPERATURES = (0.01, 2.0)
"""The coldest and the hottest that it samples at."""
_SECONDS_TO_END = 30.0
"""Before its processes are killed."""


def need_package() -> None:
    """Raise MissingExtraError when vLLM is not installed. Does not import it."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            "engine.name=vllm needs the package vllm; install it with: pip install 'selfreward[vllm]' (without a GPU: see "
            "docs/performance.md)"
        )


@dataclass
class _Asked:
    """A request on its way: its reply so far, and what vLLM tells beside the tokens."""

    ids: list[int]
    reply: Reply
    logprobs: list[float] = field(default_factory=list)
    num_cached: int = 0


class VllmEngine(Engine):
    """See the module."""

    def __init__(self, llm: Any, tokenizer: Any, context_length: int, adapter: Any, guard: Guard) -> None:
        """`llm` is a `vllm.LLM` that takes token ids; `adapter` its request for a LoRA adapter, already loaded, or None;
        `guard` watches its processes."""
        self._llm: Any = llm
        self._tokenizer: Any = tokenizer
        self._context_length = context_length
        self._adapter = adapter
        self._reader = Reader(tokenizer, stop_token_ids(tokenizer))
        num_logits = llm.model_config.get_vocab_size()
        self._stop_ids = sorted(token for token in self._reader.stop_ids if token < num_logits)
        self._guard = guard
        self._names = map(str, count())
        self._usage = Usage()

    @classmethod
    def open(cls, path: str, config: Config) -> "VllmEngine":
        """Start vLLM on a model folder as `model.*` and `engine.*` say.

        Raises MissingExtraError without vLLM, ModelError for a folder that it cannot serve, ConfigError for a device that it
        has not.
        """
        need_package()
        folder = check_folder(path, config)
        adapter = read_adapter(Path(folder), config)
        base = folder if adapter is None else adapter.base
        tokenizer = load_tokenizer(folder if adapter is not None and adapter.has_tokenizer else base, config)
        context_length = read_context_length(base, config, tokenizer)
        guard = Guard()
        with surroundings(config):
            llm, request = start(base, adapter, context_length, config)
        guard.watch()
        return cls(llm, tokenizer, context_length, request, guard)

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its reply together, as for engine `hf`."""
        return self._context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer all requests, each as soon as it is ready. Refuses choices. See Engine."""
        if self._llm is None:
            raise EngineError("the engine is closed; open another one")
        check_requests(requests)
        for request in requests:
            _refuse_what_vllm_cannot(request)
        jobs, refused = self._encode(requests)
        return self._answer(jobs, refused)

    def take_usage(self) -> Usage:
        """See Engine. Prompts are read and replies written in the same steps, so all time counts as decoding."""
        taken, self._usage = self._usage, Usage()
        return taken

    def close(self) -> None:
        """End vLLM's processes, which gives all their memory back."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown(timeout=_SECONDS_TO_END)
            self._guard.dismiss()
            del llm
            gc.collect()

    def _encode(self, requests: Sequence[Request]) -> tuple[list[_Asked], list[Generation]]:
        """What to ask, prompts that begin alike beside each other; and the replies to prompts that leave no room."""
        known: dict[Any, list[int]] = {}
        jobs: list[_Asked] = []
        refused: list[Generation] = []
        for request in requests:
            key = (request.prompt, request.reply_prefix)
            if key not in known:
                (known[key],) = encode_continuations(self._tokenizer, request.prompt, [request.reply_prefix])
            ids = known[key]
            if not ids:
                raise EngineError(f"the prompt of request {request.id!r} has no tokens; there is nothing to continue")
            if len(ids) >= self._context_length:
                refused.append(Generation(request.id, "", len(ids), 0, "error", "too_long"))
            else:
                jobs.append(_Asked(ids, Reply.begin(request, ids, self._context_length, self._reader)))
        jobs.sort(key=lambda job: job.ids)
        return jobs, refused

    def _answer(self, jobs: Sequence[_Asked], refused: Sequence[Generation]) -> Iterator[Generation]:
        """Hand everything over, then take replies as they end. What is left when nobody wants more is given up."""
        yield from refused
        waiting: dict[str, _Asked] = {}
        try:
            self._timed(lambda: self._ask(jobs, waiting))
            while waiting:
                yield from self._timed(lambda: self._step(waiting))
        finally:
            if waiting and self._llm is not None:
                self._llm.llm_engine.abort_request(list(waiting))

    def _timed(self, work: Any) -> Any:
        """Run a piece of vLLM's work: its time is counted, and what it raises is an EngineError."""
        if self._llm is None:
            raise EngineError("the engine was closed before it had answered")
        started = time.perf_counter()
        try:
            return work()
        except EngineError:
            raise
        except Exception as error:  # foreign code: vLLM raises many classes
            raise EngineError(
                f"vLLM failed: {type(error).__name__}: {one_line(error)}; what its processes wrote above may say why; see "
                "engine.batch_size and engine.vllm.*"
            ) from error
        finally:
            self._usage += Usage(decode_seconds=time.perf_counter() - started)

    def _ask(self, jobs: Sequence[_Asked], waiting: dict[str, _Asked]) -> None:
        engine = self._llm.llm_engine
        for job in jobs:
            name = next(self._names)
            (prompt,) = self._llm.renderer.render_cmpl([{"prompt_token_ids": job.ids}])
            engine.add_request(name, prompt, self._parameters(job.reply), lora_request=self._adapter)
            waiting[name] = job

    def _parameters(self, reply: Reply) -> Any:
        """vLLM's settings for a request: all are given, so that no default of a model folder enters."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = reply.request.sampling
        return SamplingParams(
            seed=reply.request.seed % _SEEDS,
            max_tokens=reply.limit,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_token_ids=[] if sampling.ignore_eos else self._stop_ids,
            ignore_eos=sampling.ignore_eos,
            logprobs=0 if sampling.logprobs else None,
            detokenize=False,
            # Stop strings are looked for here, as the tokens come.
            output_kind=RequestOutputKind.DELTA if sampling.stop else RequestOutputKind.FINAL_ONLY,
        )

    def _step(self, waiting: dict[str, _Asked]) -> list[Generation]:
        """One step of all requests that have room; the replies that ended with it."""
        done: list[Generation] = []
        ended_here: list[str] = []
        for output in self._llm.llm_engine.step():
            job = waiting.get(output.request_id)
            if job is None:  # given up at its stop string; a step was on its way
                continue
            (sample,) = output.outputs
            job.num_cached = output.num_cached_tokens or 0
            self._take(job, sample)
            if job.reply.is_done:
                done.append(self._finish(job))
                del waiting[output.request_id]
                if not output.finished:
                    ended_here.append(output.request_id)
            elif output.finished:
                raise EngineError(f"vLLM ended request {job.reply.request.id!r} early: {sample.finish_reason}")
        if ended_here:
            self._llm.llm_engine.abort_request(ended_here)
        return done

    @staticmethod
    def _take(job: _Asked, sample: Any) -> None:
        """Add new tokens to a reply until it ends."""
        for place, token in enumerate(sample.token_ids):
            job.reply.add(token)
            if sample.logprobs is not None:
                job.logprobs.append(float(sample.logprobs[place][token].logprob))
            if job.reply.is_done:
                return

    def _finish(self, job: _Asked) -> Generation:
        num_new = len(job.reply.ids)
        self._usage += Usage(len(job.ids), len(job.ids) - job.num_cached, num_new)
        reply = job.reply.generation()
        return replace(reply, token_logprobs=tuple(job.logprobs)) if job.reply.request.sampling.logprobs else reply


def _refuse_what_vllm_cannot(request: Request) -> None:
    if request.choices:
        raise EngineError(
            f"request {request.id!r} has choices, which engine vllm does not weigh; set engine.name=hf or judge.mode=sampled"
        )
    coldest, hottest = _TEMPERATURES
    if request.sampling.temperature and not coldest <= request.sampling.temperature <= hottest:
        # It would take the coldest one for anything colder, and say so in a log that nobody reads.
        raise EngineError(
            f"request {request.id!r} has temperature={request.sampling.temperature:g}; vLLM takes 0 and {coldest:g} to "
            f"{hottest:g}: change the role's temperature, or set engine.name=hf"
        )
