"""EFT targets (paper section 3.1): what M1's judge learns to write.

In: ready targets, human-ranked replies and the SFT baseline as their judge, or both. Out: eft_train.parquet, the ready
targets first, then built ones up to `seed.num_eft`.
Building: the baseline judges all replies of a prompt `eft.samples` times; of these judgings the one that agrees with the
human order on most replies (the first of them) gives its justifications and scores as targets, for the replies on which
it agrees (`eft.agreement`, `eft.ties`; docs/decisions/0002). Then the most frequent scores are thinned out to
`eft.max_share`. Dropped replies: `unparsed`, `sibling_unparsed`, `disagrees`, `uncompared`, `over_share`, `over_limit`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations

from selfreward.artifacts import Artifact, Run, Stage, derive_seed, read_rows
from selfreward.config import EftConfig
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.engines.voting import JudgedText, sampled_votes
from selfreward.errors import DataError
from selfreward.judging import check_targets
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import cast_role
from selfreward.types import Counts, Drop, EftExample, Judgement, RankedSet, Vote


def run(run: Run, judge_model: Artifact, seed: Artifact) -> Artifact:
    """Take the seed's targets over, checked, and build more from its ranked sets.

    Raises DataError when a seed target's text does not say its score, or fewer than `eft.min_targets` are left.
    """
    given = read_rows(seed.path / "eft_train.parquet", EftExample)
    ranked = read_rows(seed.path / "ranked_train.parquet", RankedSet)
    rubric = load_rubric(run.config.judge.rubric, "pointwise")
    if not ranked:
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
        check_targets(rubric, given)
        with open_engine(player.model, stage.config) as engine:
            votes_a_set = stage.config.eft.samples * max(len(item.responses) for item in ranked)
            size = max(1, stage.config.engine.chunk_size // votes_a_set)
            judged = stage.chunks("judgements", ranked, size, partial(judge_sets, stage, engine, rubric), Judgement)
        return _build(stage, given, ranked, judged)

    return run.stage("eft", sections, {"seed": seed, **player.inputs}, work)


def judge_sets(stage: Stage, engine: Engine, rubric: Rubric, sets: Sequence[RankedSet]) -> list[Judgement]:
    """`eft.samples` votes on each reply, in the order of sets and replies; a judgement's id is `<set id>/<index>`."""
    items = [JudgedText(f"{item.id}/{i}", item.prompt, text) for item in sets for i, text in enumerate(item.responses)]
    cast = sampled_votes(stage, engine, rubric, items, stage.config.eft.samples, stage.seed)
    return [Judgement(item.id, votes, None) for item, votes in zip(items, cast, strict=True)]


def agreement(ranks: Sequence[int], scores: Sequence[float | None], config: EftConfig) -> list[str | None]:
    """What one judging says of each reply: None where it agrees with the human order, else the reason why it is no target.

    Compared are the pairs that humans told apart and that both have a score. A reply agrees where no pair of it is
    wrong and one at least is right. With `eft.agreement=whole-order` the replies stand and fall together. Reasons:
    `unparsed` (no score), `sibling_unparsed` (another reply of the whole order has none), `disagrees`, `uncompared`
    (no pair of it says anything).
    """
    right, wrong = [0] * len(ranks), [0] * len(ranks)
    for a, b in combinations(range(len(ranks)), 2):
        first, second = scores[a], scores[b]
        if ranks[a] == ranks[b] or first is None or second is None:
            continue
        if first == second and config.ties == "allow":
            continue
        # A tie is wrong here: the better one's score is not above the other's.
        counted = right if first != second and (first > second) == (ranks[a] < ranks[b]) else wrong
        counted[a] += 1
        counted[b] += 1
    if config.agreement == "whole-order":
        if None in scores:
            return ["unparsed" if score is None else "sibling_unparsed" for score in scores]
        lost = "disagrees" if any(wrong) else None if any(right) else "uncompared"
        return [lost] * len(ranks)
    return [
        "unparsed" if score is None else "disagrees" if wrong[reply] else None if right[reply] else "uncompared"
        for reply, score in enumerate(scores)
    ]


def best_judging(
    ranks: Sequence[int], votes: Sequence[Sequence[Vote]], config: EftConfig
) -> tuple[Sequence[Vote], list[str | None]]:
    """The k-th votes of all replies for the k that agrees on most replies, and what they say of each (see `agreement`).

    `votes[i]` are the votes on reply i. At equal numbers the judging with more scores wins, then the first one. A vote
    that was cut short has no score here: its text is no target.
    """
    judgings = list(zip(*votes, strict=True))
    scores = [[vote.score if vote.finish_reason == "stop" else None for vote in judging] for judging in judgings]
    found = [agreement(ranks, row, config) for row in scores]
    best = max(range(len(judgings)), key=lambda k: (found[k].count(None), -scores[k].count(None), -k))
    return judgings[best], found[best]


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


