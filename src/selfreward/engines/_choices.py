"""How probable given continuations of a prompt are: one pass over what they share, then a token a step for each.

Tensor names end in their shape: B prompts, R rows (choices), T tokens, V vocabulary.

The tokens are those of prompt, prefix and choice encoded together, so that a space merges with the number behind it as it
does when the model writes both. What is scored begins at the first token that is not the same for the prefix alone and for
all choices: after `Score: ` that is the token ` 4`, with the space in it. A choice also has to end (`Request.choices`): its
probability is multiplied by that of a next token which does not lengthen its last word. Where no token can, as with
tokenizers of whole words, and all choices differ in one token, the pass over what they share is the only one.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from selfreward.chat import encode_continuations
from selfreward.engines._backends import Session
from selfreward.engines._decoder import Clock, Parts
from selfreward.engines._memory import Budget, Fitting
from selfreward.engines._tree import Family, Job, Leaf, num_common, plan_families
from selfreward.engines.base import is_same_word
from selfreward.errors import EngineError
from selfreward.types import Generation, Request


@dataclass(frozen=True)
class Piece(Job):
    """Choices of one request that run together: `ids` is what they share, `tails` what follows in each, from `first` on."""

    tails: tuple[tuple[int, ...], ...]
    first: int

    def rows(self, start: int, stop: int) -> Self:
        """Some of the choices."""
        return replace(super().rows(start, stop), tails=self.tails[start:stop], first=self.first + start)


@dataclass(frozen=True)
class _Plan:
    """A request in tokens."""

    start: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Most tokens of prompt, prefix and one choice."""
        return len(self.start) + max(map(len, self.tails))


