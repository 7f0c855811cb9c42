"""The token budget of an endpoint: answers that nobody can read are paid for, so they count."""

import json

import pytest
from endpoint_server import Fault, serving

from selfreward.engines.openai import OpenAIEngine
from selfreward.errors import EngineError
from selfreward.types import Message, Request, Sampling

REQUEST = Request("r", (Message("user", "hello"),), Sampling(9), 0)
CHOICE = {"message": {"content": "x"}, "finish_reason": "tool_calls"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}


def test_answers_that_are_tried_again_count() -> None:
    with serving(lambda asked, seed: "fine") as server:
        server.faults = [Fault(body=json.dumps({"choices": [CHOICE], "usage": USAGE}))] * 5
        endpoint = server.endpoint(max_total_tokens=14, max_retries=4, backoff_s=0.001)
        with OpenAIEngine("far", endpoint) as engine:
            with pytest.raises(EngineError, match=r"endpoints\.far\.max_total_tokens=14 is reached \(14\)"):
                list(engine.generate([REQUEST]))
            assert (len(server.calls), engine.num_tokens) == (2, 14)


def test_a_retry_that_succeeds_counts_both() -> None:
    with serving(lambda asked, seed: "fine") as server:
        server.faults = [Fault(body=json.dumps({"choices": [], "usage": USAGE})), Fault(body="no JSON, no usage")]
        with OpenAIEngine("far", server.endpoint(backoff_s=0.001)) as engine:
            (reply,) = engine.generate([REQUEST])
            assert reply.text == "fine"
            assert (engine.num_requests, engine.num_tokens) == (3, 7 + 2)
            assert engine.take_lost_tokens() == 7, "the reply counts its own"
            assert engine.take_lost_tokens() == 0, "told once"
