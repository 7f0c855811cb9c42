"""How many new prompts a second the ROUGE-L filter takes in beside a large pool, on one core.

    python bench/dedupe.py [--pool 100000] [--new 4096] [--workload random] [--results bench/results.json]

Workloads: `random`, prompts of 10 to 40 words from a Zipf-distributed vocabulary of 20,000; `templated`, prompts of one length
that share most words, as a model writes them that has found a phrase: each is almost too close to every other one, which
is the hardest case for signatures. One new prompt in eight is a pool prompt with some words changed.

`ours` is `RougePool.admit`; the peer compares each new prompt with the whole pool by rapidfuzz's cdist (the same comparison, no
signatures). Both give the same verdicts, which is checked. Building the pool is not counted, but shown. Time is the CPU
time of this one process, so that a busy machine does not change it; the median of three runs.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from _results import Row, render, update
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from selfreward.filters import RougePool, words_of

T = TypeVar("T")

LIMIT = 0.7
VOCABULARY = 20_000
SHORTEST, LONGEST = 10, 40
NUM_RUNS = 3
PEER_BLOCK = 64


def make_prompts(number: int, seed: int) -> list[str]:
    """Random prompts with word frequencies as in a language."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    lengths = rng.integers(SHORTEST, LONGEST + 1, number)
    words = rng.choice(VOCABULARY, size=int(lengths.sum()), p=shares / shares.sum())
    return [" ".join(f"w{word}" for word in part) for part in np.split(words, np.cumsum(lengths)[:-1])]


def make_templated(number: int, seed: int) -> list[str]:
    """Prompts of one phrase: only the words in its ten gaps differ."""
    rng = random.Random(seed)

    def fill() -> str:
        a, b, c = (f"adj{rng.randrange(500)} topic{rng.randrange(4000)}" for _ in range(3))
        rest = " ".join(f"topic{rng.randrange(4000)}" for _ in range(4))
        return f"write a short story about a {a} who meets a {b} in the far off {c} and learns to {rest}"

    return [fill() for _ in range(number)]


Make = Callable[[int, int], list[str]]
WORKLOADS: dict[str, tuple[str, Make]] = {"random": ("", make_prompts), "templated": (", one phrase", make_templated)}
"""Name -> what the row's name ends in, and the prompts."""


def change_some(prompts: Sequence[str], pool: Sequence[str], seed: int) -> list[str]:
    """Every eighth prompt becomes a pool prompt with up to half of its words changed."""
    rng = random.Random(seed)
    changed = list(prompts)
    for place in range(0, len(changed), 8):
        words = rng.choice(pool).split()
        for _ in range(rng.randint(1, len(words) // 2)):
            words[rng.randrange(len(words))] = f"new{rng.randrange(1000)}"
        changed[place] = " ".join(words)
    return changed


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(CPU seconds, result)."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


class WholePool:
    """The peer: words as numbers, numbers as characters, cdist against everything that is there."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.numbers: dict[str, int] = {}
        self.coded = [self.code(text) for text in texts]

    def code(self, text: str) -> str:
        return "".join(chr(0x10000 + self.numbers.setdefault(word, len(self.numbers))) for word in words_of(text))

    def admit(self, texts: Sequence[str]) -> list[bool]:
        verdicts: list[bool] = []
        for start in range(0, len(texts), PEER_BLOCK):
            block = [self.code(text) for text in texts[start : start + PEER_BLOCK]]
            near = self._exceeds(block, self.coded).any(axis=1)
            fresh: list[str] = []
            for code, is_near in zip(block, near, strict=True):
                verdicts.append(not is_near and not (fresh and self._exceeds([code], fresh).any()))
                fresh += [code] if verdicts[-1] else []
            self.coded += fresh
        return verdicts

    @staticmethod
    def _exceeds(queries: Sequence[str], pool: Sequence[str]) -> np.ndarray:
        common = cdist(queries, pool, scorer=LCSseq.similarity, dtype=np.int32)
        total = np.array([len(item) for item in queries])[:, None] + np.array([len(item) for item in pool])[None, :]
        return 2 * common / np.maximum(total, 1) > LIMIT


def measure(workload: str, num_pool: int, num_new: int, num_peer: int) -> tuple[Row, dict[str, float]]:
    """The table's row, and what is shown beside it. The peer takes in the first `num_peer` of the new prompts."""
    ending, make = WORKLOADS[workload]
    pool_texts = make(num_pool, 1)
    new = change_some(make(num_new, 2), pool_texts, seed=3)
    builds, ours, peers = [], [], []
    for _ in range(NUM_RUNS):
        seconds, pool = timed(partial(RougePool, pool_texts))
        more, _ = timed(partial(pool.overlapping, ["the first question makes the signatures"], LIMIT))
        builds.append(seconds + more)
        seconds, verdicts = timed(partial(pool.admit, new, LIMIT))
        ours.append(num_new / seconds)
    for _ in range(NUM_RUNS):
        peer = WholePool(pool_texts)
        seconds, peer_verdicts = timed(partial(peer.admit, new[:num_peer]))
        peers.append(num_peer / seconds)
    assert verdicts[:num_peer] == peer_verdicts, "the two give different verdicts"
    rate, peer_rate = statistics.median(ours), statistics.median(peers)
    row = Row(f"dedupe {num_pool:,} prompts{ending}", None, rate, peer_rate, "rapidfuzz cdist, whole pool", rate / peer_rate)
    return row, {"kept": sum(verdicts) / num_new, "build_seconds": statistics.median(builds), "slowest": min(ours)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print one table, keep the rows in the results file."""
    parser = argparse.ArgumentParser(description="New prompts a second that the ROUGE-L filter takes in.")
    parser.add_argument("--pool", type=int, default=100_000, help="prompts in the pool")
    parser.add_argument("--new", type=int, default=4096, help="new prompts")
    parser.add_argument("--peer", type=int, default=128, help="new prompts that the slower peer takes in")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="one of them (default: all)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args(arguments)
    sizes = (options.pool, options.new, min(options.peer, options.new))
    measured = {name: measure(name, *sizes) for name in options.workload or WORKLOADS}
    rows = [row for row, _ in measured.values()]
    update(options.results, rows)
    print(render(rows, unit="new prompts/s"))
    for name, (_, more) in measured.items():
        print(
            f"{name}: {options.new:,} new prompts, {100 * more['kept']:.0f} % kept, slowest of {NUM_RUNS} runs "
            f"{more['slowest']:,.0f}/s; pool built in {more['build_seconds']:.1f} s"
        )


if __name__ == "__main__":
    main()
