"""Replies of one family of prompts: rows advance a token at a time; those that have ended leave, waiting ones enter.

A row's tokens depend on its prompt, its settings and its seed; its neighbours only move floating-point sums by their rounding
(models that scale positions by the longest sequence of a pass, dynamic and long RoPE, excepted). Tensor names end in their
shape: R rows, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from selfreward.engines._backends import Backend, Session
from selfreward.engines._memory import Budget, Fitting
from selfreward.engines._replies import Reader, Reply
from selfreward.engines._sampling import Sampler
from selfreward.engines._tree import Family, Job, Leaf
from selfreward.engines.base import Usage
from selfreward.types import Generation, Request

COMPACT_SHARE = 16
"""Rows that have ended leave once they are more than one in this many."""
REFILL_SHARE = 4
"""Waiting rows enter once this share of the places is free: few prompts at a time are read slowly."""


@dataclass(frozen=True)
class Parts:
    """What every batch of an engine needs."""

    backend: Backend
    reader: Reader
    tokenizer: Any
    context_length: int
    device: torch.device


class Clock:
    """Adds up what an engine did; see Usage."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, **counts: Any) -> None:
        """Counts and seconds, by the names of Usage."""
        self.usage += Usage(**counts)

    def take(self) -> Usage:
        """What was added since the last call."""
        taken, self.usage = self.usage, Usage()
        return taken

    @contextmanager
    def timing(self, phase: str) -> Iterator[None]:
        """Adds the wall time spent inside to `phase`, a name of Usage; what ends for lack of memory took time too."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{phase: time.perf_counter() - began})


def decode_family(parts: Parts, family: Family, budget: Budget, fitting: Fitting, clock: Clock) -> Iterator[Generation]:
    """Answer a family's requests, each as soon as it is done. Raises EngineError where not even one row fits."""
    waiting = deque(family.leaves)
    batch: _Batch | None = None
    while waiting or batch is not None:
        if batch is None:
            batch = _Batch(parts, family, budget, clock)
        fits = fitting.attempt(batch.advance, waiting, fitting.most)
        yield from batch.take_done()
        if not fits:
            # What is in work begins again: its seeds give the same tokens as before.
            unfinished, num_rows, longest = batch.leaves(), batch.num_wanted, batch.longest
            batch = None
            waiting.extendleft(reversed(unfinished))
            fitting.halve(num_rows, longest)
            continue
        # Under a budget the stores of an empty batch, which never shrink, must not keep others out.
        if not batch.is_busy and not (waiting and parts.backend.can_join and budget.num_bytes is None):
            batch = None


