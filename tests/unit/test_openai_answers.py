"""Reading what a server answers: never trusted, never an error of another kind than BadAnswerError."""

import json
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.engines._openai_answers import BadAnswerError, backoff, in_short, read_answer, request_error, retry_after
from selfreward.types import Message, Request, Sampling

REQUEST = Request("r", (Message("user", "hello"),), Sampling(9, stop=("END",), logprobs=True), 0)
APIS: tuple[Literal["chat", "completions"], ...] = ("chat", "completions")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "text": json_values,
        "message": json_values | st.fixed_dictionaries({}, optional={"content": json_values, "refusal": json_values}),
        "finish_reason": st.sampled_from(["stop", "length", "content_filter"]) | json_values,
        "logprobs": json_values | st.fixed_dictionaries({}, optional={"content": json_values, "token_logprobs": json_values}),
    },
)
answers = json_values | st.fixed_dictionaries(
    {"choices": json_values | st.lists(fields | json_values, max_size=2)},
    optional={
        "usage": json_values | st.fixed_dictionaries({"prompt_tokens": json_values, "completion_tokens": json_values}),
    },
)


@given(answers, st.sampled_from(APIS))
def test_any_json_is_a_reply_or_a_named_problem(answer: Any, api: Literal["chat", "completions"]) -> None:
    try:
        reply = read_answer(REQUEST, api, json.dumps(answer))
    except BadAnswerError:
        return
    assert reply.request_id == "r"
    assert "END" not in reply.text
    reply.text.encode("utf-8")
    assert (reply.finish_reason == "error") == (reply.error is not None)
    assert all(count is None or count >= 0 for count in (reply.num_prompt_tokens, reply.num_tokens))


@given(st.text())
def test_any_text_is_a_reply_or_a_named_problem(body: str) -> None:
    for api in APIS:
        with pytest.raises(BadAnswerError):
            read_answer(REQUEST, api, body)


@given(st.text(max_size=60), st.integers(0, 100), st.floats(0.001, 10), st.floats(0.001, 200))
def test_waits_double_within_their_bounds(request_id: str, attempt: int, base: float, longest: float) -> None:
    wait = backoff(request_id, attempt, base, longest)
    full = base * 2.0 ** min(attempt, 64)
    assert min(longest, full / 2) <= wait <= min(longest, full)
    assert wait == backoff(request_id, attempt, base, longest)


def test_requests_that_fail_together_come_back_apart() -> None:
    waits = {backoff(f"r{number}", 0, 1.0, 60.0) for number in range(100)}
    assert len(waits) == 100
    assert max(waits) - min(waits) > 0.4


NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 -0000"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "later"}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@given(st.text())
def test_any_header_is_a_wait_or_none(value: str) -> None:
    seconds = retry_after({"retry-after": value, "retry-after-ms": value}, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("status", "body", "message", "error"),
    [
        (400, {"code": "context_length_exceeded"}, "no", "too_long"),
        (400, {"type": "exceed_context_size_error"}, "no", "too_long"),
        (400, None, "This model's maximum context length is 10 tokens", "too_long"),
        (413, "html", "exceed context window of 2048", "too_long"),
        (422, {}, "the prompt is longer than the maximum model length of 4096", "too_long"),
        (400, {"code": "content_filter"}, "no", "content_filter"),
        (400, {"code": "invalid_temperature"}, "temperature must be 1", None),
        (401, {}, "context length", None),
    ],
)
def test_whose_fault_a_refusal_is(status: int, body: Any, message: str, error: str | None) -> None:
    assert request_error(status, body, message) == error


def test_foreign_texts_are_short_lines() -> None:
    assert in_short("a\n\tb") == "a b"
    assert len(in_short("x" * 10_000)) < 250
