"""What engine tests look at from outside: the token ids of replies, and forward passes that find no memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from selfreward.chat import encode_prompt
from selfreward.engines._replies import Reply
from selfreward.types import Generation, Request


@contextmanager
def said() -> Iterator[dict[str, list[int]]]:
    """Request id -> all token ids of its reply, its end token too. Replies carry texts, which hide how they were written."""
    ids: dict[str, list[int]] = {}
    own = Reply.generation

    def generation(reply: Reply) -> Generation:
        ids[reply.request.id] = list(reply.ids)
        return own(reply)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reply, "generation", generation)
        yield ids


def ids_of(engine: Any, requests: Sequence[Request]) -> dict[str, list[int]]:
    """The token ids of all replies."""
    with said() as ids:
        assert len(list(engine.generate(requests))) == len(requests) == len(ids)
    return ids


def plain_logits(engine: Any, prompt: Any, reply: Sequence[int]) -> torch.Tensor:
    """The logits that each token of the reply was drawn from: one plain pass over prompt and reply, shape tokens, V."""
    start = encode_prompt(engine.tokenizer, prompt)
    with torch.inference_mode():
        logits = engine.model(torch.tensor([[*start, *reply]], device=engine.model.device), use_cache=False).logits[0]
    return logits[len(start) - 1 : -1].float()


@contextmanager
def failing(model: Any, numbers: frozenset[int], error: Exception) -> Iterator[list[int]]:
    """The model's forward passes with these numbers raise, once they are through all layers; yields the numbers met."""
    met: list[int] = []

    def look(*_: Any) -> None:
        met.append(len(met))
        if met[-1] in numbers:
            raise type(error)(*error.args)  # one that was raised before holds on to what was in work then

    handle = model.register_forward_hook(look)
    try:
        yield met
    finally:
        handle.remove()