class _Batch:
    """Rows in work."""

    def __init__(self, parts: Parts, family: Family, budget: Budget, clock: Clock) -> None:
        self._parts, self._family, self._budget, self._clock = parts, family, budget, clock
        self._session: Session | None = None
        self._sampler = Sampler(parts.device)
        self._rows: list[Reply] = []
        self._leaf_of: list[Leaf] = []
        self._entering: list[Leaf] = []
        self._done: list[Generation] = []
        self._logits_RV: torch.Tensor | None = None
        self._most_rows = 0

    @property
    def is_busy(self) -> bool:
        """Whether rows are in work."""
        return bool(self._rows)

    @property
    def num_wanted(self) -> int:
        """Rows in work and those that were about to enter."""
        return len(self._rows) + sum(leaf.num_rows for leaf in self._entering)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt in work."""
        return max(len(leaf.job.ids) for leaf in [*self._leaf_of, *self._entering])

    def leaves(self) -> list[Leaf]:
        """What is in work and not done, to begin it again."""
        unfinished: dict[int, tuple[Leaf, list[Request]]] = {}
        for row, leaf in zip(self._rows, self._leaf_of, strict=True):
            if not row.is_done:
                unfinished.setdefault(id(leaf), (leaf, []))[1].append(row.request)
        again = [
            Leaf(Job(leaf.job.ids, tuple(requests)), leaf.num_root, leaf.num_stem, leaf.stem)
            for leaf, requests in unfinished.values()
        ]
        return [*again, *self._entering]

    @torch.inference_mode()
    def advance(self, waiting: "deque[Leaf]", most: int) -> bool:
        """Let waiting rows enter where there is room, then draw one token for every row; always true."""
        if self._may_enter(most):
            self._entering = self._next(waiting, most)
            if self._entering:
                read = self._num_read
                try:
                    with self._clock.timing("prefill_seconds"):
                        self._enter()
                finally:
                    self._clock.add(read_tokens=self._num_read - read)
        with self._clock.timing("decode_seconds"):
            self._grow(bool(waiting), most)
        return True

    def take_done(self) -> list[Generation]:
        """Replies that have ended since the last call."""
        taken, self._done = self._done, []
        return taken

    @property
    def _num_read(self) -> int:
        return 0 if self._session is None else self._session.num_read

    def _grow(self, is_waited_for: bool, most: int) -> None:
        """One token more for every row, and the logits of the next ones."""
        assert self._logits_RV is not None, "no rows"
        ids_R, logprobs_R = self._sampler.draw(self._logits_RV)
        tokens = ids_R.tolist()
        logprobs = [None] * len(tokens) if logprobs_R is None else logprobs_R.tolist()
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            if not row.is_done:
                row.add(token, logprob)
                if row.is_done:
                    self._finish(row)
        ids_R = self._drop_ended(ids_R, is_waited_for, most)
        if self._rows:
            assert self._session is not None, "rows have a session"
            self._logits_RV = self._session.step(ids_R)

    def _finish(self, row: Reply) -> None:
        """Hand a reply over. Only here its tokens count: those of rows that lose their memory are made again."""
        self._done.append(reply := row.generation())
        self._clock.add(asked_tokens=reply.num_prompt_tokens, generated_tokens=reply.num_tokens)

    def _may_enter(self, most: int) -> bool:
        if not self._rows:
            return True
        return self._parts.backend.can_join and self._has_room(len(self._rows), most)

    def _has_room(self, num_rows: int, most: int) -> bool:
        """Whether so many places are free that it pays to fill them; where memory allows fewer rows than `most`, of those."""
        places = min(most, max(self._most_rows, 1))
        return places - num_rows >= max(1, places // REFILL_SHARE)

    def _next(self, waiting: "deque[Leaf]", most: int) -> list[Leaf]:
        """Take from the waiting leaves what fits beside the rows in work, at least one row when there are none.

        Raises EngineError where the budget does not allow even that.
        """
        taken: list[Leaf] = []
        prompts = len({id(leaf) for leaf in self._leaf_of})
        rows = len(self._rows)
        longest = max((self._num_own(leaf) for leaf in self._leaf_of), default=0)
        most_new = max((row.limit for row in self._rows), default=0)
        while waiting and rows < most:
            leaf = waiting[0]
            longest, most_new = max(longest, self._num_own(leaf)), max(most_new, self._most_new(leaf))
            fitting = min(leaf.num_rows, most - rows)
            # A prompt's rows enter together, unless there are more of them than there are places at all.
            if fitting < leaf.num_rows and rows:
                break
            while fitting and not self._budget.allows(
                self._num_kept(prompts + 1, longest, rows + fitting, most_new), rows + fitting
            ):
                fitting = fitting - 1 if not rows else 0
            if not fitting:
                if not rows:
                    raise self._budget.refuse(self._num_own(leaf), most_new)
                break
            waiting.popleft()
            if fitting < leaf.num_rows:
                waiting.appendleft(leaf.rows(fitting, leaf.num_rows))
            taken.append(leaf.rows(0, fitting) if fitting < leaf.num_rows else leaf)
            prompts, rows = prompts + 1, rows + fitting
        return taken

    def _num_kept(self, num_prompts: int, longest: int, num_rows: int, most_new: int) -> int:
        if self._session is not None:
            return self._session.num_kept(num_prompts, longest, num_rows, most_new)
        prompts = num_prompts if self._parts.backend.can_join else num_rows
        return prompts * longest + num_rows * most_new

    def _enter(self) -> None:
        """Read the entering prompts; their rows stand behind those in work."""
        parts = self._parts
        if self._session is None:
            most_new = max(self._most_new(leaf) for leaf in self._family.leaves)
            self._session = parts.backend.open(self._family.root, most_new)
        logits_RV = self._session.admit(self._entering)
        added = [
            Reply.begin(request, leaf.job.ids, parts.context_length, parts.reader)
            for leaf in self._entering
            for request in leaf.job.requests
        ]
        self._sampler.join([row.request for row in added], [row.limit for row in added])
        self._logits_RV = torch.cat([self._logits_RV, logits_RV]) if self._rows and self._logits_RV is not None else logits_RV
        self._rows += added
        self._most_rows = max(self._most_rows, len(self._rows))
        self._leaf_of += [leaf for leaf in self._entering for _ in leaf.job.requests]
        self._entering = []

    def _drop_ended(self, ids_R: torch.Tensor, is_waited_for: bool, most: int) -> torch.Tensor:
        """Take rows that have ended out, once they are many or keep others waiting; the tokens of those that are left."""
        num_done = sum(row.is_done for row in self._rows)
        num_left = len(self._rows) - num_done
        makes_room = is_waited_for and self._parts.backend.can_join and self._has_room(num_left, most)
        if not num_done or (num_left and num_done * COMPACT_SHARE <= len(self._rows) and not makes_room):
            return ids_R
        index = _compaction([row.is_done for row in self._rows])
        self._rows = [self._rows[old] for old in index]
        self._leaf_of = [self._leaf_of[old] for old in index]
        self._sampler.take(index)
        assert self._session is not None, "rows have a session"
        self._session.take(index)
        return ids_R[torch.tensor(index, dtype=torch.long, device=ids_R.device)]

    def _num_own(self, leaf: Leaf) -> int:
        """Tokens of a prompt that are kept for it alone."""
        return len(leaf.job.ids) - (leaf.num_root if self._parts.backend.can_join else 0)

    def _most_new(self, leaf: Leaf) -> int:
        most = max(request.sampling.max_tokens for request in leaf.job.requests)
        return min(most, self._parts.context_length - len(leaf.job.ids))


def _compaction(is_done: Sequence[bool]) -> list[int]:
    """Old numbers of the rows to keep: they stay where they are, only rows from the end move into the gaps."""
    num_left = len(is_done) - sum(is_done)
    from_the_end = iter([row for row in range(num_left, len(is_done)) if not is_done[row]])
    return [next(from_the_end) if is_done[row] else row for row in range(num_left)]
