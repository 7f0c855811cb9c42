"""New prompts for a round, filtered: by self-instruct (paper section 2.2, appendix A.1), or from a user's file.

In: IFT prompts, the prompts of earlier rounds, and who writes new ones: a model that is shown 8 demonstrations and
asked for one new task, or the next rows of `propose.path`. Out: prompts.parquet. Proposals are looked at in batches
until `propose.num_prompts` are accepted, `propose.max_attempts` were looked at, or the file has no more rows; the
record's `stopped_by` says which. The order of the checks is the order of the reasons: `prompt_too_long` (the
demonstrations fill the context), `content_filter` (the proposer's server withheld the reply), `truncated`, those of
`filters.refuse`, `heldout` (a held-out prompt, or as close to one as no prompt of another split may be:
`seed.max_overlap`), `copied` (one of its own demonstrations), `duplicate` (known already), `rouge_l` (too close to a known
prompt), `surplus`.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from selfreward.artifacts import REJECTS, Artifact, Run, Stage, fingerprint, hash_file, read_rows
from selfreward.config import ProposeConfig
from selfreward.engines import open_engine
from selfreward.engines.asking import collect, refuse_engine_failure
from selfreward.errors import DataError
from selfreward.filters import RougePool, normalise, read_unsafe_words, refuse
from selfreward.judging import propose_prompt
from selfreward.progress import NO_STEPS, Advance, Steps
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._prompt_file import PromptRow, read_prompt_file
from selfreward.stages._roles import cast_role, model_name
from selfreward.stopping import Stop
from selfreward.types import Counts, Demonstration, Drop, Generation, Prompt, RankedSet, Request, Sampling

MAX_BATCH = 256
MIN_BATCH = 16
"""Proposals asked for at a time. A constant and no setting: accepted prompts become demonstrations of the next batch."""

Ask = Callable[[Sequence[Request]], list[Generation]]


StoppedBy = Literal["num_prompts", "max_attempts", "pool_exhausted"]
"""Why a collection ended."""
_ROW_PREFIX = "file-"
"""A prompt from the file has the id `file-LINE`: later rounds go on behind it."""
_SAMPLING_FIELDS = {"template", "num_seed_shots", "num_generated_shots", "temperature", "top_p", "max_tokens"}
"""Settings that decide nothing where no model is asked."""


def run(run: Run, t: int, model: Artifact, seed: Artifact, previous: Sequence[Artifact]) -> Artifact:
    """Collect the round's new prompts; `previous` are the prompts of the rounds before.

    Raises DataError when not one proposal is accepted and the run needs pairs (`pair.min_pairs`).
    """
    key = f"round-{t}/prompts"
    inputs = {"seed": seed, **{artifact.key: artifact for artifact in previous}}
    if run.config.propose.source == "file":
        return run.stage(key, _file_sections(run.config.propose), inputs, partial(_read, seed, previous))
    template = load_rubric(run.config.propose.template, "propose")
    player = cast_role(run.config.propose.model, model, run.config)
    sections = {
        "propose": _filter_section(run.config.propose, {"model"}),
        "template": template.content_hash,
        "player": player.section,
    }

    def work(stage: Stage) -> Counts:
        stage.roles = {"policy": model_name(model), "proposer": player.label}
        collector = _open_collector(stage, template, f"round-{t}", seed, previous)
        with (
            open_engine(player.model, stage.config) as engine,
            stage.run.progress.task(f"{stage.key}: accepted", stage.config.propose.num_prompts) as steps,
        ):

            def ask(requests: Sequence[Request]) -> list[Generation]:
                work = partial(collect, stage, engine)
                return stage.chunks("proposals", requests, len(requests), work, Generation, is_shown=False)

            collector.collect(ask, _counting(stage, steps))
        shots = {"template": template.name, "num_shots": len(collector.demonstrations("example"))}
        return _store(stage, collector, shots)

    return run.stage(key, sections, {**inputs, **player.inputs}, work)


def _counting(stage: Stage, steps: Steps) -> Advance:
    """Tells how many more are accepted: as found, where the proposals were there before."""
    num_found = 0

    def advance(count: int) -> None:
        nonlocal num_found
        (steps.found if stage.num_found > num_found else steps)(count)
        num_found = stage.num_found

    return advance


def _read(seed: Artifact, previous: Sequence[Artifact], stage: Stage) -> Counts:
    """The file's next rows: behind those that earlier rounds looked at, whether they accepted them or not."""
    config = stage.config.propose
    path = config.path or ""
    seen = [item.id for artifact in previous for item in read_rows(artifact.path / "prompts.parquet", Prompt)]
    seen += [item.id for artifact in previous for item in read_rows(artifact.path / f"{REJECTS}.parquet", Drop)]
    after = max((int(name.removeprefix(_ROW_PREFIX)) for name in seen), default=0)
    stage.roles = {"proposer": f"file {Path(path).name}"}
    template = load_rubric(config.template, "propose")
    collector = _open_collector(stage, template, _ROW_PREFIX, seed, previous)
    with stage.run.progress.task(f"{stage.key}: accepted", config.num_prompts) as advance:
        collector.collect_rows(_until_stopped(read_prompt_file(path, after), stage.run.stop), advance)
    return _store(stage, collector, {"path": path, "after_line": after})