class ChoiceScorer:
    """Scores choices with one model."""

    def __init__(self, parts: Parts, budget: Budget) -> None:
        self._parts, self._budget = parts, budget
        self._lengthening: torch.Tensor | None = None

    def pieces(self, requests: Sequence[Request]) -> tuple[list[Piece], list[Generation]]:
        """One piece a request; and the replies to requests that do not fit.

        Raises EngineError when the tokenizer cannot tell the choices of a request apart.
        """
        pieces: list[Piece] = []
        refused: list[Generation] = []
        for request in requests:
            plan = _plan(self._parts.tokenizer, request)
            if plan.longest > self._parts.context_length:
                refused.append(Generation(request.id, "", plan.longest, 0, "error", "too_long"))
            else:
                pieces.append(Piece(plan.start, (request,) * len(plan.tails), plan.tails, 0))
        return pieces, refused

    def run(self, pieces: Sequence[Piece], fitting: Fitting, clock: Clock) -> Iterator[Generation]:
        """Replies to requests with choices, each once all of its choices, which may lie in two batches, are scored."""
        for family in plan_families(pieces):
            waiting = deque(family.leaves)
            session: Session | None = None
            scored: dict[str, list[tuple[Piece, tuple[float, ...]]]] = {}
            while waiting:
                batch = self._next_batch(waiting, fitting.most)
                began, read = time.perf_counter(), session.num_read if session else 0
                session = session or fitting.attempt(self._open, family)
                values = fitting.attempt(self.score, session, batch) if session else None
                num_read = session.num_read - read if session else 0
                clock.add(read_tokens=num_read, prefill_seconds=time.perf_counter() - began)
                if session is None or values is None:
                    session = None
                    waiting.extendleft(reversed(batch))
                    fitting.halve(sum(leaf.num_rows for leaf in batch), max(len(leaf.job.ids) for leaf in batch))
                    continue
                for leaf, part in zip(batch, values, strict=True):
                    scored.setdefault(leaf.job.requests[0].id, []).append((_piece(leaf), part))
                whole = [name for name, parts in scored.items() if _is_whole(parts)]
                replies = [self._generation(scored.pop(name)) for name in whole]
                clock.add(asked_tokens=sum(reply.num_prompt_tokens or 0 for reply in replies))
                yield from replies

    @torch.inference_mode()
    def _open(self, family: Family) -> Session:
        most_new = max(len(tail) for leaf in family.leaves for tail in _piece(leaf).tails) + 1
        return self._parts.backend.open(family.root, most_new)

    @torch.inference_mode()
    def score(self, session: Session, batch: Sequence[Leaf]) -> list[tuple[float, ...]]:
        """The log-probabilities of each leaf's choices. Raises EngineError for a model with broken weights."""
        tails = [tail for leaf in batch for tail in _piece(leaf).tails]
        last = max(map(len, tails))
        must_end = bool(self._lengthening_tokens(tails[0]).any())
        num_steps = last + must_end
        tail_RT = torch.tensor([[*tail, *[0] * (last - len(tail))] for tail in tails])
        length_R = torch.tensor([len(tail) for tail in tails])
        total_R = torch.zeros(len(tails), dtype=torch.float64)
        if num_steps == 1:
            source_R = torch.tensor([number for number, leaf in enumerate(batch) for _ in range(leaf.num_rows)])
            return _cut(batch, total_R + _log_probability(session.read(batch), tail_RT[:, 0], source_R))
        logits_RV = session.admit(batch)
        for step in range(num_steps):
            if step < last:
                gain_R = _log_probability(logits_RV, tail_RT[:, step])
                total_R += torch.where(length_R > step, gain_R, 0.0)
            if must_end and step > 0:
                end_R = _log_probability_of_end(logits_RV, self._lengthening_tokens(tails[0]))
                total_R += torch.where(length_R == step, end_R, 0.0)
            if step + 1 < num_steps:
                # Rows that have ended go on with any token; what follows is not looked at.
                logits_RV = session.step(tail_RT[:, step].to(logits_RV.device))
        session.take([])
        return _cut(batch, total_R)

    def _generation(self, parts: list[tuple[Piece, tuple[float, ...]]]) -> Generation:
        """The reply, once all pieces of the request are scored."""
        parts.sort(key=lambda part: part[0].first)
        values = tuple(value for _, part in parts for value in part)
        first, tails = parts[0][0], [tail for piece, _ in parts for tail in piece.tails]
        read = self._num_read(replace(first, tails=tuple(tails)))
        return Generation(first.requests[0].id, "", read, 0, "stop", choice_logprobs=values)

    def _next_batch(self, waiting: "deque[Leaf]", most: int) -> list[Leaf]:
        """Take leaves with at most `most` rows together, fewer where the budget allows no more; some of a leaf's rows where it
        has more than that. Raises EngineError where the budget does not allow one row."""
        batch: list[Leaf] = []
        rows = longest = 0
        most_new = max(len(tail) for leaf in waiting for tail in _piece(leaf).tails) + 1
        while waiting and rows < most:
            leaf = waiting[0]
            longest = max(longest, len(leaf.job.ids) - leaf.num_root)
            fitting = min(leaf.num_rows, most - rows)
            if fitting < leaf.num_rows and rows:
                break
            while fitting and not self._budget.allows((len(batch) + 1) * longest + (rows + fitting) * most_new, rows + fitting):
                fitting = fitting - 1 if not rows else 0
            if not fitting:
                if not rows:
                    raise self._budget.refuse(longest, most_new)
                break
            waiting.popleft()
            if fitting < leaf.num_rows:
                waiting.appendleft(leaf.rows(fitting, leaf.num_rows))
            batch.append(leaf.rows(0, fitting) if fitting < leaf.num_rows else leaf)
            rows += fitting
        return batch

    def _num_read(self, piece: Piece) -> int:
        """Tokens that the model read for a piece: the last one of a choice only where it has to end."""
        must_end = self._lengthening is not None and bool(self._lengthening.any())
        return len(piece.ids) + sum(len(tail) - (not must_end) for tail in piece.tails)

    def _lengthening_tokens(self, tail: Sequence[int]) -> torch.Tensor:
        """Which tokens belong to the word before them, shape V; found once by reading each behind a choice's tokens."""
        if self._lengthening is None:
            start = self._parts.reader.read(tail)
            ends = self._parts.reader.stop_ids
            flags = []
            for token, text in enumerate(
                self._parts.reader.read_all([[*tail, token] for token in range(len(self._parts.tokenizer))])
            ):
                behind = text[len(start) :][:1] if text.startswith(start) else ""
                flags.append(token not in ends and is_same_word(behind))
            self._lengthening = torch.tensor(flags)
        return self._lengthening


