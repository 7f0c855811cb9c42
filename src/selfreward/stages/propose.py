"""New prompts by self-instruct (paper section 2.2, appendix A.1): 8 demonstrations -> one new task, filtered.

In: IFT prompts, the prompts of earlier rounds, the proposer. Out: prompts.parquet. Proposals are asked for in batches
until `propose.num_prompts` are accepted or `propose.max_attempts` were asked. The order of the checks is the order
of the reasons: `prompt_too_long` (the demonstrations fill the context), `content_filter` (the proposer's server
withheld the reply), `truncated`, those of `filters.refuse`, `heldout`,
`copied` (one of its own demonstrations), `duplicate` (known already), `rouge_l` (too close to a known prompt), `surplus`.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from selfreward.artifacts import Artifact, Run, Stage, read_rows
from selfreward.config import ProposeConfig
from selfreward.engines import open_engine
from selfreward.engines.asking import collect, refuse_engine_failure
from selfreward.errors import DataError
from selfreward.filters import RougePool, normalise, refuse
from selfreward.judging import propose_prompt
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import cast_role, model_name
from selfreward.types import Counts, Demonstration, Drop, Generation, Prompt, RankedSet, Request, Sampling

MAX_BATCH = 256
MIN_BATCH = 16
"""Proposals asked for at a time. A constant and no setting: accepted prompts become demonstrations of the next batch."""

Ask = Callable[[Sequence[Request]], list[Generation]]


def run(run: Run, t: int, model: Artifact, seed: Artifact, previous: Sequence[Artifact]) -> Artifact:
    """Collect the round's new prompts; `previous` are the prompts of the rounds before.

    Raises DataError when not one proposal is accepted and the run needs pairs (`pair.min_pairs`).
    """
    config = run.config
    template = load_rubric(config.propose.template, "propose")
    player = cast_role(config.propose.model, model, config)
    sections = {
        "propose": config.propose.model_dump(mode="json", exclude={"model"}),
        "template": template.content_hash,
        "player": player.section,
    }
    inputs = {"seed": seed, **{artifact.key: artifact for artifact in previous}, **player.inputs}

    def work(stage: Stage) -> Counts:
        stage.roles = {"policy": model_name(model), "proposer": player.label}
        heldout = [item.text for item in read_rows(seed.path / "prompts_heldout.parquet", Prompt)]
        heldout += [item.prompt for item in read_rows(seed.path / "ranked_heldout.parquet", RankedSet)]
        earlier = [item for artifact in previous for item in read_rows(artifact.path / "prompts.parquet", Prompt)]
        collector = Collector(
            config=config.propose,
            template=template,
            prefix=f"round-{t}",
            derive_seed=stage.seed,
            seeds=[item.prompt for item in read_rows(seed.path / "ift.parquet", Demonstration)],
            earlier=[item.text for item in earlier],
            heldout=frozenset(map(normalise, heldout)),
        )
        with open_engine(player.model, config) as engine:
            collector.collect(
                lambda requests: stage.chunks("proposals", requests, len(requests), partial(collect, stage, engine), Generation)
            )
        return _store(stage, collector)

    return run.stage(f"round-{t}/prompts", sections, inputs, work)


@dataclass
class Collector:
    """The state of one collection: what was asked, what was accepted, what everything is compared with."""

    config: ProposeConfig
    template: Rubric
    prefix: str
    derive_seed: Callable[..., int]
    seeds: Sequence[str]
    earlier: Sequence[str]
    heldout: frozenset[str]
    accepted: list[Prompt] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    num_asked: int = 0

    def __post_init__(self) -> None:
        self._known = {normalise(text) for text in (*self.seeds, *self.earlier)}
        self._pool = RougePool((*self.seeds, *self.earlier))

    def collect(self, ask: Ask) -> None:
        """Ask and filter until there are enough prompts or no attempts left."""
        while self.missing and self.num_asked < self.config.max_attempts:
            size = min(self._batch_size(), self.config.max_attempts - self.num_asked)
            shown = [self.demonstrations(f"{self.prefix}-{self.num_asked + index}") for index in range(size)]
            replies = ask([self._request(f"{self.prefix}-{self.num_asked + i}", texts) for i, texts in enumerate(shown)])
            self.num_asked += size
            self._take(shown, [refuse_engine_failure(reply) for reply in replies])

    def _batch_size(self) -> int:
        """About as many proposals as the missing prompts need, going by the share accepted so far (at first: half)."""
        share = len(self.accepted) / self.num_asked if self.num_asked else 0.5
        return min(max(math.ceil(self.missing / max(share, 1 / MAX_BATCH)), MIN_BATCH), MAX_BATCH)

    @property
    def missing(self) -> int:
        """How many prompts are still wanted."""
        return self.config.num_prompts - len(self.accepted)

    def demonstrations(self, proposal_id: str) -> list[str]:
        """The prompts shown for one proposal: some of IFT, some generated ones, in random order."""
        rng = random.Random(self.derive_seed("demonstrations", proposal_id))
        generated = [*self.earlier, *(prompt.text for prompt in self.accepted)]
        shots = rng.sample(generated, min(self.config.num_generated_shots, len(generated)))
        num_seeds = self.config.num_seed_shots + self.config.num_generated_shots - len(shots)
        shots += rng.sample(self.seeds, min(num_seeds, len(self.seeds)))
        rng.shuffle(shots)
        return shots

    def _request(self, proposal_id: str, shown: Sequence[str]) -> Request:
        sampling = Sampling(self.config.max_tokens, self.config.temperature, self.config.top_p, stop=self.template.stop)
        return Request(proposal_id, propose_prompt(self.template, shown), sampling, self.derive_seed(proposal_id))

    def _take(self, shown: Sequence[Sequence[str]], replies: Sequence[Generation]) -> None:
        """Filter one batch: first each proposal alone, then by likeness to what is known."""
        fresh: list[tuple[Prompt, str]] = []
        in_batch: set[str] = set()
        for demonstrations, reply in zip(shown, replies, strict=True):
            text = self.template.read_proposal(reply.text)
            reason = self._reason(reply, text, demonstrations)
            if reason is None and normalise(text) in in_batch:
                reason = "duplicate"
            if reason is None:
                in_batch.add(normalise(text))
                fresh.append((Prompt(reply.request_id, text, "self_instruct"), reply.text))
            else:
                self._drop(reply.request_id, reason, reply.text)
        far = self._pool.admit([prompt.text for prompt, _ in fresh], self.config.max_rouge_l)
        for (prompt, reply_text), is_far in zip(fresh, far, strict=True):
            if not is_far:
                self._drop(prompt.id, "rouge_l", reply_text)
            elif not self.missing:
                self._drop(prompt.id, "surplus", reply_text)
            else:
                self.accepted.append(prompt)
                self._known.add(normalise(prompt.text))

    def _reason(self, reply: Generation, text: str, demonstrations: Sequence[str]) -> str | None:
        """Why a proposal is refused before its likeness is looked at, or None."""
        if reply.finish_reason == "error":
            return "prompt_too_long" if reply.error == "too_long" else reply.error
        if reply.finish_reason == "length":
            return "truncated"
        key = normalise(text)
        reason = refuse(text, self.config)
        if reason is None and key in self.heldout:
            reason = "heldout"
        if reason is None and key in set(map(normalise, demonstrations)):
            reason = "copied"
        if reason is None and key in self._known:
            reason = "duplicate"
        return reason

    def _drop(self, proposal_id: str, reason: str, reply_text: str) -> None:
        self.drops.append(Drop(proposal_id, reason, json.dumps(reply_text, ensure_ascii=False)))


def _store(stage: Stage, collector: Collector) -> Counts:
    reasons = Counter(drop.reason for drop in collector.drops)
    if not collector.accepted and stage.config.pair.min_pairs:
        raise DataError(
            f"{stage.key}: none of {collector.num_asked} proposals was accepted, refused: {dict(reasons.most_common())}; see "
            "propose.* (template, max_tokens, max_rouge_l, max_attempts), or set pair.min_pairs=0 to go on without pairs"
        )
    assert not collector.heldout & {normalise(prompt.text) for prompt in collector.accepted}, "held-out prompt accepted"
    stage.write_rows("prompts", collector.accepted, Prompt)
    stage.reject(collector.drops)
    stage.notes |= {
        "template": collector.template.name,
        "num_attempts": collector.num_asked,
        "acceptance_rate": len(collector.accepted) / max(collector.num_asked, 1),
        "stopped_by": "max_attempts" if collector.missing else "num_prompts",
        "num_shots": len(collector.demonstrations("example")),
    }
    return Counts(collector.num_asked, len(collector.accepted), reasons)
