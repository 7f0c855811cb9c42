"""Ask an engine inside a stage or an evaluation, and check that it answered."""

import time
from collections.abc import Sequence
from dataclasses import asdict

from selfreward.artifacts import Stage
from selfreward.engines.base import Engine
from selfreward.errors import EngineError
from selfreward.types import REQUEST_ERRORS, Generation, Request


def collect(stage: Stage, engine: Engine, requests: Sequence[Request]) -> list[Generation]:
    """The replies in the order of the requests; what they took is added to what the stage spends, as far as it is told.

    Raises EngineError when a request has no reply or more than one.
    """
    replies: dict[str, Generation] = {}
    clock = time.perf_counter()
    for reply in engine.generate(requests):
        for shortage in engine.take_shortages():
            stage.tell_shortage(shortage.num_rows, shortage.most, shortage.longest)
        if reply.request_id in replies:
            raise EngineError(f"{stage.key}: the engine answered request {reply.request_id!r} twice")
        replies[reply.request_id] = reply
        stage.within(len(replies) / len(requests))
    seconds = time.perf_counter() - clock
    missing = [request.id for request in requests if request.id not in replies]
    if missing or len(replies) != len(requests):
        raise EngineError(
            f"{stage.key}: {len(requests)} requests got {len(replies)} replies; the first without one: {missing[:1]}"
        )
    # Engines measure a prompt that is too long and refuse it unread; one whose reply a server withheld was read and charged.
    prompt = sum(reply.num_prompt_tokens or 0 for reply in replies.values() if reply.error != "too_long")
    generated = sum(reply.num_tokens or 0 for reply in replies.values())
    stage.spent.add_tokens(prompt, generated, sum(map(_is_untold, replies.values())))
    usage = engine.take_usage()
    stage.spent.add_engine(seconds, None if usage is None else asdict(usage), prompt, generated)
    stage.spent.add_lost(engine.take_lost_tokens())
    return [replies[request.id] for request in requests]


def refuse_engine_failure(reply: Generation) -> Generation:
    """The reply itself, unless the engine failed for a reason that is not the request's own: then EngineError."""
    if reply.finish_reason == "error" and reply.error not in REQUEST_ERRORS:
        raise EngineError(f"request {reply.request_id!r} failed: {reply.error}; see the engine.* settings")
    return reply


def _is_untold(reply: Generation) -> bool:
    """Whether there is a reply whose tokens are unknown. A refused request cost none."""
    return reply.finish_reason != "error" and None in (reply.num_prompt_tokens, reply.num_tokens)
