"""Replies from a table instead of a model: deterministic, for tests and controls.

A script is a JSON file

    {"replies": [{"match": "a regular expression", "reply": "a text" or ["one", "for each", "seed"],
                  "choices": {"a choice": its probability}}],
     "default": "a text" or null, "context_length": 1000000}

The first entry whose `match` is found in the last user message (or in the plain text) answers; of several replies the
request's seed takes one. Built-in scripts: `random` (a judge without an opinion: `Score: k`, k uniform in 0..5 by the seed)
and `echo` (repeats the last user message). Tokens are white-space separated words.

A request's `choices` have the probabilities of the entry's `choices`, which may be left out: then the one that the reply says
behind the request's prefix has probability 1. Spaces around prefix and choices do not count.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from pathlib import Path
from typing import Any

from selfreward.engines.base import Engine, Usage, check_requests, cut_at_stop, is_same_word
from selfreward.errors import ConfigError, EngineError
from selfreward.types import Generation, Request

DEFAULT_CONTEXT_LENGTH = 1_000_000
MAX_SCORE = 5
_SCRIPT_KEYS = {"replies", "default", "context_length"}
_WORD = re.compile(r"\S+")

Script = Callable[[str, int], str | None]
"""(what is asked, seed) -> the reply, or None without one."""
Shares = Callable[[str], Mapping[str, float] | None]
"""What is asked -> the probabilities of choices, or None where the reply decides."""


def _random_score(asked: str, seed: int) -> str:
    return f"Score: {random.Random(seed).randint(0, MAX_SCORE)}"


def _echo(asked: str, seed: int) -> str:
    return asked


BUILT_IN: Mapping[str, Script] = {"random": _random_score, "echo": _echo}


class ScriptedEngine(Engine):
    """Answers from a script. It keeps to an engine's rules: stop strings, `max_tokens`, the context length."""

    def __init__(
        self, name: str, script: Script, context_length: int = DEFAULT_CONTEXT_LENGTH, shares: Shares | None = None
    ) -> None:
        self._name = name
        self._script = script
        self._shares = shares or (lambda asked: None)
        self._context_length = context_length
        self._usage = Usage()
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
        return cls(name, table.answer, table.context_length, table.shares)

    @property
    def context_length(self) -> int:
        """Most words of a prompt and its reply together."""
        return self._context_length

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer in order. Raises EngineError for a request that no entry of the script matches."""
        if not self._is_open:
            raise EngineError(f"the scripted engine {self._name!r} is closed")
        check_requests(requests)
        return self._count(requests)

    def take_usage(self) -> Usage:
        """Words in and out; of prompts that are equal as a whole one is read. Answering takes next to no time."""
        taken, self._usage = self._usage, Usage()
        return taken

    def _count(self, requests: Sequence[Request]) -> Iterator[Generation]:
        read: set[Any] = set()
        for request in requests:
            clock = time.perf_counter()
            reply = self._answer(request)
            asked, key = 0 if reply.error else reply.num_prompt_tokens or 0, (request.prompt, request.reply_prefix)
            self._usage += Usage(
                asked_tokens=asked,
                read_tokens=0 if key in read else asked,
                generated_tokens=reply.num_tokens or 0,
                decode_seconds=time.perf_counter() - clock,
            )
            read.add(key)
            yield reply

    def close(self) -> None:
        """See Engine."""
        self._is_open = False

    def _answer(self, request: Request) -> Generation:
        messages = [request.prompt] if isinstance(request.prompt, str) else [turn.content for turn in request.prompt]
        num_prompt_tokens = sum(len(text.split()) for text in [*messages, request.reply_prefix])
        room = self._context_length - num_prompt_tokens
        if room < 1:
            return Generation(request.id, "", num_prompt_tokens, 0, "error", "too_long")
        asked = _last_asked(request)
        text = self._script(asked, request.seed)
        if text is None:
            raise EngineError(
                f"script {self._name!r} has no reply for request {request.id!r}, which asks {asked[:80]!r}, and no default"
            )
        if request.choices:
            weights = _weights(request, self._shares(asked), text)
            logprobs = tuple(log(weight) if weight else -inf for weight in weights)
            return Generation(request.id, "", num_prompt_tokens, 0, "stop", choice_logprobs=logprobs)
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


def _weights(request: Request, shares: Mapping[str, float] | None, text: str) -> list[float]:
    """Probabilities of the choices, in their order; a reply that does not hold the prefix says none of them."""
    if shares is not None:
        return [shares.get(choice.strip(), 0.0) for choice in request.choices]
    prefix = request.reply_prefix.strip()
    behind = text.rpartition(prefix)[2].lstrip() if prefix and prefix in text else "" if prefix else text.lstrip()
    said = [
        choice
        for choice in request.choices
        if behind.startswith(choice.strip()) and not is_same_word(behind[len(choice.strip()) :][:1])
    ]
    return [float(choice in said[:1]) for choice in request.choices]


@dataclass(frozen=True)
class _Entry:
    pattern: re.Pattern[str]
    replies: tuple[str, ...]
    choices: Mapping[str, float] | None


@dataclass(frozen=True)
class _Table:
    entries: tuple[_Entry, ...]
    default: str | None
    context_length: int

    def answer(self, asked: str, seed: int) -> str | None:
        entry = self._find(asked)
        return entry.replies[seed % len(entry.replies)] if entry else self.default

    def shares(self, asked: str) -> Mapping[str, float] | None:
        entry = self._find(asked)
        return entry.choices if entry else None

    def _find(self, asked: str) -> _Entry | None:
        return next((entry for entry in self.entries if entry.pattern.search(asked)), None)


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


def _read_entry(entry: Any, where: str) -> _Entry:
    keys = set(entry) - {"choices"} if isinstance(entry, dict) else set()
    if keys != {"match", "reply"} or not isinstance(entry["match"], str):
        raise ConfigError(f"{where} is {entry!r}; it must hold a text `match` and a `reply`, and may hold `choices`")
    replies = [entry["reply"]] if isinstance(entry["reply"], str) else entry["reply"]
    if not isinstance(replies, list) or not replies or not all(isinstance(reply, str) for reply in replies):
        raise ConfigError(f"{where} has reply={entry['reply']!r}; it must be a text or a list of texts")
    try:
        return _Entry(re.compile(entry["match"]), tuple(replies), _read_choices(entry.get("choices"), where))
    except re.error as error:
        raise ConfigError(f"{where} has match={entry['match']!r}, which is no regular expression: {error}") from error


def _read_choices(choices: Any, where: str) -> Mapping[str, float] | None:
    if choices is None:
        return None
    known = isinstance(choices, dict) and all(isinstance(share, int | float) and share >= 0 for share in choices.values())
    if not known or sum(choices.values()) > 1 + 1e-9:
        raise ConfigError(f"{where} has choices={choices!r}; it must map texts to probabilities, at most 1 together")
    return {text.strip(): float(share) for text, share in choices.items()}