def _until_stopped(rows: Iterable[PromptRow], stop: Stop) -> Iterator[PromptRow]:
    """The rows, as long as nobody wants the run to stop: no chunk looks where no model is asked."""
    for row in rows:
        stop.check()
        yield row


def _filter_section(config: ProposeConfig, exclude: set[str]) -> dict[str, Any]:
    """Settings that decide which proposals are accepted; files by their content."""
    section = config.model_dump(mode="json", exclude={*exclude, "path", "unsafe_words_file"})
    words = config.unsafe_words_file and fingerprint(read_unsafe_words(config.unsafe_words_file))
    return {**section, "unsafe_words": words}


def _file_sections(config: ProposeConfig) -> dict[str, Any]:
    read_prompt_file(config.path or "")
    return {
        "propose": _filter_section(config, {"model", *_SAMPLING_FIELDS}),
        "pool": hash_file(Path(config.path or "").expanduser()),
    }


def _open_collector(stage: Stage, template: Rubric, prefix: str, seed: Artifact, previous: Sequence[Artifact]) -> "Collector":
    heldout = [item.text for item in read_rows(seed.path / "prompts_heldout.parquet", Prompt)]
    heldout += [item.prompt for item in read_rows(seed.path / "ranked_heldout.parquet", RankedSet)]
    earlier = [item for artifact in previous for item in read_rows(artifact.path / "prompts.parquet", Prompt)]
    return Collector(
        config=stage.config.propose,
        template=template,
        prefix=prefix,
        derive_seed=stage.seed,
        seeds=[item.prompt for item in read_rows(seed.path / "ift.parquet", Demonstration)],
        earlier=[item.text for item in earlier],
        heldout=heldout,
        max_overlap=stage.config.seed.max_overlap,
    )


@dataclass(frozen=True, slots=True)
class Proposal:
    """A prompt that someone proposed. `said` is the whole reply or row; `failure` is the reason where there is no prompt
    to look at; `demonstrations` are what the proposer was shown."""

    prompt: Prompt
    said: str
    failure: str | None = None
    demonstrations: Sequence[str] = ()


