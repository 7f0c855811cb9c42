"""Engine `openai`: a server that speaks the OpenAI API plays a role. It never plays the policy, which must be trainable.

Requests run beside each other (`endpoints.NAME.max_concurrency`) in an event loop of the engine's own; replies come as they are
ready. Failures that a later try may not meet are tried again. What then is still no reply is one of two things:
- about this request alone (`too_long`, `content_filter`): a Generation with that error, missing data for a stage;
- everything else, an answer that cannot be read included: EngineError. Such a failure says nothing about the request, and
  replies missing for a reason that is the server's would bend what is measured. The chunk is lost, finished ones stay.

What the server makes of a text is its own: it may read control tokens spelled out in a response as control tokens.
"""

import asyncio
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from selfreward.config import MAX_STOPS, Config, EndpointConfig
from selfreward.engines._loop import LoopThread
from selfreward.engines._openai_answers import (
    RETRIED,
    BadAnswerError,
    backoff,
    in_short,
    read_answer,
    request_error,
    retry_after,
)
from selfreward.engines.base import Engine, check_requests
from selfreward.errors import ConfigError, EngineError, MissingExtraError
from selfreward.redaction import HIDDEN, hide, keep_secret
from selfreward.types import Generation, Request

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_SEED_BITS = 31
"""Servers keep seeds in 32 or 64 bits, some signed."""
_HINTS = {
    401: "check the key in the variable that endpoints.{name}.api_key_env names",
    403: "check the key in the variable that endpoints.{name}.api_key_env names",
    404: "check endpoints.{name}.base_url (does it end in /v1?) and endpoints.{name}.model",
}
_HINT = "check endpoints.{name}.* and the sampling settings of the role"


def need_package() -> None:
    """Raise MissingExtraError when the package openai is not installed. Does not import it."""
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError("endpoints need the package openai; install it with: pip install 'selfreward[endpoint]'")


_USUAL_VARIABLE = re.compile(r"[A-Z][A-Z_]{0,40}_(KEY|TOKEN|SECRET)")


def read_key(name: str, endpoint: EndpointConfig) -> str | None:
    """The API key from the environment, None where the endpoint names no variable.

    Raises ConfigError when it is not set or holds what no HTTP header can. Shows the variable's name only where it ends as such
    names do: any other may be a key that was put in the wrong place.
    """
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "")
    if not key:
        is_named = _USUAL_VARIABLE.fullmatch(endpoint.api_key_env)
        what = f" ({endpoint.api_key_env})" if is_named else ""
        raise ConfigError(f"the variable that endpoints.{name}.api_key_env names{what} is not set; export the API key in it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"the variable that endpoints.{name}.api_key_env names holds white space or characters that no key has; set it to "
            "the key alone"
        )
    keep_secret(key)
    return key


