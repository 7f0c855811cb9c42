"""Measuring: who takes part, and ours and the peers' in turns, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.engines.hf import HfEngine
from speed.workloads import Workload


class BenchError(Exception):
    """A figure would be wrong: someone made fewer or other tokens than were asked for."""


@dataclass(frozen=True, slots=True)
class Made:
    """One run: its wall time, and the new tokens of every request in their order."""

    seconds: float
    num_tokens: tuple[int, ...]


class Contestant(Protocol):
    """Whoever does a workload."""

    name: str
    setting: str
    """How it was set up, for the table's notes."""

    def run(self) -> Made:
        """Do the whole workload once."""
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


class Ours:
    """The engine `hf`, from texts to texts. The engine is the caller's."""

    def __init__(self, engine: HfEngine, workload: Workload, name: str, setting: str) -> None:
        self.name = name
        self.setting = setting
        self.engine = engine
        self.workload = workload

    def run(self) -> Made:
        """See Contestant. BenchError for a request without a reply, or without its scores."""
        return answer(self.engine, self.workload)

    def close(self) -> None:
        """See Contestant: nothing here is its own."""


def answer(engine: HfEngine, workload: Workload) -> Made:
    """One run of an engine. Raises BenchError as `Ours.run` does."""
    started = time.perf_counter()
    replies = {reply.request_id: reply for reply in engine.generate(workload.requests)}
    seconds = time.perf_counter() - started
    for request in workload.requests:
        reply = replies.get(request.id)
        if reply is None or reply.finish_reason == "error":
            raise BenchError(f"{workload.name}: request {request.id} has no reply: {reply}")
        if request.choices and len(reply.choice_logprobs or ()) != len(request.choices):
            raise BenchError(f"{workload.name}: request {request.id} lacks scores: {reply}")
    return Made(seconds, tuple(replies[request.id].num_tokens or 0 for request in workload.requests))


def alternate(contestants: Sequence[Contestant], repeats: int, tell: Callable[[str], None]) -> dict[str, list[Made]]:
    """`repeats` rounds in which each contestant runs once; their runs by name."""
    runs: dict[str, list[Made]] = {contestant.name: [] for contestant in contestants}
    for number in range(repeats):
        for contestant in contestants:
            made = contestant.run()
            runs[contestant.name].append(made)
            tell(f"round {number + 1}: {contestant.name} {made.seconds:.2f} s")
    return runs


def check_tokens(workload: Workload, name: str, runs: Sequence[Made]) -> None:
    """Raise BenchError unless each of someone's runs gave every request exactly the new tokens that it asked for."""
    for made in runs:
        wrong = [
            f"{request.id} {got} of {asked}"
            for request, got, asked in zip(workload.requests, made.num_tokens, workload.asked, strict=True)
            if got != asked
        ]
        if wrong:
            raise BenchError(
                f"{workload.name}: {name} made {sum(made.num_tokens):,} new tokens, {workload.num_new:,} were asked for; "
                f"{len(wrong)} requests differ, the first: {', '.join(wrong[:3])}"
            )


@dataclass(frozen=True, slots=True)
class Rates:
    """What a side did in a second: median, worst and best of its runs."""

    median: float
    least: float
    most: float


def rates(amount: float, runs: Sequence[Made]) -> Rates:
    """The rates of runs that each did `amount` of work."""
    seconds = [made.seconds for made in runs]
    return Rates(amount / statistics.median(seconds), amount / max(seconds), amount / min(seconds))
