"""Log-probabilities from an endpoint: asked for in each API's way, read without trust."""

import json
from typing import Any

import pytest
from endpoint_server import EndpointServer, Fault, serving

from selfreward.engines._openai_answers import BadAnswerError, read_answer
from selfreward.engines.openai import OpenAIEngine
from selfreward.errors import EngineError
from selfreward.types import Generation, Message, Request, Sampling

SETTINGS = Sampling(9, logprobs=True)
CHAT = Request("a", (Message("user", "hello you"),), SETTINGS, 0)
PLAIN = Request("b", "hello you", SETTINGS, 0)


def body(logprobs: Any, api: str = "chat", reason: str = "stop") -> str:
    said = {"message": {"content": "a b"}} if api == "chat" else {"text": "a b"}
    return json.dumps({"choices": [{**said, "logprobs": logprobs, "finish_reason": reason}]})


def ask(server: EndpointServer, request: Request, **settings: Any) -> Generation:
    with OpenAIEngine("far", server.endpoint(max_retries=0, **settings)) as engine:
        (reply,) = engine.generate([request])
    return reply


def test_each_api_is_asked_in_its_own_way() -> None:
    with serving(lambda asked, seed: "a b") as server:
        server.faults = [Fault(body=body({"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -2}]}))]
        assert ask(server, CHAT).token_logprobs == (-0.5, -2.0)
        server.faults = [Fault(body=body({"tokens": ["a", "b"], "token_logprobs": [-1.5, 0]}, "completions"))]
        assert ask(server, PLAIN, api="completions").token_logprobs == (-1.5, 0.0)
        assert [call.body["logprobs"] for call in server.calls] == [True, 1]
        ask(server, Request("c", CHAT.prompt, Sampling(9), 0))
        assert "logprobs" not in server.calls[-1].body


@pytest.mark.parametrize("sent", [None, {"content": None}, {}])
def test_a_server_that_sends_none_is_no_error(sent: Any) -> None:
    reply = read_answer(CHAT, "chat", body(sent))
    assert (reply.text, reply.token_logprobs) == ("a b", None)


@pytest.mark.parametrize(
    "sent",
    [[], "many", {"content": "many"}, {"content": [1]}, {"content": [{}]}, {"content": [{"logprob": "0"}]},
     {"content": [{"logprob": float("nan")}]}, {"content": [{"logprob": True}]}, {"content": [{"logprob": -float("inf")}]}],
)  # fmt: skip
def test_what_makes_no_sense_is_named(sent: Any) -> None:
    with pytest.raises(BadAnswerError, match="logprobs"):
        read_answer(CHAT, "chat", body(sent))


def test_nothing_is_read_that_was_not_asked_for() -> None:
    request = Request("a", CHAT.prompt, Sampling(9), 0)
    assert read_answer(request, "chat", body("nonsense")).token_logprobs is None


def test_going_on_past_end_tokens_is_refused_before_anything_is_sent() -> None:
    with serving(lambda asked, seed: "") as server:
        with pytest.raises(EngineError, match=r"ignore_eos.*endpoint 'far'"):
            ask(server, Request("a", CHAT.prompt, Sampling(9, ignore_eos=True), 0))
        assert not server.calls
