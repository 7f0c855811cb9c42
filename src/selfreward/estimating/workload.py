"""What a run will ask of its models, counted from the config and the seed data. Pure: no model is loaded.

A run is a list of stages; a stage is a list of jobs, each of one kind that a rehearsal measures. What nobody can know
before the run (how long replies get, how many proposals and pairs pass) stands in `Assumptions`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfreward.config import FIRST, POLICY, SCRIPTED_PREFIX, Config, endpoint_name
from selfreward.texts import counted

Kind = Literal["answer", "judge", "compare", "propose", "sft", "sft-judging", "dpo", "open", "setup", "filter", "figures"]
"""`answer`, `judge`, `compare`, `propose`: rows are replies. `sft`: rows are instruction examples, `sft-judging`: examples
whose answer is a judgement, `dpo`: pairs; each row once for each epoch. `open`: loading an engine's model; `setup`: what a
training does before its steps; `filter`: comparisons of a proposal with a known prompt; `figures`: bootstrapped figures."""


@dataclass(frozen=True, slots=True)
class Job:
    """`num_rows` of a kind. `shared`: rows that share one prompt. `model`: who works where it is not the policy.
    `weighs`: rows whose prompt is read to weigh the scores behind it, besides the reply that it `writes`."""

    kind: Kind
    num_rows: float
    shared: int = 1
    model: str = POLICY
    weighs: bool = False
    writes: bool = True
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage of a run, and how often it comes (once, or in every round)."""

    key: str
    jobs: tuple[Job, ...]
    times: int = 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the seed data holds. `num_ranked`: human-ranked replies that EFT targets are built of."""

    num_ift: int
    num_targets: int
    num_ranked: int
    num_prompts: int
    num_heldout_replies: int


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What only the run will tell. `reply_scale`: how long replies are, compared with those of the seed data;
    `accepted`: share of the proposals that pass the filters; `paired`: share of the prompts that give a pair;
    `target_share`: share of the ranked replies that become EFT targets; `speed`: of the models, compared with the
    rehearsal."""

    reply_scale: float = 1.0
    accepted: float = 0.8
    paired: float = 0.6
    target_share: float = 0.5
    speed: float = 1.0

    def lines(self, config: Config, sizes: Sizes) -> Iterator[str]:
        """Those that matter for these settings, as sentences."""
        if config.num_rounds and config.propose.source == "self-instruct":
            yield f"{self.accepted:.0%} of the proposals pass the filters"
        if config.num_rounds:
            yield f"{self.paired:.0%} of the prompts give a preference pair"
        if sizes.num_ranked and config.mode == "self-rewarding":
            yield f"{self.target_share:.0%} of {counted(sizes.num_ranked, 'ranked reply', 'ranked replies')} become EFT targets"


LOW = Assumptions(reply_scale=0.8, accepted=1.0, paired=0.4, target_share=0.3, speed=1.15)
HIGH = Assumptions(reply_scale=1.25, accepted=0.5, paired=0.9, target_share=0.8, speed=0.85)
"""The ends of the range that an estimate shows."""
NUM_FIGURES = 24
"""Figures of an evaluation with an interval, about."""


def plan_run(config: Config, sizes: Sizes, assumed: Assumptions) -> list[Planned]:
    """The stages that cost time, in the order of the pipeline; those of the rounds once, with their number."""
    targets = 0.0
    stages = [
        _training("sft", [Job("sft", sizes.num_ift, epochs=config.sft.num_epochs)]),
        Planned("sft/evals", tuple(_evaluation(config, sizes, has_previous=False))),
    ]
    if config.mode == "self-rewarding":
        targets = min(config.seed.num_eft, sizes.num_targets + assumed.target_share * sizes.num_ranked)
        judged = Job("judge", sizes.num_ranked * config.eft.samples, shared=config.eft.samples)
        if sizes.num_ranked:
            stages.append(Planned("eft", (Job("open", 1), judged)))
    examples = [Job("sft", sizes.num_ift, epochs=config.sft.num_epochs)]
    examples += [Job("sft-judging", targets, epochs=config.sft.num_epochs)] if targets else []
    stages.append(_training("m1", examples))
    stages.append(Planned("m1/evals", tuple(_evaluation(config, sizes, has_previous=True))))
    return stages + [replace(stage, times=config.num_rounds) for stage in _round(config, sizes, assumed, targets)]