def _plan(tokenizer: Any, request: Request) -> _Plan:
    """Tokens that prefix and all choices begin with, and each choice's own. Raises EngineError as `pieces` does."""
    texts = [request.reply_prefix, *(request.reply_prefix + choice for choice in request.choices)]
    encoded = encode_continuations(tokenizer, request.prompt, texts)
    shared = min(num_common(encoded[0], ids) for ids in encoded)
    if not shared:
        raise EngineError(f"request {request.id!r} has no tokens before its choices; there is nothing to continue")
    tails = tuple(tuple(ids[shared:]) for ids in encoded[1:])
    for choice, tail in zip(request.choices, tails, strict=True):
        if not tail or tokenizer.unk_token_id in tail:
            raise EngineError(
                f"the model's tokenizer has no tokens for {choice!r}, one of the choices of request {request.id!r}; "
                "use choices (for judge.mode=expected: a rubric's scale) that it can write"
            )
    if len(set(tails)) < len(tails):
        raise EngineError(f"the model's tokenizer writes two of {request.choices!r}, choices of request {request.id!r}, alike")
    return _Plan(tuple(encoded[0][:shared]), tails)


def _log_probability(logits_BV: torch.Tensor, token_R: torch.Tensor, source_R: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probability of row r's token after the logits number `source_R[r]` (r itself without), shape R, on CPU."""
    logits_BV = _checked(logits_BV)
    source_R = torch.arange(len(token_R)) if source_R is None else source_R
    source_R = source_R.to(logits_BV.device)
    chosen_R = logits_BV[source_R, token_R.to(logits_BV.device)]
    return (chosen_R.double() - logits_BV.logsumexp(-1).double()[source_R]).cpu()


def _log_probability_of_end(logits_RV: torch.Tensor, lengthening_V: torch.Tensor) -> torch.Tensor:
    """Log-probability that the next token does not lengthen the word, shape R, on CPU."""
    logits_RV = _checked(logits_RV)
    is_longer_V = torch.zeros(logits_RV.shape[-1], dtype=torch.bool)  # models may have more logits than there are tokens
    size = min(len(is_longer_V), len(lengthening_V))
    is_longer_V[:size] = lengthening_V[:size]
    ended_RV = logits_RV.masked_fill(is_longer_V.to(logits_RV.device), -torch.inf)
    return (ended_RV.logsumexp(-1).double() - logits_RV.logsumexp(-1).double()).cpu()


def _checked(logits_RV: torch.Tensor) -> torch.Tensor:
    logits_RV = logits_RV.float()
    if not bool(torch.isfinite(logits_RV.amax(dim=-1)).all()):
        raise EngineError("the model gives non-finite logits; its weights are broken, or model.dtype is too narrow for it")
    return logits_RV


def _cut(batch: Sequence[Leaf], total_R: torch.Tensor) -> list[tuple[float, ...]]:
    """The rows of each leaf."""
    values = iter(total_R.tolist())
    return [tuple(next(values) for _ in range(leaf.num_rows)) for leaf in batch]


def _piece(leaf: Leaf) -> Piece:
    assert isinstance(leaf.job, Piece), "choices come in pieces"
    return leaf.job


def _is_whole(parts: Sequence[tuple[Piece, tuple[float, ...]]]) -> bool:
    """Whether all choices of a request are scored."""
    return sum(len(values) for _, values in parts) == len(parts[0][0].requests[0].choices)
