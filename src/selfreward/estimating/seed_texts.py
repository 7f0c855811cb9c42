"""The run's seed data: its tables as the seed stage makes them, and requests and examples of its own shape.

What is rehearsed has real prompts and, for the length of its replies, the real answers of the seed data: a model that is
fine-tuned on them answers about as long.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

from selfreward.artifacts import Artifact, Run, RunDir, read_rows
from selfreward.config import Config
from selfreward.errors import ConfigError
from selfreward.estimating.workload import Kind, Sizes
from selfreward.judging import judge_messages, pairwise_messages, propose_prompt
from selfreward.pipeline import plan_pipeline
from selfreward.progress import Progress
from selfreward.rubrics import load_rubric
from selfreward.stages import seed as seed_stage
from selfreward.training import SftExample
from selfreward.types import Demonstration, EftExample, Message, PreferencePair, Prompt, RankedSet, Request, Sampling

T = TypeVar("T")
MAX_ROWS, MAX_LENGTHS = 4096, 512
"""Ranked sets, and answers, that are looked at: enough for a mean."""


@dataclass(frozen=True)
class SeedTexts:
    """The seed tables. `seconds`: what reading and splitting took; None where the run's own seed stage is finished."""

    sizes: Sizes
    ift: Sequence[Demonstration]
    targets: Sequence[EftExample]
    replies: Sequence[tuple[str, str]]
    """(prompt, reply) to judge: ranked ones where there are any, else those of the instruction data."""
    seconds: float | None


def read_seed(config: Config, progress: Progress) -> SeedTexts:
    """The tables of the run's finished seed stage, or those that it will make, made in a temporary folder.

    Raises what the seed stage raises.
    """
    directory = RunDir(Path(config.run_dir) / config.name)
    planned = next(stage for stage in plan_pipeline(config).stages if stage.key == "seed")
    if planned.action in ("reuse", "accept"):
        return _read(Artifact("seed", directory.seed, ""), None)
    with tempfile.TemporaryDirectory(prefix="selfreward-") as folder:
        clock = time.perf_counter()
        with Run.open(config.model_copy(update={"run_dir": folder}), progress) as run:
            made = seed_stage.run(run)
        return _read(made, time.perf_counter() - clock)


def _read(seed: Artifact, seconds: float | None) -> SeedTexts:
    ift = read_rows(seed.path / "ift.parquet", Demonstration)
    targets = read_rows(seed.path / "eft_train.parquet", EftExample)
    ranked = read_rows(seed.path / "ranked_train.parquet", RankedSet)
    heldout = read_rows(seed.path / "ranked_heldout.parquet", RankedSet)
    replies = [(item.prompt, text) for item in (*ranked, *heldout)[:MAX_ROWS] for text in item.responses]
    sizes = Sizes(
        num_ift=len(ift),
        num_targets=len(targets),
        num_ranked=sum(len(item.responses) for item in ranked),
        num_prompts=len(read_rows(seed.path / "prompts_heldout.parquet", Prompt)),
        num_heldout_replies=sum(len(item.responses) for item in heldout),
    )
    return SeedTexts(sizes, ift, targets, replies or [(item.prompt, item.response) for item in ift], seconds)


