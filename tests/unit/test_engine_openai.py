"""The engine `openai` against a real server: replies, faults, limits, and that the key stays a secret."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, refusal, serving, texts

from selfreward.config import parse_config
from selfreward.engines import ROLE_ENGINES, ROLE_PREFIXES, open_engine
from selfreward.engines._openai_answers import backoff
from selfreward.engines.openai import OpenAIEngine
from selfreward.errors import ConfigError, EngineError, MissingExtraError, UsageError
from selfreward.types import Generation, Message, Request, Sampling

KEY = "sk-very-secret-0123456789"
HTML = Fault(200, "<html><body>Bad gateway</body></html>", {"Content-Type": "text/html"})


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with serving(lambda asked, seed: f"heard {asked}") as made:
        yield made


def ask(number: int = 0, text: str = "", **sampling: Any) -> Request:
    settings = Sampling(**{"max_tokens": 50, **sampling})
    return Request(f"r{number}", (Message("user", text or f"question {number}"),), settings, 2**40 + number)


def replies(server: EndpointServer, requests: list[Request], key: str | None = None, **settings: Any) -> dict[str, Generation]:
    with OpenAIEngine("far", server.endpoint(**settings), key) as engine:
        return {reply.request_id: reply for reply in engine.generate(requests)}


def one(server: EndpointServer, request: Request | None = None, **settings: Any) -> Generation:
    (reply,) = replies(server, [request or ask()], **settings).values()
    return reply


def failure(server: EndpointServer, requests: list[Request] | None = None, **settings: Any) -> str:
    with pytest.raises(EngineError) as caught:
        replies(server, requests or [ask()], **settings)
    return str(caught.value)


def answer(choice: Any, **changes: Any) -> Fault:
    return Fault(body=json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, **changes}))


def test_every_role_prefix_leads_to_an_engine_in_the_table() -> None:
    assert set(ROLE_PREFIXES.values()) == set(ROLE_ENGINES)


def test_a_conversation_is_sent_as_messages(server: EndpointServer) -> None:
    prompt = (Message("system", "be brief"), Message("user", "hello you"))
    request = Request("a", prompt, Sampling(7, 0.3, 0.8, stop=("END",)), 5)
    reply = one(server, request)
    assert reply == Generation("a", "heard hello you", 2, 3, "stop")
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello you"}],
        "max_tokens": 7,
        "temperature": 0.3,
        "top_p": 0.8,
        "stop": ["END"],
    }


def test_plain_text_goes_to_the_completions_api(server: EndpointServer) -> None:
    request = Request("a", "Task: one two three", Sampling(4), 5)
    reply = one(server, request, api="completions")
    assert (reply.text, reply.finish_reason, reply.num_prompt_tokens, reply.num_tokens) == (
        "heard Task: one two", "length", 4, 4,
    )  # fmt: skip
    assert server.calls[0].path == "/v1/completions"
    assert server.calls[0].body["prompt"] == "Task: one two three"
    assert "messages" not in server.calls[0].body


def test_seeds_and_the_name_of_the_limit_are_settings(server: EndpointServer) -> None:
    one(server, ask(7), send_seed=True, max_tokens_name="max_completion_tokens")
    body = server.calls[0].body
    assert (body["seed"], body["max_completion_tokens"]) == ((2**40 + 7) % 2**31, 50)
    assert "max_tokens" not in body
    one(server, ask(7))
    assert "seed" not in server.calls[1].body


def test_stop_strings_are_cut_here_too(server: EndpointServer) -> None:
    reply = one(server, ask(text="one STOP two", stop=("STOP",), max_tokens=3))
    assert (reply.text, reply.finish_reason) == ("heard one ", "stop")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"message": {"content": ""}, "finish_reason": "stop"}, ("", "stop", None)),
        ({"message": {"content": "half"}, "finish_reason": "length"}, ("half", "length", None)),
        ({"message": {"content": None}, "finish_reason": "length"}, ("", "length", None)),
        ({"message": {"content": None}, "finish_reason": "content_filter"}, ("", "error", "content_filter")),
        ({"message": {"content": "some"}, "finish_reason": "content_filter"}, ("", "error", "content_filter")),
        ({"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}, ("", "error", "content_filter")),
        ({"message": {"content": "cut \ud83d"}, "finish_reason": "stop"}, ("cut \ufffd", "stop", None)),
    ],
)
def test_how_a_reply_ended(server: EndpointServer, choice: Any, expected: tuple[str, str, str | None]) -> None:
    server.faults = [answer(choice)]
    reply = one(server)
    assert (reply.text, reply.finish_reason, reply.error) == expected
    assert (reply.num_prompt_tokens, reply.num_tokens) == (3, 4)
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "many",
        {"prompt_tokens": None},
        {"prompt_tokens": -1, "completion_tokens": True},
        {"completion_tokens": 1.5},
    ],
)
def test_tokens_that_no_one_told_are_unknown(server: EndpointServer, usage: Any) -> None:
    server.usage = lambda asked, reply: usage
    reply = one(server)
    assert (reply.text, reply.num_prompt_tokens, reply.num_tokens) == ("heard question 0", None, None)


@pytest.mark.parametrize(
    "fault",
    [
        refusal(500, "oops"), refusal(503, "starting"), refusal(408, "late"), refusal(409, "busy"), refusal(429, "slow down"),
        Fault(cut=True), HTML, Fault(body=""), Fault(body="[]"), Fault(body='{"choices": []}'), Fault(body="[" * 100_000),
        answer({"message": None, "finish_reason": "stop"}), answer({"message": {"content": None}, "finish_reason": "stop"}),
        answer({"message": {"content": ["a"]}, "finish_reason": "stop"}), answer({"message": {"content": "a"}}),
        answer({"message": {"content": "a"}, "finish_reason": "tool_calls"}), answer("text"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server: EndpointServer, fault: Fault) -> None:
    server.faults = [fault, None]
    assert one(server) == Generation("r0", "heard question 0", 2, 3, "stop")
    assert texts(server.calls) == ["question 0"] * 2


def test_a_slow_answer_is_given_up_and_tried_again(server: EndpointServer) -> None:
    server.faults = [Fault(held=True)]
    # A slow machine may not be in time for the next answers either.
    assert one(server, timeout_s=0.5, max_retries=99).text == "heard question 0"
    assert len(server.calls) >= 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (refusal(500, "broken disk"), "status 500: broken disk"),
        (Fault(502, "<html>Bad gateway</html>"), "status 502: <html>Bad gateway</html>"),
        (Fault(503, ""), "status 503: no reason given"),
        (HTML, "not JSON: <html>.*Bad gateway"),
        (Fault(body='{"choices": null}'), "choices is no list with a reply: None"),
        (answer({"message": {"content": "a"}, "finish_reason": "tool_calls"}), "finish_reason is not stop.*: 'tool_calls'"),
        (answer({"message": {"content": None}, "finish_reason": "stop"}), "content is no text: None"),
        (Fault(cut=True), "the connection failed"),
        (Fault(held=True), r"no whole answer in time \(endpoints\.far\.timeout_s=0\.1\)"),
    ],
)
def test_what_does_not_pass_is_named(server: EndpointServer, fault: Fault, said: str) -> None:
    server.faults = [fault] * 3
    message = failure(server, max_retries=2, **({"timeout_s": 0.1} if fault.held else {}))
    assert len(server.calls) == 3 or fault.held, "who gives up early may do so before the server has read a request"
    assert message.startswith(f"endpoint 'far' at {server.url.removesuffix('/v1')} gave no reply to request 'r0' in 3 tries")
    assert re.search(said, message), message


def test_no_server_at_all_is_named() -> None:
    with serving(lambda asked, seed: "") as gone:
        pass
    message = failure(gone, max_retries=1)
    assert "in 2 tries" in message
    assert "the connection failed" in message
    assert "endpoints.far.* (base_url" in message


def test_waits_grow(server: EndpointServer) -> None:
    server.faults = [refusal(500, "oops")] * 3
    one(server, backoff_s=0.05)
    waits = [after.time - before.time for before, after in pairwise(server.calls)]
    assert [wait >= backoff("r0", attempt, 0.05, 120) for attempt, wait in enumerate(waits)] == [True] * 3
    assert sum(waits) < 50


def test_the_server_says_how_long_to_wait(server: EndpointServer) -> None:
    server.faults = [refusal(429, "slow down", retry_after="0.2"), refusal(503, "wait", retry_after_ms="150")]
    one(server, backoff_s=0.001)
    waits = [after.time - before.time for before, after in pairwise(server.calls)]
    assert 0.2 <= waits[0] < 50
    assert 0.15 <= waits[1] < 50


def test_a_server_that_wants_too_long_a_wait_stops_the_run(server: EndpointServer) -> None:
    server.faults = [refusal(429, "quota", retry_after="3600")]
    message = failure(server, max_wait_s=60)
    assert "asks to wait 3600 s" in message
    assert "endpoints.far.max_wait_s=60" in message
    assert len(server.calls) == 1


@pytest.mark.parametrize(("status", "hint"), [(400, "sampling"), (401, "api_key_env"), (403, "api_key_env"), (404, "base_url")])
def test_other_refusals_stop_at_once(server: EndpointServer, status: int, hint: str) -> None:
    server.faults = [refusal(status, "not for you")]
    message = failure(server)
    assert "endpoint 'far' refused request 'r0'" in message
    assert f"status {status}" in message
    assert "not for you" in message
    assert f"endpoints.far.{hint}" in message or hint == "sampling"
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "fault",
    [
        refusal(400, "too much", code="context_length_exceeded"),
        refusal(400, "request (4390 tokens) exceeds it", code=400, kind="exceed_context_size_error"),
        refusal(400, "This model's maximum context length is 64 tokens. However, you requested 90 tokens", code=400),
        refusal(422, "The input (90 tokens) is longer than the model's context length (64 tokens)."),
        Fault(400, json.dumps({"detail": "longer than the context window"})),
        Fault(400, json.dumps({"object": "error", "message": "The maximum context length is 64 tokens", "code": 400})),
    ],
)
def test_a_prompt_that_does_not_fit_is_the_requests_own_error(server: EndpointServer, fault: Fault) -> None:
    server.faults_of["question 1"] = [fault]
    made = replies(server, [ask(0), ask(1), ask(2)])
    assert (made["r1"].finish_reason, made["r1"].error, made["r1"].text) == ("error", "too_long", "")
    assert (made["r0"].text, made["r2"].text) == ("heard question 0", "heard question 2")
    assert len(server.calls) == 3


def test_a_filtered_prompt_is_the_requests_own_error(server: EndpointServer) -> None:
    server.faults = [refusal(400, "not allowed", code="content_filter")]
    assert one(server).error == "content_filter"


def test_replies_come_as_they_are_ready_and_not_too_many_at_a_time(server: EndpointServer) -> None:
    server.faults_of = {"question 0": [Fault(held=True)], "question 1": [Fault(held=True)]}
    server.delay_of = lambda asked: 0.02
    with OpenAIEngine("far", server.endpoint(max_concurrency=3)) as engine:
        coming = engine.generate([ask(number) for number in range(9)])
        assert sorted(next(coming).request_id for _ in range(7)) == [f"r{number}" for number in range(2, 9)]
        server.release()
        assert sorted(reply.request_id for reply in coming) == ["r0", "r1"]
    assert server.most_at_a_time == 3


def test_retried_requests_change_neither_replies_nor_counts(server: EndpointServer) -> None:
    requests = [ask(number) for number in range(12)]
    calm = replies(server, requests)
    faults = [refusal(500, "oops"), HTML, Fault(cut=True), refusal(429, "slow down", retry_after="0.01")]
    server.faults_of = {f"question {number}": [faults[number % 4]] * (number % 3) for number in range(12)}
    server.calls.clear()
    assert replies(server, requests, max_concurrency=4) == calm
    assert len(server.calls) == 12 + sum(number % 3 for number in range(12))


def test_a_failure_ends_what_is_on_its_way(server: EndpointServer) -> None:
    server.faults_of["question 0"] = [refusal(401, "who are you")]
    server.faults_of["question 1"] = [Fault(held=True)]
    failure(server, [ask(number) for number in range(50)], max_concurrency=2)
    assert len(server.calls) <= 2


def test_an_iterator_that_is_dropped_stops_asking(server: EndpointServer) -> None:
    server.faults_of = {f"question {number}": [Fault(held=True)] for number in range(1, 50)}
    with OpenAIEngine("far", server.endpoint(max_concurrency=2)) as engine:
        wanted = engine.generate([ask(number) for number in range(50)])
        assert next(iter(wanted)).request_id == "r0"
        wanted.close()  # type: ignore[attr-defined]
        assert (asked := engine.num_requests) <= 3
        assert [reply.text for reply in engine.generate([ask(99)])] == ["heard question 99"], "the engine still works"
        assert engine.num_requests == asked + 1


def test_a_closed_engine_says_so(server: EndpointServer) -> None:
    engine = OpenAIEngine("far", server.endpoint())
    assert [reply.request_id for reply in engine.generate([ask()])] == ["r0"]
    assert list(engine.generate([])) == []
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="endpoint 'far' is closed"):
        engine.generate([ask()])


def test_the_request_budget_is_kept_before_anything_is_sent(server: EndpointServer) -> None:
    with OpenAIEngine("far", server.endpoint(max_requests=5)) as engine:
        assert len(list(engine.generate([ask(number) for number in range(3)]))) == 3
        with pytest.raises(EngineError, match=r"endpoints\.far\.max_requests=5: 3 sent, 3 more wanted"):
            engine.generate([ask(number) for number in range(3, 6)])
        assert len(server.calls) == 3
        server.faults = [refusal(500, "oops")] * 9
        with pytest.raises(EngineError, match=r"endpoints\.far\.max_requests=5 is reached"):
            list(engine.generate([ask(3)]))
    assert (len(server.calls), engine.num_requests) == (5, 5)


def test_the_token_budget_stops_before_the_next_request(server: EndpointServer) -> None:
    requests = [ask(number) for number in range(10)]  # 2 + 3 tokens each
    message = failure(server, requests, max_total_tokens=12, max_concurrency=1)
    assert "endpoints.far.max_total_tokens=12 is reached (15)" in message
    assert len(server.calls) == 3
    server.usage = lambda asked, reply: None
    assert "does not tell how many tokens" in failure(server, requests, max_total_tokens=12)


@pytest.mark.parametrize(
    ("settings", "request_", "said"),
    [
        ({}, Request("a", "plain", Sampling(5), 0), "request 'a' is plain text, which endpoints.far.api=chat"),
        ({"api": "completions"}, ask(), "request 'r0' is a conversation, which endpoints.far.api=completions"),
        ({}, ask(stop=("a", "b", "c", "d", "e")), "5 stop strings"),
        ({}, ask(top_k=3), "top_k=3"),
    ],
)
def test_what_the_api_cannot_be_asked_is_refused_first(
    server: EndpointServer, settings: dict[str, Any], request_: Request, said: str
) -> None:
    assert said in failure(server, [request_], **settings)
    assert not server.calls


def test_requests_are_checked(server: EndpointServer) -> None:
    with OpenAIEngine("far", server.endpoint()) as engine, pytest.raises(UsageError, match="two requests"):
        engine.generate([ask(), ask()])


def test_only_this_endpoints_key_is_sent(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "ambient")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer ambient")
    one(server)
    one(server, key=KEY)
    without, with_key = (call.headers for call in server.calls)
    assert "authorization" not in without
    assert with_key["authorization"] == f"Bearer {KEY}"
    assert "ambient" not in str(without) + str(with_key)


@pytest.mark.parametrize("status", [401, 500])
def test_a_server_that_repeats_the_key_does_not_spread_it(server: EndpointServer, status: int) -> None:
    server.faults = [refusal(status, f"bad key {KEY}")] * 2
    message = failure(server, key=KEY, max_retries=1)
    assert "bad key ***" in message
    assert KEY not in message
    assert KEY[:8] not in message


@pytest.mark.parametrize("padding", range(160, 201, 8))
def test_an_unreadable_answer_shows_no_half_key(server: EndpointServer, padding: int) -> None:
    server.faults = [Fault(body="x" * padding + KEY)]
    message = failure(server, key=KEY, max_retries=0)
    assert "not JSON" in message
    assert KEY[:4] not in message


def test_the_key_comes_from_the_named_variable(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config({"name": "a", "endpoints": {"far": server.settings(api_key_env="FAR_KEY")}})
    for value, said in (
        (None, "is not set"),
        ("", "is not set"),
        ("a b", "white space"),
        ("a\n", "white space"),
    ):
        monkeypatch.delenv("FAR_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("FAR_KEY", value)
        with pytest.raises(ConfigError, match=rf"variable that endpoints\.far\.api_key_env names .*{said}") as caught:
            open_engine("endpoint:far", config)
        assert not value or value not in str(caught.value)
    monkeypatch.setenv("FAR_KEY", KEY)
    with open_engine("endpoint:far", config) as engine:
        assert engine.context_length == 4096
        assert len(list(engine.generate([ask()]))) == 1
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    with pytest.raises(ConfigError, match="no endpoint 'near'; endpoints knows: far"):
        open_engine("endpoint:near", config)


def test_a_missing_package_is_one_line_with_the_command(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # what an import statement meets when it is not installed
    with pytest.raises(MissingExtraError, match=r"^endpoints need the package openai.*pip install 'selfreward\[endpoint\]'$"):
        OpenAIEngine("far", server.endpoint())
