"""What servers that speak the OpenAI API answer, read without trust: answers to generations, refusals to their reasons, waits.

Pure: texts and numbers in, texts and numbers out.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from selfreward.engines.base import cut_at_stop
from selfreward.storage import derive_seed
from selfreward.texts import one_line
from selfreward.types import FinishReason, Generation, Request, RequestError

RETRIED = frozenset({408, 409, 429})
"""Statuses that a later try may not meet again, beside all of 500 and above."""
_REFUSED_FOR_LENGTH = frozenset({400, 413, 422})
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_TOO_LONG = re.compile(r"context[ _-](length|size|window)|maximum model length", re.IGNORECASE)
"""OpenAI, vLLM, SGLang and llama.cpp each say it in their own words; only the first and the last have a code for it."""
_FILTERED = "content_filter"
_SHOWN = 200


class BadAnswerError(ValueError):
    """An answer with status 200 that is not what the API promises: what is wrong, and `found`, the foreign text to show.

    Whoever shows it takes secrets out first and shortens it then: half a secret would not be found. `num_tokens`: what the
    server says that the answer cost, 0 where it says nothing.
    """

    num_tokens = 0

    def __init__(self, problem: str, found: str) -> None:
        super().__init__(problem)
        self.found = found


def read_answer(request: Request, api: Literal["chat", "completions"], body: str) -> Generation:
    """The reply in the body of an answer.

    Its finish reason must be `stop`, `length` or `content_filter`: without it no one knows whether the text was cut. A null
    text is a reply only beside `length` (the limit was used up before the visible text) and `content_filter`. Token counts
    that are missing or make no sense are None, and so are log-probabilities that were asked for but not sent. Raises
    BadAnswerError.
    """
    answer = _object(_parse(body), "the answer")
    usage = answer.get("usage")
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    try:
        return _read_choice(request, api, answer, counts)
    except BadAnswerError as error:
        error.num_tokens = sum(count or 0 for count in counts)
        raise


def _read_choice(
    request: Request, api: Literal["chat", "completions"], answer: Mapping[str, Any], counts: Sequence[int | None]
) -> Generation:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadAnswerError("choices is no list with a reply", repr(choices))
    choice = _object(choices[0], "choices[0]")
    reason = choice.get("finish_reason")
    source = _object(choice.get("message"), "choices[0].message") if api == "chat" else choice
    field = "content" if api == "chat" else "text"
    text = source.get(field)
    if reason == _FILTERED or (text is None and isinstance(source.get("refusal"), str)):
        return Generation(request.id, "", counts[0], counts[1], "error", _FILTERED)
    if reason not in ("stop", "length"):
        raise BadAnswerError("finish_reason is not stop, length or content_filter", repr(reason))
    if text is None and reason == "length":
        text = ""
    if not isinstance(text, str):
        raise BadAnswerError(f"{field} is no text", repr(text))
    # Half a surrogate pair, from a server that cut inside a character, cannot be stored.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text, is_cut = cut_at_stop(text, request.sampling.stop)
    finish: FinishReason = "length" if reason == "length" and not is_cut else "stop"
    logprobs = _token_logprobs(choice, api) if request.sampling.logprobs else None
    return Generation(request.id, text, counts[0], counts[1], finish, token_logprobs=logprobs)


def _token_logprobs(choice: Mapping[str, Any], api: Literal["chat", "completions"]) -> tuple[float, ...] | None:
    """The log-probability of each token; None where the server, which was asked for them, sends none."""
    found = choice.get("logprobs")
    if found is None:
        return None
    where = "choices[0].logprobs"
    found = _object(found, where)
    if api == "chat":
        content = found.get("content")
        values = (
            [_object(item, f"{where}.content[]").get("logprob") for item in content] if isinstance(content, list) else content
        )
    else:
        values = found.get("token_logprobs")
    if values is None:
        return None
    if not isinstance(values, list) or not all(_is_finite(value) for value in values):
        raise BadAnswerError(f"{where} holds no list of numbers", repr(found))
    return tuple(float(value) for value in values)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def request_error(status: int, body: Any, message: str) -> RequestError | None:
    """What is wrong with a refused request itself, or None when the refusal says nothing about it alone.

    `body` is the error object of the answer. Servers also count the longest reply, `max_tokens`, against the context.
    """
    if status not in _REFUSED_FOR_LENGTH:
        return None
    codes = {str(body.get(name)) for name in ("code", "type")} if isinstance(body, dict) else set()
    if _FILTERED in codes:
        return "content_filter"
    return "too_long" if codes & _TOO_LONG_CODES or _TOO_LONG.search(message) else None


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `retry-after` as a number or date. None without a usable one."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def backoff(request_id: str, attempt: int, base: float, longest: float) -> float:
    """Seconds before retry number `attempt` (from 0): base x 2^attempt, up to half of it taken off, at most `longest`.

    The share taken off is decided by the request and the attempt, so requests that failed together come back apart, and
    a repeated run waits alike.
    """
    share = derive_seed("backoff", request_id, attempt) / 2**63
    return min(longest, base * 2.0 ** min(attempt, 64) * (1 - share / 2))


def in_short(text: str) -> str:
    """A foreign text, short enough for a message."""
    line = one_line(text)
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."


def _parse(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswerError("the answer is not JSON", body) from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswerError(f"{what} is no object", repr(value))
    return value


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