@dataclass
class Collector:
    """The state of one collection: what was asked, what was accepted, what everything is compared with."""

    config: ProposeConfig
    template: Rubric
    prefix: str
    derive_seed: Callable[..., int]
    seeds: Sequence[str]
    earlier: Sequence[str]
    heldout: Sequence[str]
    max_overlap: float = 1.0
    accepted: list[Prompt] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    num_asked: int = 0
    is_exhausted: bool = False

    def __post_init__(self) -> None:
        self._known = {normalise(text) for text in (*self.seeds, *self.earlier)}
        self._pool = RougePool((*self.seeds, *self.earlier))
        self._heldout = frozenset(map(normalise, self.heldout))
        self._heldout_pool = RougePool(self.heldout)

    def collect(self, ask: Ask, advance: Advance = NO_STEPS) -> None:
        """Ask and filter until there are enough prompts or no attempts left; `advance` counts accepted prompts."""
        while self.missing and self.num_asked < self.config.max_attempts:
            size = min(self._batch_size(), self.config.max_attempts - self.num_asked)
            shown = [self.demonstrations(f"{self.prefix}-{self.num_asked + index}") for index in range(size)]
            replies = ask([self._request(f"{self.prefix}-{self.num_asked + i}", texts) for i, texts in enumerate(shown)])
            self.num_asked += size
            replies = [refuse_engine_failure(reply) for reply in replies]
            advance(self._take([self._read(reply, texts) for reply, texts in zip(replies, shown, strict=True)]))

    def collect_rows(self, rows: Iterable[PromptRow], advance: Advance = NO_STEPS) -> None:
        """Filter rows of a file until there are enough prompts, no attempts or no rows left.

        Never more rows at a time than prompts are missing, so that none is used up as surplus.
        """
        rows = iter(rows)
        while self.missing and self.num_asked < self.config.max_attempts:
            size = min(self.missing, MAX_BATCH, self.config.max_attempts - self.num_asked)
            batch = list(islice(rows, size))
            if not batch:
                self.is_exhausted = True
                return
            self.num_asked += len(batch)
            advance(
                self._take([Proposal(Prompt(f"{self.prefix}{row.line}", row.text.strip(), "file"), row.text) for row in batch])
            )

    @property
    def stopped_by(self) -> StoppedBy:
        """Why the collection ended."""
        if not self.missing:
            return "num_prompts"
        return "pool_exhausted" if self.is_exhausted else "max_attempts"

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

    def _read(self, reply: Generation, shown: Sequence[str]) -> Proposal:
        """The task in a reply, or why there is none."""
        failure = None
        if reply.finish_reason == "error":
            failure = "prompt_too_long" if reply.error == "too_long" else reply.error
        elif reply.finish_reason == "length" and not self.template.is_closed(reply.text):
            failure = "truncated"
        text = self.template.read_proposal(reply.text)
        return Proposal(Prompt(reply.request_id, text, "self_instruct"), reply.text, failure, shown)

    def _take(self, proposals: Sequence[Proposal]) -> int:
        """Filter one batch, first each proposal alone, then by likeness to what is known; how many were accepted."""
        fresh: list[Proposal] = []
        in_batch: set[str] = set()
        before = len(self.accepted)
        for proposal in proposals:
            key = normalise(proposal.prompt.text)
            reason = self._reason(proposal, key)
            if reason is None and key in in_batch:
                reason = "duplicate"
            if reason is None:
                in_batch.add(key)
                fresh.append(proposal)
            else:
                self._drop(proposal, reason)
        far = self._pool.admit([proposal.prompt.text for proposal in fresh], self.config.max_rouge_l)
        for proposal, is_far in zip(fresh, far, strict=True):
            if not is_far:
                self._drop(proposal, "rouge_l")
            elif not self.missing:
                self._drop(proposal, "surplus")
            else:
                self.accepted.append(proposal.prompt)
                self._known.add(normalise(proposal.prompt.text))
        return len(self.accepted) - before

    def _reason(self, proposal: Proposal, key: str) -> str | None:
        """Why a proposal is refused before its likeness is looked at, or None."""
        reason = proposal.failure or refuse(proposal.prompt.text, self.config)
        if reason is None and self.is_heldout(proposal.prompt.text):
            reason = "heldout"
        if reason is None and key in set(map(normalise, proposal.demonstrations)):
            reason = "copied"
        if reason is None and key in self._known:
            reason = "duplicate"
        return reason

    def is_heldout(self, text: str) -> bool:
        """Whether a text counts as one of the held-out prompts, by the rule that keeps the seed's splits apart."""
        if normalise(text) in self._heldout:
            return True
        return self.max_overlap < 1 and self._heldout_pool.overlapping([text], self.max_overlap)[0]

    def _drop(self, proposal: Proposal, reason: str) -> None:
        self.drops.append(Drop(proposal.prompt.id, reason, json.dumps(proposal.said, ensure_ascii=False)))


def _store(stage: Stage, collector: Collector, notes: Mapping[str, Any]) -> Counts:
    reasons = Counter(drop.reason for drop in collector.drops)
    if not collector.accepted and stage.config.pair.min_pairs:
        raise DataError(_none_accepted(stage, collector, reasons))
    assert not any(collector.is_heldout(prompt.text) for prompt in collector.accepted), "held-out prompt accepted"
    stage.write_rows("prompts", collector.accepted, Prompt)
    stage.reject(collector.drops)
    stage.notes |= {
        "source": collector.config.source,
        "num_attempts": collector.num_asked,
        "acceptance_rate": len(collector.accepted) / max(collector.num_asked, 1),
        "stopped_by": collector.stopped_by,
        **notes,
    }
    if collector.missing:
        said = {"accepted": len(collector.accepted), "asked": collector.num_asked, "stopped_by": collector.stopped_by}
        stage.logger.warning("fewer prompts than propose.num_prompts", extra={"data": {"stage": stage.key, **said}})
    return Counts(collector.num_asked, len(collector.accepted), reasons)


def _none_accepted(stage: Stage, collector: Collector, reasons: Counter[str]) -> str:
    escape = "or set pair.min_pairs=0 to go on without pairs"
    if stage.config.propose.source == "self-instruct":
        return (
            f"{stage.key}: none of {collector.num_asked} proposals was accepted, refused: {dict(reasons.most_common())}; see "
            f"propose.* (template, max_tokens, max_rouge_l, max_attempts), {escape}"
        )
    what = f"{stage.key}: propose.path={stage.config.propose.path!r}"
    if not collector.num_asked:
        return f"{what} has no rows left after the earlier rounds; add rows, lower propose.num_prompts or num_rounds, {escape}"
    return (
        f"{what}: none of {collector.num_asked} rows was accepted, refused: {dict(reasons.most_common())}; see propose.* "
        f"(max_rouge_l, min_words, max_words, banned_words, max_attempts), {escape}"
    )
