"""Replies from a table instead of a model: deterministic, for tests and controls.

A script is a JSON file

    {"replies": [{"match": "a regular expression", "reply": "a text" or ["one", "for each", "seed"]}],
     "default": "a text" or null, "context_length": 1000000}

The first entry whose `match` is found in the last user message (or in the plain text) answers; of several replies the
request's seed takes one. Built-in scripts: `random` (a judge without an opinion: `Score: k`, k uniform in 0..5 by the seed)
and `echo` (repeats the last user message). Tokens are white-space separated words.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.engines.base import Engine, check_requests, cut_at_stop
from selfreward.errors import ConfigError, EngineError
from selfreward.types import Generation, Request

DEFAULT_CONTEXT_LENGTH = 1_000_000
MAX_SCORE = 5
_SCRIPT_KEYS = {"replies", "default", "context_length"}
_WORD = re.compile(r"\S+")

Script = Callable[[str, int], str | None]
"""(what is asked, seed) -> the reply, or None without one."""


def _random_score(asked: str, seed: int) -> str:
    return f"Score: {random.Random(seed).randint(0, MAX_SCORE)}"


def _echo(asked: str, seed: int) -> str:
    return asked


BUILT_IN: Mapping[str, Script] = {"random": _random_score, "echo": _echo}


class ScriptedEngine(Engine):
    """Answers from a script. It keeps to an engine's rules: stop strings, `max_tokens`, the context length."""

    def __init__(self, name: str, script: Script, context_length: int = DEFAULT_CONTEXT_LENGTH) -> None:
        self._name = name
        self._script = script
        self._context_length = context_length
        self._is_open = True

    @classmethod
    def open(cls, name: str) -> "ScriptedEngine":
        """The engine for a built-in script or a script file. Raises ConfigError when there is none or it is malformed."""
        if name in BUILT_IN:
            return cls(name, BUILT_IN[name])
        path = Path(name)
        if not path.is_file():
            raise ConfigError(
                f"there is no script {name!r}; known are {', '.join(BUILT_IN)} and JSON files: set engine.script "
                "or the scripted:NAME of a role"
            )
        table = _read_script(path)
        return cls(name, table.answer, table.context_length)

    @property
    def context_length(self) -> int:
        """Most words of a prompt and its reply together."""
        return self._context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer in order. Raises EngineError for a request that no entry of the script matches."""
        if not self._is_open:
            raise EngineError(f"the scripted engine {self._name!r} is closed")
        check_requests(requests)
        return map(self._answer, requests)

    def close(self) -> None:
        """See Engine."""
        self._is_open = False

    def _answer(self, request: Request) -> Generation:
        messages = [request.prompt] if isinstance(request.prompt, str) else [turn.content for turn in request.prompt]
        num_prompt_tokens = sum(len(text.split()) for text in messages)
        room = self._context_length - num_prompt_tokens
        if room < 1:
            return Generation(request.id, "", num_prompt_tokens, 0, "error", "too_long")
        asked = _last_asked(request)
        text = self._script(asked, request.seed)
        if text is None:
            raise EngineError(
                f"script {self._name!r} has no reply for request {request.id!r}, which asks {asked[:80]!r}, and no default"
            )
        text, _ = cut_at_stop(text, request.sampling.stop)
        words = list(_WORD.finditer(text))
        limit = min(request.sampling.max_tokens, room)
        if len(words) > limit:
            return Generation(request.id, text[: words[limit - 1].end()], num_prompt_tokens, limit, "length")
        return Generation(request.id, text, num_prompt_tokens, len(words), "stop")


def _last_asked(request: Request) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    users = [turn.content for turn in request.prompt if turn.role == "user"]
    return users[-1] if users else ""


@dataclass(frozen=True)
class _Table:
    entries: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]
    default: str | None
    context_length: int

    def answer(self, asked: str, seed: int) -> str | None:
        for pattern, replies in self.entries:
            if pattern.search(asked):
                return replies[seed % len(replies)]
        return self.default


def _read_script(path: Path) -> _Table:
    """Parse and check a script file. Raises ConfigError naming the file and what is wrong."""
    try:
        script = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"script {str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(script, dict) or set(script) - _SCRIPT_KEYS or not isinstance(script.get("replies", []), list):
        raise ConfigError(f"script {str(path)!r} must hold a mapping with {', '.join(sorted(_SCRIPT_KEYS))} only")
    default = script.get("default")
    context_length = script.get("context_length", DEFAULT_CONTEXT_LENGTH)
    if not (default is None or isinstance(default, str)):
        raise ConfigError(f"script {str(path)!r} has default={default!r}; it must be a text or null")
    if not isinstance(context_length, int) or isinstance(context_length, bool) or context_length < 1:
        raise ConfigError(f"script {str(path)!r} has context_length={context_length!r}; it must be a whole number above 0")
    entries = tuple(
        _read_entry(entry, f"script {str(path)!r}, replies[{i}]") for i, entry in enumerate(script.get("replies", []))
    )
    return _Table(entries, default, context_length)


def _read_entry(entry: Any, where: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    if not isinstance(entry, dict) or set(entry) != {"match", "reply"} or not isinstance(entry["match"], str):
        raise ConfigError(f"{where} is {entry!r}; it must hold a text `match` and a `reply`")
    replies = [entry["reply"]] if isinstance(entry["reply"], str) else entry["reply"]
    if not isinstance(replies, list) or not replies or not all(isinstance(reply, str) for reply in replies):
        raise ConfigError(f"{where} has reply={entry['reply']!r}; it must be a text or a list of texts")
    try:
        return re.compile(entry["match"]), tuple(replies)
    except re.error as error:
        raise ConfigError(f"{where} has match={entry['match']!r}, which is no regular expression: {error}") from error