def _round(config: Config, sizes: Sizes, assumed: Assumptions, targets: float) -> Iterator[Planned]:
    if not config.num_rounds:
        return
    num_prompts = config.propose.num_prompts
    asked = min(num_prompts / assumed.accepted, config.propose.max_attempts)
    known = sizes.num_ift + num_prompts * config.num_rounds / 2  # of IFT, of earlier rounds, and of half this one
    proposals = [Job("filter", asked * known)]
    if config.propose.source == "self-instruct":
        proposals += [_open(config.propose.model), Job("propose", asked, model=_player(config.propose.model))]
    yield Planned("round/prompts", tuple(proposals))
    num_replies = num_prompts * config.sample.num_candidates
    yield Planned("round/samples", (Job("open", 1), Job("answer", num_replies, shared=config.sample.num_candidates)))
    yield Planned("round/judgements", tuple(_judging(config, num_replies)))
    num_pairs, learned = assumed.paired * num_prompts, min(config.replay.num_items, targets)
    replayed = config.replay.method if config.replay.num_items and targets else None
    judgement_pairs = 0.0
    if replayed == "pairs":
        votes = Job("judge", learned * config.replay.num_votes, shared=config.replay.num_votes)
        yield Planned("round/replay", (Job("open", 1), votes))
        judgement_pairs = assumed.paired * learned * config.replay.max_pairs_per_item
    kind: Kind = "sft" if config.dpo.method == "positives-only" else "dpo"
    jobs = [Job(kind, num_pairs, epochs=config.dpo.num_epochs)]
    if judgement_pairs:  # a pair of judgements is as long as two examples of judging
        jobs.append(Job("sft-judging", 2 * judgement_pairs, epochs=config.dpo.num_epochs))
    trained = _training("round/model", jobs)
    if replayed == "sft":
        again = _training("round/model", [Job("sft-judging", learned), Job("sft", num_pairs)])
        trained = Planned(trained.key, (*trained.jobs, *again.jobs))
    yield trained
    yield Planned("round/evals", tuple(_evaluation(config, sizes, has_previous=True)))


def _judging(config: Config, num_replies: float) -> Iterator[Job]:
    """The votes of a panel's members; no model is loaded twice."""
    seats = config.judge.members
    yield from (_open(model) for model in dict.fromkeys(seat.model for seat in seats))
    for seat in seats:
        yield _votes(config, num_replies, seat.num_votes, seat.model)


def _votes(config: Config, num_replies: float, num_votes: int, model: str = POLICY) -> Job:
    expected = config.judge.mode == "expected"
    if expected and not config.judge.justify:
        return Job("judge", num_replies, model=_player(model), weighs=True, writes=False)
    return Job("judge", num_replies * num_votes, shared=num_votes, model=_player(model), weighs=expected)


def _evaluation(config: Config, sizes: Sizes, has_previous: bool) -> Iterator[Job]:
    yield Job("open", 1)
    yield Job("answer", 2 * sizes.num_prompts)
    yield _votes(config, sizes.num_heldout_replies, config.eval.num_votes)
    if has_previous and config.eval.head_to_head == "policy":
        yield Job("compare", 2 * sizes.num_prompts)
    yield Job("figures", NUM_FIGURES)


def _training(key: str, jobs: Sequence[Job]) -> Planned:
    return Planned(key, (Job("setup", 1), *jobs))


def _open(model: str) -> Job:
    return Job("open", 1, model=_player(model))


def _player(model: str) -> str:
    """The run's own M1 costs what the policy costs."""
    return POLICY if model == FIRST else model


def foreign_players(config: Config) -> list[str]:
    """Models of roles that are neither the policy nor a folder: their tokens can be told, their time cannot."""
    models = [seat.model for seat in config.judge.members]
    models += [config.propose.model] if config.propose.source == "self-instruct" else []
    return [model for model in dict.fromkeys(map(_player, models)) if is_foreign(model)]


def is_foreign(model: str) -> bool:
    """Whether a role's model is an endpoint or a script."""
    return model.startswith(SCRIPTED_PREFIX) or endpoint_name(model) is not None
