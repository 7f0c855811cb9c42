"""What is generated: the shapes of a round's two big jobs, as requests whose tokens are counted exactly.

`judge`: a rubric that all prompts begin with, then each candidate's own words, and several votes on each. `candidates`:
prompts that share nothing, several replies to each, of lengths that differ as real ones do. `expected scores`: the judge
workload's prompts with the legal scores weighed instead of votes sampled. Words are drawn with fixed seeds.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfreward.chat import encode_prompt
from selfreward.types import Request, Sampling
from speed.models import SCORES, VERDICT, plain_words

TEMPERATURE, TOP_P = 0.7, 0.9
"""As the paper samples candidates and judgements."""
FIRST_SEED = 1000
"""Of the requests; the next ones count up."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the workloads are, and which `part` of the whole that is. Ranges are inclusive; `rubric`, `own`, `prompt`,
    `vote` and `new` count tokens."""

    num_judged: int = 64
    num_votes: int = 3
    rubric: int = 300
    own: tuple[int, int] = (60, 100)
    vote: int = 48
    num_prompts: int = 256
    num_candidates: int = 4
    prompt: tuple[int, int] = (30, 200)
    new: tuple[int, int] = (8, 64)
    num_weighed: int = 1000
    part: float = 1.0

    def share(self, part: float) -> "Sizes":
        """Fewer candidates and prompts, of the same lengths."""
        fewer = {name: max(1, round(part * getattr(self, name))) for name in ("num_judged", "num_prompts", "num_weighed")}
        return replace(self, **fewer, part=part)

    def label(self, workload: str) -> str:
        """The workload's name in tables: a quarter of `judge` is `judge/4`."""
        return workload if self.part == 1 else f"{workload}/{1 / self.part:.3g}"


QUICK = Sizes(
    num_judged=3,
    num_votes=2,
    rubric=20,
    own=(4, 8),
    vote=3,
    num_prompts=3,
    num_candidates=2,
    prompt=(4, 9),
    new=(2, 5),
    num_weighed=4,
)
"""Seconds, for tests: the figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests with the token ids of their prompts, in the same order, the verdict's beginning included where scores are
    weighed; `num_items` candidates or prompts are in it."""

    name: str
    requests: tuple[Request, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    num_items: int

    @property
    def asked(self) -> tuple[int, ...]:
        """New tokens that each request must get; none where choices are weighed."""
        return tuple(0 if request.choices else request.sampling.max_tokens for request in self.requests)

    @property
    def num_new(self) -> int:
        """New tokens of all requests."""
        return sum(self.asked)


def judge(tokenizer: Any, sizes: Sizes, name: str = "judge") -> Workload:
    """Workload (a)."""
    rng = random.Random(1)
    words = plain_words(tokenizer)
    prompts = _judge_prompts(rng, words, sizes, sizes.num_judged)
    return _sampled(tokenizer, name, [(prompt, sizes.vote) for prompt in prompts for _ in range(sizes.num_votes)], len(prompts))


def candidates(tokenizer: Any, sizes: Sizes) -> Workload:
    """Workload (b)."""
    rng = random.Random(2)
    words = plain_words(tokenizer)
    prompts = [_text(rng, words, rng.randint(*sizes.prompt)) for _ in range(sizes.num_prompts)]
    wanted = [(prompt, rng.randint(*sizes.new)) for prompt in prompts for _ in range(sizes.num_candidates)]
    return _sampled(tokenizer, "candidates", wanted, len(prompts))


def expected(tokenizer: Any, sizes: Sizes) -> Workload:
    """Workload (c): the legal scores weighed behind the verdict's beginning."""
    rng = random.Random(3)
    prompts = _judge_prompts(rng, plain_words(tokenizer), sizes, sizes.num_weighed)
    behind = " " + " ".join(VERDICT)
    requests = tuple(
        Request(f"e{number}", prompt, Sampling(max_tokens=1), number, behind, tuple(f" {score}" for score in SCORES))
        for number, prompt in enumerate(prompts)
    )
    return Workload("expected scores", requests, _ids(tokenizer, [prompt + behind for prompt in prompts]), len(prompts))


def expected_by_votes(tokenizer: Any, sizes: Sizes, num_votes: int) -> Workload:
    """The same candidates, judged by sampled votes."""
    rng = random.Random(3)
    prompts = _judge_prompts(rng, plain_words(tokenizer), sizes, sizes.num_weighed)
    wanted = [(prompt, sizes.vote) for prompt in prompts for _ in range(num_votes)]
    return _sampled(tokenizer, f"{num_votes} sampled", wanted, len(prompts))


def judge_prompts(tokenizer: Any, sizes: Sizes, start: int, stop: int) -> list[str]:
    """Prompts number `start` to `stop` of an endless judge workload, each drawn by its own number."""
    words = plain_words(tokenizer)
    rubric = _text(random.Random(0), words, sizes.rubric)
    return [f"{rubric} {_own(random.Random(1000 + number), words, sizes)}" for number in range(start, stop)]


def _judge_prompts(rng: random.Random, words: Sequence[str], sizes: Sizes, number: int) -> list[str]:
    rubric = _text(rng, words, sizes.rubric)
    return [f"{rubric} {_own(rng, words, sizes)}" for _ in range(number)]


def _own(rng: random.Random, words: Sequence[str], sizes: Sizes) -> str:
    return _text(rng, words, rng.randint(*sizes.own))


def _text(rng: random.Random, words: Sequence[str], number: int) -> str:
    return " ".join(rng.choices(words, k=number))


def _sampled(tokenizer: Any, name: str, wanted: Sequence[tuple[str, int]], num_items: int) -> Workload:
    """Requests of (prompt, new tokens), each with a seed of its own."""
    requests = tuple(
        Request(f"r{number}", prompt, Sampling(num_new, TEMPERATURE, TOP_P, ignore_eos=True), FIRST_SEED + number)
        for number, (prompt, num_new) in enumerate(wanted)
    )
    return Workload(name, requests, _ids(tokenizer, [prompt for prompt, _ in wanted]), num_items)


def _ids(tokenizer: Any, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Their token ids: one a word, which is what makes the counts exact."""
    known: dict[str, tuple[int, ...]] = {}
    for text in texts:
        if text not in known:
            known[text] = tuple(encode_prompt(tokenizer, text))
            assert len(known[text]) == len(text.split()), "a word is not one token"
    return tuple(known[text] for text in texts)
