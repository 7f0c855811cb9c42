"""EFT targets (paper section 3.1): what M1's judge learns to write.

In: seed targets, or human-ranked replies and the SFT baseline as their judge. Out: eft_train.parquet.
Building: the baseline judges all replies of a prompt `eft.samples` times; the first of these judgings whose scores
keep the whole human order becomes targets. Equal scores for replies that humans told apart disagree; replies that
humans tie may get any scores. Then the most frequent scores are thinned out to `eft.max_share`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations

from selfreward.artifacts import Artifact, Run, Stage, derive_seed, read_rows
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.engines.voting import JudgedText, sampled_votes
from selfreward.errors import DataError
from selfreward.judging import parse_vote
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import cast_role
from selfreward.types import Counts, Drop, EftExample, Generation, Judgement, RankedSet, Vote


def run(run: Run, judge_model: Artifact, seed: Artifact) -> Artifact:
    """Take the seed's targets over, checked, or build them from its ranked sets.

    Raises DataError when a seed target's text does not say its score, or fewer than `eft.min_targets` are left.
    """
    given = read_rows(seed.path / "eft_train.parquet", EftExample)
    ranked = read_rows(seed.path / "ranked_train.parquet", RankedSet)
    rubric = load_rubric(run.config.judge.rubric, "pointwise")
    if given or not ranked:
        return run.stage("eft", {"rubric": rubric.content_hash}, {"seed": seed}, partial(_take_over, given, rubric))
    player = cast_role("policy", judge_model, run.config)
    sections = {
        "eft": run.config.eft,
        "judge": run.config.judge.model_dump(mode="json", include={"temperature", "top_p", "max_tokens", "max_retries"}),
        "num_eft": run.config.seed.num_eft,
        "rubric": rubric.content_hash,
        "player": player.section,
    }

    def work(stage: Stage) -> Counts:
        stage.roles = {"judge": player.label}
        with open_engine(player.model, stage.config) as engine:
            votes_a_set = stage.config.eft.samples * max(len(item.responses) for item in ranked)
            size = max(1, stage.config.engine.chunk_size // votes_a_set)
            judged = stage.chunks("judgements", ranked, size, partial(judge_sets, stage, engine, rubric), Judgement)
        return _build(stage, ranked, judged)

    return run.stage("eft", sections, {"seed": seed, **player.inputs}, work)


def judge_sets(stage: Stage, engine: Engine, rubric: Rubric, sets: Sequence[RankedSet]) -> list[Judgement]:
    """`eft.samples` votes on each reply, in the order of sets and replies; a judgement's id is `<set id>/<index>`."""
    items = [JudgedText(f"{item.id}/{i}", item.prompt, text) for item in sets for i, text in enumerate(item.responses)]
    cast = sampled_votes(stage, engine, rubric, items, stage.config.eft.samples, stage.seed)
    return [Judgement(item.id, votes, None) for item, votes in zip(items, cast, strict=True)]


def keeps_order(ranks: Sequence[int], scores: Sequence[float]) -> bool:
    """Whether of any two replies that humans told apart the better one has the strictly higher score."""
    return all(
        ranks[a] == ranks[b] or (scores[a] > scores[b] if ranks[a] < ranks[b] else scores[a] < scores[b])
        for a, b in combinations(range(len(ranks)), 2)
    )


def first_agreeing(ranks: Sequence[int], votes: Sequence[Sequence[Vote]]) -> list[Vote] | str:
    """The first judging (one vote a reply) that keeps the human order, else the reason to drop the set.

    `unparsed`: no judging has a complete, scored vote on every reply; `disagrees`: some have, but with another order.
    """
    reason = "unparsed"
    for judging in zip(*votes, strict=True):
        scores = [vote.score for vote in judging if vote.score is not None and vote.finish_reason == "stop"]
        if len(scores) < len(judging):
            continue
        if keeps_order(ranks, scores):
            return list(judging)
        reason = "disagrees"
    return reason


def thin_out(scores: Mapping[str, float], max_share: float) -> set[str]:
    """Ids to drop so that no score makes up more than `max_share`; which ones depends on the ids alone.

    With too few different scores for that share (one score, a share of 0.4) they are evened out instead.
    """
    by_score: dict[float, list[str]] = {}
    for item_id, score in sorted(scores.items(), key=lambda item: derive_seed("thin-out", item[0])):
        by_score.setdefault(score, []).append(item_id)
    share = max(max_share, 1 / len(by_score)) if by_score else 1.0
    dropped: set[str] = set()
    while by_score:
        largest = max(by_score.values(), key=len)
        if len(largest) <= share * sum(map(len, by_score.values())) + 1e-9:
            break
        dropped.add(largest.pop())
    return dropped


def _build(stage: Stage, sets: Sequence[RankedSet], judged: Sequence[Judgement]) -> Counts:
    votes = {judgement.completion_id: judgement.votes for judgement in judged}
    targets: list[EftExample] = []
    drops: list[Drop] = []
    for item in sets:
        ids = [f"{item.id}/{index}" for index in range(len(item.responses))]
        kept = first_agreeing(item.ranks, [votes[reply_id] for reply_id in ids])
        if isinstance(kept, str):
            drops += [Drop(reply_id, kept, json.dumps([asdict(vote) for vote in votes[reply_id]])) for reply_id in ids]
            continue
        for reply_id, response, vote in zip(ids, item.responses, kept, strict=True):
            assert vote.score is not None
            targets.append(EftExample(reply_id, item.prompt, response, vote.text, vote.score))
    stage.notes["histogram_before"] = _histogram(targets)
    crowded = thin_out({target.id: target.score for target in targets}, stage.config.eft.max_share)
    drops += [_drop(target, "over_share") for target in targets if target.id in crowded]
    targets = [target for target in targets if target.id not in crowded]
    limit = stage.config.seed.num_eft
    drops += [_drop(target, "over_limit") for target in targets[limit:]]
    return _store(stage, targets[:limit], drops)


def _take_over(given: Sequence[EftExample], rubric: Rubric, stage: Stage) -> Counts:
    for target in given:
        vote = parse_vote(rubric, Generation(target.id, target.judgement, 0, 0, "stop"), 0)
        if vote.score is None or abs(vote.score - target.score) > 1e-6:
            found = vote.failure if vote.score is None else f"{vote.score:g}"
            raise DataError(
                f"EFT target {target.id!r}: rubric {rubric.name!r} reads {found} from its judgement, "
                f"but its score is {target.score:g}; correct the row, or set judge.rubric to its format"
            )
    return _store(stage, given, [])


def _store(stage: Stage, targets: Sequence[EftExample], drops: Sequence[Drop]) -> Counts:
    reasons = Counter(drop.reason for drop in drops)
    if len(targets) < stage.config.eft.min_targets:
        raise DataError(
            f"{len(targets)} EFT targets, eft.min_targets={stage.config.eft.min_targets}; dropped: {dict(reasons)}. "
            "Give eft.jsonl or more ranked sets, raise eft.samples, set mode=no-eft, or eft.min_targets=0 to go on"
        )
    stage.write_rows("eft_train", targets, EftExample)
    stage.reject(drops)
    stage.notes["histogram"] = _histogram(targets)
    return Counts(len(targets) + len(drops), len(targets), reasons)


def _histogram(targets: Sequence[EftExample]) -> dict[str, int]:
    return {f"{score:g}": count for score, count in sorted(Counter(target.score for target in targets).items())}


def _drop(target: EftExample, reason: str) -> Drop:
    return Drop(target.id, reason, json.dumps(asdict(target), ensure_ascii=False))
