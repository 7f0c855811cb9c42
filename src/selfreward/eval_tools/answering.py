"""A model's answers to requests: what it said, or why there is nothing. One way for outputs and for MT-Bench's turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.artifacts import Stage
from selfreward.engines.asking import collect, refuse_engine_failure
from selfreward.engines.base import Engine
from selfreward.types import REQUEST_ERRORS, Request


class Answered(Protocol):
    """Whatever says how an answer ended."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; one of `REQUEST_ERRORS` where there is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply. `finish_reason` is one of `REQUEST_ERRORS` where this request alone failed; `text` is empty then."""

    text: str
    num_tokens: int | None
    finish_reason: str | None


def ask(stage: Stage, engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    """The answers in the order of the requests. Raises EngineError when the engine fails in any way but on single requests."""
    replies = map(refuse_engine_failure, collect(stage, engine, requests))
    return [
        Answer(reply.text, reply.num_tokens, reply.error if reply.finish_reason == "error" else reply.finish_reason)
        for reply in replies
    ]


def is_answered(row: Answered) -> bool:
    """Whether there is an answer, if only an empty one."""
    return row.finish_reason not in REQUEST_ERRORS
