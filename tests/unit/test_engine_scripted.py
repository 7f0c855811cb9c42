"""The scripted engine, and the table of engines."""

import json
import math
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import EngineConfig
from selfreward.engines import ENGINES, open_engine
from selfreward.engines.scripted import ScriptedEngine
from selfreward.errors import ConfigError, EngineError, UsageError
from selfreward.types import Message, Request, Sampling

LONG = Sampling(100)


def ask(text: str, seed: int = 0, sampling: Sampling = LONG, request_id: str = "a") -> Request:
    return Request(request_id, (Message("system", "Task"), Message("user", "first"), Message("user", text)), sampling, seed)


def script(tmp_path: Path, **content: Any) -> str:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(content))
    return str(path)


def one(engine: ScriptedEngine, request: Request) -> Any:
    (reply,) = engine.generate([request])
    return reply


def test_the_table_and_the_config_name_the_same_engines() -> None:
    assert set(ENGINES) == set(typing.get_args(EngineConfig.model_fields["name"].annotation))


def test_the_first_match_on_the_last_user_message_answers(tmp_path: Path) -> None:
    replies = [
        {"match": "^Task", "reply": "one"},
        {"match": "sea|town", "reply": ["two", "three"]},
        {"match": "", "reply": "rest"},
    ]
    engine = ScriptedEngine.open(script(tmp_path, replies=replies))
    assert one(engine, ask("by the sea", seed=0)).text == "two"
    assert one(engine, ask("by the sea", seed=7)).text == "three"
    assert one(engine, ask("first")).text == "rest"
    assert one(engine, Request("a", "Task: plain", LONG, 0)).text == "one"


def test_without_a_match_the_default_answers_or_the_request_is_named(tmp_path: Path) -> None:
    assert one(ScriptedEngine.open(script(tmp_path, replies=[], default="dunno")), ask("x")).text == "dunno"
    engine = ScriptedEngine.open(script(tmp_path, replies=[{"match": "y", "reply": "z"}]))
    with pytest.raises(EngineError, match="no reply for request 'a'"):
        one(engine, ask("x"))


def test_it_keeps_to_stop_strings_and_limits(tmp_path: Path) -> None:
    path = script(tmp_path, default="one two  three\nfour", context_length=12)
    engine = ScriptedEngine.open(path)
    assert engine.context_length == 12
    full = one(engine, ask("x"))
    assert (full.text, full.num_tokens, full.num_prompt_tokens, full.finish_reason) == ("one two  three\nfour", 4, 3, "stop")
    cut = one(engine, ask("x", sampling=Sampling(3)))
    assert (cut.text, cut.num_tokens, cut.finish_reason) == ("one two  three", 3, "length")
    stopped = one(engine, ask("x", sampling=Sampling(3, stop=("four", "\n"))))
    assert (stopped.text, stopped.num_tokens, stopped.finish_reason) == ("one two  three", 3, "stop")
    near_end = one(engine, ask("x " * 8))
    assert (near_end.num_tokens, near_end.finish_reason) == (2, "length")
    too_long = one(engine, ask("x " * 10))
    assert (too_long.finish_reason, too_long.error, too_long.num_tokens) == ("error", "too_long", 0)


def test_random_scores_are_uniform_and_repeat() -> None:
    engine = ScriptedEngine.open("random")
    requests = [ask("x", seed=seed, request_id=str(seed)) for seed in range(3000)]
    texts = [reply.text for reply in engine.generate(requests)]
    assert texts == [reply.text for reply in engine.generate(requests)]
    counts = Counter(texts)
    assert set(counts) == {f"Score: {score}" for score in range(6)}
    assert min(counts.values()) > 400


def test_echo_repeats_the_last_user_message() -> None:
    assert one(ScriptedEngine.open("echo"), ask("hello you")).text == "hello you"


def test_requests_are_checked_and_closing_ends_it() -> None:
    engine = ScriptedEngine.open("echo")
    with pytest.raises(UsageError, match="two requests"):
        engine.generate([ask("x"), ask("x")])
    with engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.generate([ask("x")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a mapping"),
        ("{", "not valid JSON"),
        ('{"reply": []}', "must hold a mapping"),
        ('{"replies": {}}', "must hold a mapping"),
        ('{"replies": [{"match": "a"}]}', r"replies\[0\]"),
        ('{"replies": [{"match": "a", "reply": []}]}', "a text or a list of texts"),
        ('{"replies": [{"match": "(", "reply": "b"}]}', "no regular expression"),
        ('{"default": 3}', "default=3"),
        ('{"context_length": 0}', "context_length=0"),
    ],
)
def test_malformed_scripts_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ScriptedEngine.open(str(path))


def test_open_engine_takes_scripts_by_role_and_by_config(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    with open_engine("scripted:echo", make_config()) as engine:
        assert isinstance(engine, ScriptedEngine)
    config = make_config(engine={"name": "scripted", "script": script(tmp_path, default="hi")})
    with open_engine("any/folder", config) as engine:
        assert [reply.text for reply in engine.generate([ask("x")])] == ["hi"]
    with pytest.raises(ConfigError, match="no script 'nobody'; known are random, echo"):
        open_engine("scripted:nobody", make_config())


def weigh(engine: ScriptedEngine, text: str, prefix: str, seed: int = 0) -> list[float]:
    request = Request("a", (Message("user", text),), LONG, seed, prefix, (" 1", " 10", " 2"))
    return [math.exp(value) for value in one(engine, request).choice_logprobs]


def test_choices_have_the_tables_probabilities_or_that_of_the_reply(tmp_path: Path) -> None:
    replies = [
        {"match": "sea", "reply": "Score: 1", "choices": {"1": 0.25, "2": 0.5}},
        {"match": "town", "reply": ["Score: 2 is not it. Score: 10.", "Score: 1", "Score: 100", "none"]},
    ]
    engine = ScriptedEngine.open(script(tmp_path, replies=replies))
    assert weigh(engine, "sea", "Score:") == pytest.approx([0.25, 0, 0.5])
    assert [weigh(engine, "town", "Score:", seed) for seed in range(4)] == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    reply = one(engine, Request("a", "by the sea", LONG, 0, "Score:", ("1",)))
    assert (reply.text, reply.num_prompt_tokens, reply.num_tokens) == ("", 4, 0)


@pytest.mark.parametrize("choices", [{"1": 0.7, "2": 0.4}, {"1": -0.1}, {"1": "a"}, ["1"]])
def test_choices_of_a_table_are_checked(tmp_path: Path, choices: Any) -> None:
    with pytest.raises(ConfigError, match=r"replies\[0\] has choices=.*probabilities"):
        ScriptedEngine.open(script(tmp_path, replies=[{"match": "", "reply": "x", "choices": choices}]))