class _RetryError(Exception):
    """An attempt failed in a way that the next one may not. `wait`: seconds that the server asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class OpenAIEngine(Engine):
    """See the module. `num_requests` and `num_tokens` count what was sent and what the server said it read and wrote."""

    def __init__(self, name: str, endpoint: EndpointConfig, key: str | None = None) -> None:
        """`name` is the endpoint's in the config, for messages. Raises MissingExtraError without the package openai."""
        need_package()
        self.num_requests = 0
        self.num_tokens = 0
        self._lost_tokens = 0
        self._name = name
        self._endpoint = endpoint
        self._key = key
        if key is not None:
            keep_secret(key)
        self._client: AsyncOpenAI | None = _open_client(endpoint, key)
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)
        self._thread: LoopThread | None = None

    @classmethod
    def open(cls, name: str, config: Config) -> "OpenAIEngine":
        """The engine for `endpoints.NAME`. Raises ConfigError for an unknown name or a key that is not there."""
        if name not in config.endpoints:
            raise ConfigError(f"there is no endpoint {name!r}; endpoints knows: {', '.join(config.endpoints) or 'none'}")
        endpoint = config.endpoints[name]
        return cls(name, endpoint, read_key(name, endpoint))

    @property
    def context_length(self) -> int:
        """`endpoints.NAME.context_length`: the server is not asked."""
        return self._endpoint.context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer all requests, each as soon as it is ready. See Engine and the module."""
        if self._client is None:
            raise EngineError(f"endpoint {self._name!r} is closed; open another one")
        check_requests(requests)
        self._check(requests)
        return self._stream(requests)

    def take_lost_tokens(self) -> int:
        """See `Engine.take_lost_tokens`; as far as the server told them."""
        lost, self._lost_tokens = self._lost_tokens, 0
        return lost

    def close(self) -> None:
        """Give up what is on its way and close the connections."""
        if self._client is not None and self._thread is not None:
            self._thread.stop_all()
            self._thread.call(self._client.close())
            self._thread.close()
        self._client = self._thread = None

    def _check(self, requests: Sequence[Request]) -> None:
        """Refuse what the API cannot be asked, and more than `max_requests` leaves, before anything is sent."""
        for request in requests:
            sampling = request.sampling
            if request.choices or request.reply_prefix:
                raise EngineError(
                    f"request {request.id!r} has choices or the beginning of a reply, which the API cannot be given; endpoint "
                    f"{self._name!r} takes no judge.mode=expected"
                )
            if isinstance(request.prompt, str) != (self._endpoint.api == "completions"):
                kind = "plain text" if isinstance(request.prompt, str) else "a conversation"
                raise EngineError(
                    f"request {request.id!r} is {kind}, which endpoints.{self._name}.api={self._endpoint.api} does not take"
                )
            if sampling.ignore_eos:
                raise EngineError(
                    f"request {request.id!r} goes on past end tokens (ignore_eos), which the API cannot be asked for; endpoint "
                    f"{self._name!r} ends replies where its model does"
                )
            if len(sampling.stop) > MAX_STOPS or sampling.top_k:
                raise EngineError(
                    f"request {request.id!r} has {len(sampling.stop)} stop strings and top_k={sampling.top_k}; "
                    f"endpoint {self._name!r} takes at most {MAX_STOPS} and no top_k"
                )
        most = self._endpoint.max_requests
        if most is not None and self.num_requests + len(requests) > most:
            # A part of a chunk would be paid for and lost: chunks are committed whole.
            raise EngineError(
                f"endpoints.{self._name}.max_requests={most}: {self.num_requests} sent, {len(requests)} more wanted at once; "
                "raise it, or lower engine.chunk_size. Finished chunks are kept"
            )

    def _stream(self, requests: Sequence[Request]) -> Iterator[Generation]:
        self._thread = thread = self._thread or LoopThread()
        replies: SimpleQueue[Generation | None] = SimpleQueue()
        task = thread.start(self._answer_all(requests, replies), lambda: replies.put(None))
        try:
            while (reply := replies.get()) is not None:
                yield reply
            if task.cancelled():
                raise EngineError(f"endpoint {self._name!r} was closed before it had answered")
            task.result()
        finally:
            thread.stop(task)

    async def _answer_all(self, requests: Sequence[Request], replies: "SimpleQueue[Generation | None]") -> None:
        """Workers share the requests; the first failure ends them all and is raised."""
        waiting = iter(requests)

        async def work() -> None:
            for request in waiting:
                async with self._slots:
                    replies.put(await self._answer(request))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._endpoint.max_concurrency, len(requests))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _answer(self, request: Request) -> Generation:
        """One request, tried until it has a reply. A wait keeps the slot: a server in trouble is asked less."""
        endpoint = self._endpoint
        for attempt in range(endpoint.max_retries + 1):
            self._spend()
            try:
                reply = await self._try(request)
            except _RetryError as failure:
                problem = str(failure)
                wait = max(failure.wait or 0.0, backoff(request.id, attempt, endpoint.backoff_s, endpoint.max_wait_s))
            else:
                self._count(reply)
                return reply
            if wait > endpoint.max_wait_s:
                raise EngineError(
                    f"endpoint {self._name!r} asks to wait {wait:.0f} s ({problem}); endpoints.{self._name}.max_wait_s="
                    f"{endpoint.max_wait_s:g}: raise it, or continue the run later"
                )
            if attempt < endpoint.max_retries:
                await asyncio.sleep(wait)
        raise EngineError(
            f"endpoint {self._name!r} at {_host(endpoint.base_url)} gave no reply to request {request.id!r} in "
            f"{endpoint.max_retries + 1} tries, at last: "
            f"{problem}; see endpoints.{self._name}.* (base_url, timeout_s, max_retries)"
        )

    async def _try(self, request: Request) -> Generation:
        """One HTTP request. Raises _RetryError for what may pass, EngineError for what will not."""
        import openai

        assert self._client is not None, "closing ends all work first"
        api: Any = self._client.chat.completions if self._endpoint.api == "chat" else self._client.completions
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                answer = await api.with_raw_response.create(**self._body(request), extra_headers=_headers(self._key))
                reply = read_answer(request, self._endpoint.api, answer.text)
                return replace(reply, text=hide(reply.text))  # replies are stored, and some server may repeat the key in one
        except (TimeoutError, openai.APITimeoutError) as error:
            seconds = f"endpoints.{self._name}.timeout_s={self._endpoint.timeout_s:g}"
            raise _RetryError(f"no whole answer in time ({seconds})") from error
        except openai.APIStatusError as error:
            return self._refusal(request, error)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _RetryError(f"the connection failed: {self._show(f'{type(cause).__name__}: {cause}')}") from error
        except BadAnswerError as error:
            self.num_tokens += error.num_tokens  # The server charges for what nobody can read, too.
            self._lost_tokens += error.num_tokens
            raise _RetryError(f"{error}: {self._show(error.found)}") from error

    def _refusal(self, request: Request, error: "APIStatusError") -> Generation:
        """What an answer with an error status means: see `_try`; a Generation where it is about this request alone."""
        status = error.status_code
        # The client's message is the server's where it finds one in the answer, behind words of its own.
        words = error.message.removeprefix(f"Error code: {status}").removeprefix(" - ") or error.response.text
        said = self._show(words) or "no reason given"
        if status in RETRIED or status >= 500:
            raise _RetryError(f"status {status}: {said}", retry_after(error.response.headers))
        problem = request_error(status, error.body, words)
        if problem is None:
            hint = _HINTS.get(status, _HINT).format(name=self._name)
            raise EngineError(f"endpoint {self._name!r} refused request {request.id!r} with status {status}: {said}; {hint}")
        return Generation(request.id, "", None, 0, "error", problem)

    def _body(self, request: Request) -> dict[str, Any]:
        """The request as the API wants it."""
        sampling, endpoint = request.sampling, self._endpoint
        body: dict[str, Any] = {"model": endpoint.model, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if isinstance(request.prompt, str):
            body |= {"prompt": request.prompt, "max_tokens": sampling.max_tokens}
        else:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.prompt]
            body[endpoint.max_tokens_name] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs:
            # The older API wants to know how many alternatives; with 0 some servers send nothing.
            body["logprobs"] = 1 if isinstance(request.prompt, str) else True
        if endpoint.send_seed:
            body["seed"] = request.seed % 2**_SEED_BITS
        return body

    def _spend(self) -> None:
        """Count a request that is about to be sent. Raises EngineError when the budget does not allow it."""
        endpoint, where = self._endpoint, f"endpoints.{self._name}"
        for setting, spent, most in (
            ("max_requests", self.num_requests, endpoint.max_requests),
            ("max_total_tokens", self.num_tokens, endpoint.max_total_tokens),
        ):
            if most is not None and spent >= most:
                raise EngineError(f"{where}.{setting}={most} is reached ({spent}); raise it to go on. Finished chunks are kept")
        self.num_requests += 1

    def _count(self, reply: Generation) -> None:
        """Add the tokens of a reply to the budget. Raises EngineError when there is one and the server does not tell them."""
        counts = (reply.num_prompt_tokens, reply.num_tokens)
        if self._endpoint.max_total_tokens is not None and None in counts and reply.finish_reason != "error":
            raise EngineError(
                f"endpoint {self._name!r} does not tell how many tokens it used, so endpoints.{self._name}.max_total_tokens="
                f"{self._endpoint.max_total_tokens} cannot be kept; set it to null and limit max_requests"
            )
        self.num_tokens += sum(count or 0 for count in counts)

    def _show(self, text: str) -> str:
        """A foreign text for a message, without the key: servers repeat what they refuse."""
        return in_short(hide(text.replace(self._key, HIDDEN) if self._key else text))


def _open_client(endpoint: EndpointConfig, key: str | None) -> "AsyncOpenAI":
    """A client without retries and timeouts: those are ours. It wants some key in any case; see `_headers`."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=endpoint.base_url, api_key=key or "none", max_retries=0, timeout=None)


def _headers(key: str | None) -> dict[str, Any]:
    """This endpoint's key and no one else's: left alone, the client sends the key, organisation and project that its own
    environment variables hold for OpenAI to any server."""
    from openai import Omit

    return {
        "Authorization": f"Bearer {key}" if key else Omit(),
        "OpenAI-Organization": Omit(),
        "OpenAI-Project": Omit(),
    }


def _host(base_url: str) -> str:
    """Where it is, without what a URL may carry besides (a name, a password)."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
