"""Judge training inside a round (an option, not in the paper).

In: EFT targets, M_t. Out, with `replay.method=sft`: examples.parquet, the EFT items that the round fine-tunes on after DPO.
Out, with `replay.method=pairs`: pairs.parquet with kind `judgement`: a right judgement over a vote of M_t on the same response
whose score is wrong by `replay.min_score_gap` or more. Right is the seed target, or (`replay.chosen=vote`) M_t's own vote
with the target's score. A vote without a score, or cut by the token limit, is not used.
Dropped items: `no_valid_vote`, `agrees` (all valid votes are near the target). Different wrong votes of an item beyond
`replay.max_pairs_per_item` make no pair; the notes count them as `num_pairs_over_limit`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from selfreward.artifacts import Artifact, Run, Stage, derive_seed, read_rows
from selfreward.config import ReplayConfig
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.engines.voting import JudgedText, sampled_votes
from selfreward.judging import judge_messages
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import cast_role
from selfreward.types import Counts, Drop, EftExample, Judgement, PreferencePair


def run(run: Run, t: int, model: Artifact, eft: Artifact) -> Artifact:
    """Draw the round's EFT items; for `pairs` let M_t judge them again and pair its right votes with its wrong ones."""
    config = run.config
    if config.replay.method == "sft":
        return run.stage(f"round-{t}/replay", {"replay": config.replay}, {"eft": eft}, _draw_examples)
    rubric = load_rubric(config.judge.rubric, "pointwise")
    player = cast_role("policy", model, config)
    sections = {
        "replay": config.replay,
        "judge": config.judge.model_dump(mode="json", include={"temperature", "top_p", "max_tokens", "max_retries"}),
        "rubric": rubric.content_hash,
        "player": player.section,
    }

    def work(stage: Stage) -> Counts:
        stage.roles = {"policy": player.label, "judge": player.label}
        items = draw_items(read_rows(eft.path / "eft_train.parquet", EftExample), config.replay.num_items, stage.seed("items"))
        size = max(1, config.engine.chunk_size // config.replay.num_votes)
        with open_engine(player.model, config) as engine:
            judged = stage.chunks("votes", items, size, partial(judge_items, stage, engine, rubric), Judgement)
        pairs: list[PreferencePair] = []
        drops: list[Drop] = []
        num_over_limit = 0
        for item, judgement in zip(items, judged, strict=True):
            made = judgement_pairs(rubric, item, judgement, config.replay)
            if isinstance(made, str):
                drops.append(Drop(item.id, made, json.dumps(asdict(judgement), ensure_ascii=False)))
            else:
                pairs += made[: config.replay.max_pairs_per_item]
                num_over_limit += len(made[config.replay.max_pairs_per_item :])
        stage.write_rows("pairs", pairs, PreferencePair)
        stage.reject(drops)
        stage.notes |= {"num_pairs": len(pairs), "num_pairs_over_limit": num_over_limit}
        return Counts(len(items), len(items) - len(drops), Counter(drop.reason for drop in drops))

    return run.stage(f"round-{t}/replay", sections, {"eft": eft, **player.inputs}, work)


def _draw_examples(stage: Stage) -> Counts:
    # The stage runs after its `eft` input is finished; its folder is fixed.
    targets = read_rows(stage.run.dir.eft / "eft_train.parquet", EftExample)
    items = draw_items(targets, stage.config.replay.num_items, stage.seed("items"))
    stage.write_rows("examples", items, EftExample)
    stage.notes["num_examples"] = len(items)
    return Counts(len(items), len(items))


def draw_items(items: Sequence[EftExample], number: int, seed: int) -> list[EftExample]:
    """`number` items, in their own order; another round's seed draws others."""
    drawn = sorted(items, key=lambda item: derive_seed(seed, item.id))[:number]
    chosen = {item.id for item in drawn}
    return [item for item in items if item.id in chosen]


def judge_items(stage: Stage, engine: Engine, rubric: Rubric, items: Sequence[EftExample]) -> list[Judgement]:
    """`replay.num_votes` votes on each item's response, in the order of the items."""
    asked = [JudgedText(item.id, item.instruction, item.response) for item in items]
    cast = sampled_votes(stage, engine, rubric, asked, stage.config.replay.num_votes, stage.seed)
    return [Judgement(item.id, votes, None) for item, votes in zip(items, cast, strict=True)]


def judgement_pairs(rubric: Rubric, item: EftExample, judgement: Judgement, config: ReplayConfig) -> list[PreferencePair] | str:
    """One pair for each different wrong vote, in the order of the votes, or the reason why there is none."""
    valid = [vote for vote in judgement.votes if vote.score is not None and vote.finish_reason == "stop"]
    if not valid:
        return "no_valid_vote"
    wrong = {vote.text: vote for vote in reversed(valid) if abs((vote.score or 0.0) - item.score) >= config.min_score_gap}
    if not wrong:
        return "agrees"
    right = next((vote for vote in valid if vote.score == item.score), None) if config.chosen == "vote" else None
    return [
        PreferencePair(
            id=f"{item.id}/{vote.index}",
            messages=judge_messages(rubric, item.instruction, item.response),
            chosen=right.text if right else item.judgement,
            rejected=vote.text,
            chosen_score=item.score,
            rejected_score=vote.score or 0.0,
            chosen_id=f"{item.id}/{right.index}" if right else item.id,
            rejected_id=f"{item.id}/{vote.index}",
            kind="judgement",
        )
        for vote in sorted(wrong.values(), key=lambda vote: vote.index)
    ]
