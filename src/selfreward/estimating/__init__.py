"""What a run will cost, said before it starts: `selfreward check CONFIG --estimate`.

The run's work is counted from the config and the seed data (`workload`), each kind of it is rehearsed for a moment on this
machine (`calibration`), and the two are multiplied (`costing`). Assumptions and limits: docs/cost.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from selfreward.artifacts import read_json
from selfreward.config import POLICY, Config
from selfreward.estimating.calibration import (
    REPLY_KINDS,
    Calibration,
    calibrate,
    longest_reply,
    processor_share,
    training_bytes,
)
from selfreward.estimating.costing import Cost, stage_cost, total_cost
from selfreward.estimating.seed_texts import Shapes, need_hf, read_seed
from selfreward.estimating.workload import HIGH, LOW, Assumptions, Planned, Sizes, foreign_players, plan_run
from selfreward.pipeline import plan_pipeline
from selfreward.planning import Plan
from selfreward.progress import Progress
from selfreward.texts import counted

Json = dict[str, Any]


def estimate_run(config: Config, progress: Progress) -> Json:
    """Tokens, time and memory of what a run of this config still has to do, as plain values.

    `stages`: a row each with tokens and seconds, those of the rounds once with their number (`times`); `total` with `low` and
    `high` seconds; `memory` in bytes; `assumed`: sentences; `speeds`. Where all is finished `stages` is empty, and but for
    `num_finished` nothing else is there. Raises ConfigError for an engine without a model, and
    what reading the seed data and loading the models raises.
    """
    need_hf(config)
    plan = plan_pipeline(config)
    done = [stage.key for stage in plan.stages if stage.action in ("reuse", "accept")]
    if len(done) == len(plan.stages):
        return {"stages": [], "num_finished": len(done)}
    texts = read_seed(config, progress)
    middle, told = _told_by(config, plan, done)

    def left_under(assumed: Assumptions) -> list[Planned]:
        return [left for stage in plan_run(config, texts.sizes, assumed) if (left := _left(stage, done, config.num_rounds))]

    stages = left_under(middle)
    found, shapes = calibrate(config, texts, stages, progress)
    fixed = found.import_seconds + (texts.seconds or 0.0)
    low, high = (
        fixed + total_cost(left_under(end), found, shapes, end).seconds
        for end in (_end(LOW, middle, told), _end(HIGH, middle, told))
    )
    total = total_cost(stages, found, shapes, middle)
    return {
        "start_seconds": round(fixed, 1),
        "stages": [
            {"stage": stage.key, "times": stage.times, **_plain(stage_cost(stage, found, shapes, middle).times(stage.times))}
            for stage in stages
        ],
        "total": {**_plain(total), "seconds": round(fixed + total.seconds, 1), "low": round(low, 1), "high": round(high, 1)},
        "memory": _memory(config, found),
        "num_finished": len(done),
        "assumed": [*told, *_sentences(config, texts.sizes, middle, shapes, told), *_too_long(found)],
        "uncounted": foreign_players(config),
        "speeds": _speeds(found),
        "calibration_seconds": round(found.seconds, 1),
        "calibration_share": processor_share(config, found),
    }


def _told_by(config: Config, plan: Plan, done: Sequence[str]) -> tuple[Assumptions, list[str]]:
    """Assumptions that finished rounds of this run replace by what they found, and sentences that say so."""
    assumed, told = Assumptions(), []
    proposed, accepted, paired = 0, 0, 0
    for t in range(1, config.num_rounds + 1):
        if {f"round-{t}/prompts", f"round-{t}/pairs"} <= set(done):
            prompts, pairs = (read_json(path / "record.json") for path in (plan.directory.prompts(t), plan.directory.pairs(t)))
            proposed, accepted = proposed + prompts["counts"]["in"], accepted + prompts["counts"]["out"]
            paired += pairs["counts"]["out"]
    if accepted:
        assumed = replace(assumed, accepted=accepted / proposed, paired=paired / accepted)
        told = [
            f"as in this run's finished rounds {accepted / proposed:.0%} of the proposals pass and {paired / accepted:.0%} of "
            "the prompts give a pair"
        ]
    return assumed, told


def _end(end: Assumptions, middle: Assumptions, told: Sequence[str]) -> Assumptions:
    """An end of the range; what finished rounds told is no longer open."""
    return replace(end, accepted=middle.accepted, paired=middle.paired) if told else end


def _left(stage: Planned, done: Sequence[str], num_rounds: int) -> Planned | None:
    """The stage as often as it is still to be done; None for a finished one."""
    if stage.key.startswith("round/"):
        name = stage.key.removeprefix("round/")
        times = num_rounds - sum(f"round-{t}/{name}" in done for t in range(1, num_rounds + 1))
        return replace(stage, times=times) if times else None
    return None if stage.key in done else stage


def _plain(cost: Cost) -> Json:
    whole = {name: round(getattr(cost, name)) for name in ("asked", "read", "written", "trained")}
    return {**whole, "seconds": round(cost.seconds, 1)}


def _sentences(config: Config, sizes: Sizes, assumed: Assumptions, shapes: Shapes, told: Sequence[str]) -> list[str]:
    """What is taken for granted, and why."""
    answer = shapes.mean_reply("answer", assumed.reply_scale)
    judging = "the seed's judgements" if sizes.num_targets else f"half of judge.max_tokens={config.judge.max_tokens}"
    lines = [
        f"answers are as long as the seed's ({answer:.0f} tokens on average), judgements as {judging} "
        f"({shapes.mean_reply('judge', assumed.reply_scale):.0f} tokens)"
    ]
    if not told:
        lines += assumed.lines(config, sizes)
    if config.propose.source == "self-instruct" and config.num_rounds:
        lines.append(
            f"proposals are as long as the seed's prompts ({shapes.mean_reply('propose', assumed.reply_scale):.0f} tokens)"
        )
    lines.append("no vote is asked for again, no batch runs out of memory, nothing else works on this machine")
    lines.append(
        f"the range: replies {LOW.reply_scale:.0%} to {HIGH.reply_scale:.0%} as long, the machine "
        f"{LOW.speed:.0%} to {HIGH.speed:.0%} as fast"
        + (
            ""
            if told
            else f", {HIGH.accepted:.0%} to {LOW.accepted:.0%} accepted, {LOW.paired:.0%} to {HIGH.paired:.0%} paired"
        )
    )
    return lines


def _too_long(found: Calibration) -> Iterator[str]:
    """Prompts that the rehearsal had to leave out."""
    for (kind, model), speed in found.speeds.items():
        if speed.num_too_long:
            who = "" if model == POLICY else f" of {model}"
            tried = counted(speed.rows + speed.num_too_long, "request")
            yield (
                f"prompts that are too long cost as much as others; {speed.num_too_long} of {tried} of kind {kind}{who} were "
                "left out of the rehearsal as too_long"
                + ("" if speed.rows else f": all of them, so time and tokens of {kind} are not known and not counted")
            )


def _memory(config: Config, found: Calibration) -> Json:
    """Peaks that the rehearsal saw, with what a whole batch of longest replies would add in the cache."""
    missing = 0.0
    for (kind, model), speed in found.speeds.items():
        if kind in REPLY_KINDS and model == POLICY and speed.is_cut:
            longest = longest_reply(config, kind) + speed.prompt_tokens
            missing = max(missing, config.engine.batch_size * longest - speed.rows * speed.prompt_tokens)
    return {
        "num_parameters": found.num_parameters,
        "where": "GPU" if found.on_gpu else "RAM",
        "generating": found.generating_peak + round(missing * found.kv_bytes),
        "training": found.training_peak,
        "training_state": training_bytes(found.num_parameters) if found.training_peak else 0,
    }


def _speeds(found: Calibration) -> list[Json]:
    """What was rehearsed, a row each: tokens a second read and written, or trained on."""
    rows = []
    for (kind, model), speed in found.speeds.items():
        row: Json = {"kind": kind, "model": model, "rows": speed.rows, "is_cut": speed.is_cut}
        if kind in REPLY_KINDS:
            row |= {"read": _inverse(speed.seconds_read), "written": _inverse(speed.seconds_written)}
        else:
            row |= {"trained": _inverse(speed.seconds_row / max(speed.row_tokens, 1))}
        rows.append(row)
    return rows


def _inverse(seconds: float) -> float | None:
    return round(1 / seconds, 1) if seconds > 0 else None