def select(scores: Mapping[str, float], limit: int, max_share: float) -> dict[str, str]:
    """Id -> why it is dropped, so that at most `limit` are left and `thin_out` would drop none of them.

    Where the limit cuts, the first of each score stay: a cut through the file alone would let a score that is frequent
    at its beginning exceed its share. `over_share`: its score has its share; `over_limit`: the limit is reached.
    """
    lost = dict.fromkeys(thin_out(scores, max_share), "over_share")
    left = {item_id: score for item_id, score in scores.items() if item_id not in lost}
    if len(left) > limit:
        share = max(max_share, 1 / len(set(left.values())))
        most = max(1, int(share * limit + 1e-9))
        counts: Counter[float] = Counter()
        for item_id, score in left.items():
            if counts.total() >= limit or counts[score] >= most:
                lost[item_id] = "over_limit" if counts.total() >= limit else "over_share"
            else:
                counts[score] += 1
        left = {item_id: score for item_id, score in left.items() if item_id not in lost}
        # The share of the limit is rounded, and scores that came too late are missing.
        lost |= dict.fromkeys(thin_out(left, max_share), "over_share")
        left = {item_id: score for item_id, score in left.items() if item_id not in lost}
    assert len(left) <= limit, f"{len(left)} targets for a limit of {limit}"
    assert not thin_out(left, max_share), f"a score exceeds eft.max_share={max_share}: {Counter(left.values())}"
    return lost


def _build(stage: Stage, given: Sequence[EftExample], sets: Sequence[RankedSet], judged: Sequence[Judgement]) -> Counts:
    votes = {judgement.completion_id: judgement.votes for judgement in judged}
    targets: list[EftExample] = []
    drops: list[Drop] = []
    num_whole = 0
    for item in sets:
        ids = [f"{item.id}/{index}" for index in range(len(item.responses))]
        judging, lost = best_judging(item.ranks, [votes[reply_id] for reply_id in ids], stage.config.eft)
        num_whole += not any(lost)
        for reply_id, response, vote, reason in zip(ids, item.responses, judging, lost, strict=True):
            if reason:
                drops.append(Drop(reply_id, reason, json.dumps([asdict(v) for v in votes[reply_id]], ensure_ascii=False)))
            else:
                assert vote.score is not None, "a reply without a score agrees with nothing"
                targets.append(EftExample(reply_id, item.prompt, response, vote.text, vote.score))
    stage.notes |= {
        "num_ready": len(given),
        "num_sets": len(sets),
        "num_sets_kept_whole": num_whole,
        "histogram_before": _histogram(targets),
    }
    scores = {target.id: target.score for target in targets}
    lost_ids = select(scores, max(0, stage.config.seed.num_eft - len(given)), stage.config.eft.max_share)
    drops += [_drop(target, lost_ids[target.id]) for target in targets if target.id in lost_ids]
    return _store(stage, [*given, *(target for target in targets if target.id not in lost_ids)], drops)


def _take_over(given: Sequence[EftExample], rubric: Rubric, stage: Stage) -> Counts:
    check_targets(rubric, given)
    return _store(stage, given, [])


def _store(stage: Stage, targets: Sequence[EftExample], drops: Sequence[Drop]) -> Counts:
    reasons = Counter(drop.reason for drop in drops)
    if len(targets) < stage.config.eft.min_targets:
        raise DataError(
            f"{len(targets)} EFT targets, eft.min_targets={stage.config.eft.min_targets}; dropped: {dict(reasons)}. "
            "Give ready EFT targets or more ranked sets, raise eft.samples, set eft.agreement=pairwise, set mode=no-eft, or "
            "eft.min_targets=0 to go on"
        )
    stage.write_rows("eft_train", targets, EftExample)
    stage.reject(drops)
    stage.notes["histogram"] = _histogram(targets)
    return Counts(len(targets) + len(drops), len(targets), reasons)


def _histogram(targets: Sequence[EftExample]) -> dict[str, int]:
    return {f"{score:g}": count for score, count in sorted(Counter(target.score for target in targets).items())}


def _drop(target: EftExample, reason: str) -> Drop:
    return Drop(target.id, reason, json.dumps(asdict(target), ensure_ascii=False))