class Shapes:
    """Requests and examples as the run's stages make them, of the seed data's texts.

    Replies go on to the length of a seed answer, whatever the model says.
    """

    def __init__(self, config: Config, texts: SeedTexts, tokenizer: Any) -> None:
        self._config, self._texts, self.tokenizer = config, texts, tokenizer
        self._random = random.Random(0)
        self.judge = load_rubric(config.judge.rubric, "pointwise")

    def requests(self, kind: Kind, num_rows: int, shared: int, longest: int) -> list[Request]:
        """`num_rows` requests, `shared` with one prompt each, with replies of at most `longest` tokens."""
        make: dict[Kind, Callable[[int], list[tuple[Any, int]]]] = {
            "answer": self._answers,
            "judge": self._judgements,
            "compare": self._comparisons,
            "propose": self._proposals,
        }
        settings = (
            self._config.propose if kind == "propose" else self._config.sample if kind == "answer" else self._config.judge
        )
        asked = make[kind](-(-num_rows // shared))
        requests = []
        for number in range(num_rows):
            prompt, _ = asked[number // shared]
            length = asked[number % len(asked)][1]  # replies to one prompt have lengths of their own
            wanted = max(1, min(length, settings.max_tokens, longest))
            sampling = Sampling(wanted, settings.temperature, settings.top_p, ignore_eos=True)
            requests.append(Request(f"{kind}-{number}", prompt, sampling, number))
        return requests

    def mean_reply(self, kind: Kind, scale: float) -> float:
        """Tokens of a reply on average, no reply longer than its setting allows."""
        settings = (
            self._config.propose if kind == "propose" else self._config.sample if kind == "answer" else self._config.judge
        )
        lengths = [max(1.0, min(scale * length, settings.max_tokens)) for length in self._lengths(kind)]
        return sum(lengths) / len(lengths)

    def examples(self, kind: Kind, number: int) -> list[SftExample] | list[PreferencePair]:
        """Examples of a training."""
        if kind == "sft":
            return [
                SftExample(str(i), _user(item.prompt), item.response) for i, item in enumerate(self._draw(self._ift, number))
            ]
        if kind == "sft-judging":
            targets = self._draw(self._texts.targets or self._made_targets(), number)
            return [
                SftExample(str(i), judge_messages(self.judge, item.instruction, item.response), item.judgement)
                for i, item in enumerate(targets)
            ]
        assert kind == "dpo", f"{kind} trains nothing"
        drawn = self._draw(self._ift, number)
        others = [*drawn[1:], drawn[0]]
        return [
            # Two equal answers would be no pair, and dropped.
            PreferencePair(str(i), _user(a.prompt), a.response, f"{b.response}, {i}", 5.0, 1.0, f"{i}/0", f"{i}/1")
            for i, (a, b) in enumerate(zip(drawn, others, strict=True))
        ]

    def _made_targets(self) -> list[EftExample]:
        """Where no judgement is there yet: ranked replies with texts as long as judgements are taken to be."""
        (wanted,) = self._lengths("judge")
        words = " ".join(item.response for item in self._ift[:MAX_LENGTHS]).split() or ["word"]
        share = len(words) / max(1, len(self.tokenizer(" ".join(words)).input_ids))
        text = " ".join(islice(cycle(words), max(1, int(wanted * share))))
        replies = self._texts.replies[:MAX_LENGTHS]
        return [EftExample(str(i), prompt, reply, text, 3.0) for i, (prompt, reply) in enumerate(replies)]

    @property
    def _ift(self) -> Sequence[Demonstration]:
        return self._texts.ift

    def _draw(self, items: Sequence[T], number: int) -> list[T]:
        """So many of the items, at random, the same ones each time; again from the first where there are too few."""
        drawn = random.Random(0).sample(items, min(number, len(items)))
        return list(islice(cycle(drawn), number))

    def _lengths(self, kind: Kind) -> list[int]:
        """Tokens of the answers that replies of a kind are taken to be as long as, their end included."""
        if kind == "answer":
            found = [item.response for item in self._draw(self._ift, min(len(self._ift), MAX_LENGTHS))]
        elif kind == "propose":
            found = [item.prompt for item in self._draw(self._ift, min(len(self._ift), MAX_LENGTHS))]
        elif self._texts.targets:
            found = [item.judgement for item in self._draw(self._texts.targets, min(len(self._texts.targets), MAX_LENGTHS))]
        else:
            return [self._config.judge.max_tokens // 2]
        return [len(self.tokenizer(text).input_ids) + 1 for text in found]

    def _with_lengths(self, kind: Kind, prompts: Sequence[Any]) -> list[tuple[Any, int]]:
        return list(zip(prompts, islice(cycle(self._lengths(kind)), len(prompts)), strict=True))

    def _answers(self, number: int) -> list[tuple[Any, int]]:
        return self._with_lengths("answer", [_user(item.prompt) for item in self._draw(self._ift, number)])

    def _judgements(self, number: int) -> list[tuple[Any, int]]:
        drawn = self._draw(self._texts.replies, number)
        return self._with_lengths("judge", [judge_messages(self.judge, prompt, reply) for prompt, reply in drawn])

    def _comparisons(self, number: int) -> list[tuple[Any, int]]:
        rubric = load_rubric(self._config.eval.pairwise_rubric, "pairwise")
        drawn = self._draw(self._ift, number + 1)
        pairs = [pairwise_messages(rubric, a.prompt, a.response, b.response) for a, b in pairwise(drawn)]
        return self._with_lengths("compare", pairs)

    def _proposals(self, number: int) -> list[tuple[Any, int]]:
        template, config = load_rubric(self._config.propose.template, "propose"), self._config.propose
        num_shots = min(config.num_seed_shots + config.num_generated_shots, len(self._ift))
        shown = [[item.prompt for item in self._random.sample(self._ift, num_shots)] for _ in range(number)]
        return self._with_lengths("propose", [propose_prompt(template, texts) for texts in shown])


def need_hf(config: Config) -> None:
    """Raise ConfigError for an engine whose time says nothing."""
    if config.engine.name != "hf":
        raise ConfigError(f"an estimate rehearses a model, engine.name={config.engine.name!r} has none; set engine.name=hf")


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)
