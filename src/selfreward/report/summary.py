"""Run directory -> summary.json: every figure of every model with n and a 95 % interval. Reads artifacts only.

Figures of a model's answers and judging come from its evaluation; figures of a round (`ROUND_FIGURES`) stand with the
model that ran the round as policy. A figure that was not measured is null, never 0.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from selfreward.artifacts import RunDir, derive_seed, read_json, write_json
from selfreward.config import POLICY, Config
from selfreward.report.reading import (
    Json,
    finished_models,
    plain,
    read_config,
    read_judgements,
    read_measures,
    read_record,
    round_folders,
    stage_folders,
)
from selfreward.report.verdict import judge_run
from selfreward.statistics import Units, bootstrap_mean, bootstrap_share, paired_difference, unpaired_difference, wilson
from selfreward.types import Judgement

MODEL_FIGURES = (
    "oracle_mean", "oracle_exact", "greedy_oracle_mean", "greedy_oracle_exact",
    "judge_pairwise", "judge_pairwise_strict", "judge_spearman", "judge_kendall", "judge_exact_match", "judge_five_best",
    "judge_tied", "judge_scored", "mean_length", "mean_tokens", "truncated_rate", "distinct_1", "distinct_2",
    "win_rate", "tie_rate_head_to_head", "lose_rate", "first_position",
)  # fmt: skip
ROUND_FIGURES = (
    "judge_mean", "tie_rate", "parse_failure_rate", "pair_yield",
    "pairs_truly_better", "pairs_truly_worse", "round_oracle_mean",
)  # fmt: skip
"""Of the round that a model ran: mean judge score of its candidates (bootstrap by prompt); prompts whose candidates all
got the same mean score; votes without a score; pairs per prompt; with an oracle, pairs whose chosen response is truly
better or truly worse than the rejected one, and the candidates' true mean."""
ORACLE_ROUND_FIGURES = ("pairs_truly_better", "pairs_truly_worse", "round_oracle_mean")
DIFFERENCE_FIGURES = (
    "oracle_mean", "oracle_exact", "greedy_oracle_mean", "greedy_oracle_exact",
    "judge_pairwise", "judge_pairwise_strict", "judge_spearman", "judge_kendall", "judge_exact_match", "judge_five_best",
    "judge_scored", "mean_length", "mean_tokens",
)  # fmt: skip


def write_summary(run_dir: RunDir) -> Json:
    """Build summary.json, store it in the run's folder, and return it."""
    summary = build_summary(run_dir)
    write_json(run_dir.summary, summary)
    return summary


def build_summary(run_dir: RunDir) -> Json:
    """The summary of what is finished so far, as plain JSON values.

    Raises CorruptArtifactError when a finished stage cannot be read.
    """
    config = read_config(run_dir)
    names = finished_models(run_dir, config.num_rounds)
    rounds = [row for t in range(1, config.num_rounds + 1) if (row := _round(run_dir, config, t))["counts"]]
    records = [record for _, folder in stage_folders(run_dir, config) if (record := read_record(folder))]
    summary: Json = {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "finished": len(records) == len(list(stage_folders(run_dir, config))),
        "models": [_model(run_dir, config, name) for name in names],
        **_differences(run_dir, config, names),
        "judge_mean_change": _judge_mean_change(run_dir, config),
        "rounds": rounds,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "tokens": {kind: sum(record["tokens"][kind] for record in records) for kind in ("prompt", "generated")},
    }
    return summary | {"verdict": judge_run(summary)}


def _model(run_dir: RunDir, config: Config, name: str) -> Json:
    """One row of `models`."""
    document = read_json(run_dir.evals(name) / "evals.json")
    figures = document["figures"]
    row: Json = {"model": name.upper()}
    row |= {figure: figures.get(figure) for figure in MODEL_FIGURES}
    row |= {"judge_failed_votes": document["judge"]["failed_votes"], "head_to_head": document["head_to_head"]}
    row |= dict.fromkeys(ROUND_FIGURES) | {"parse_failures": None, "score_histogram": None}
    if name != "sft":
        row |= _round_figures(run_dir, config, int(name.removeprefix("m")))
    return row


def _round_figures(run_dir: RunDir, config: Config, t: int) -> Json:
    """What round t says about M_t; nothing before its judging is finished."""
    row: Json = {}
    if t <= config.num_rounds and read_record(run_dir.judgements(t)) is not None:
        row |= _judging_figures(run_dir, config, t)
    prompts, pairs = read_record(run_dir.prompts(t)), read_record(run_dir.pairs(t))
    if prompts is not None and pairs is not None:
        # Prompts whose candidates were all dropped never reach the pair stage, but they are prompts without a pair.
        row["pair_yield"] = plain(wilson(pairs["counts"]["out"], prompts["counts"]["out"]))
        row["tie_rate"] = plain(wilson(pairs["counts"]["dropped"].get("tie", 0), prompts["counts"]["out"]))
    if t <= config.num_rounds and read_record(run_dir.evals(f"m{t + 1}")) is not None:
        figures = read_json(run_dir.evals(f"m{t + 1}") / "evals.json")["figures"]
        row |= {figure: figures.get(figure) for figure in ORACLE_ROUND_FIGURES}
    return row


def _judging_figures(run_dir: RunDir, config: Config, t: int) -> Json:
    judgements = read_judgements(run_dir.judgements(t))
    votes = [vote for judgement in judgements for vote in judgement.votes]
    failed = {
        judgement.completion_id: (1 - judgement.num_valid / len(judgement.votes), float(len(judgement.votes)))
        for judgement in judgements
    }
    samples = config.eval.bootstrap_samples
    failures = Counter(vote.failure for vote in votes if vote.failure)
    scores = Counter(f"{vote.score:g}" for vote in votes if vote.score is not None)
    return {
        "judge_mean": plain(bootstrap_mean(judge_mean_units(judgements), _seed(config, f"judge_mean/{t}"), samples)),
        "parse_failure_rate": plain(bootstrap_share(failed, _seed(config, f"parse_failure_rate/{t}"), samples)),
        "parse_failures": {str(reason): count for reason, count in failures.most_common()},
        "score_histogram": {score: scores[score] for score in sorted(scores, key=float)},
    }


def judge_mean_units(judgements: Sequence[Judgement]) -> Units:
    """Prompt -> (mean score of its scored candidates, their number)."""
    by_prompt: dict[str, list[float]] = {}
    for judgement in judgements:
        if judgement.score is not None:
            by_prompt.setdefault(judgement.completion_id.rsplit("/", maxsplit=1)[0], []).append(judgement.score)
    return {prompt: (sum(scores) / len(scores), float(len(scores))) for prompt, scores in by_prompt.items()}


def _differences(run_dir: RunDir, config: Config, names: Sequence[str]) -> Json:
    """Last evaluated model minus M1, paired by held-out prompt or ranked set."""
    if "m1" not in names or names[-1] == "m1":
        return {"differences": {}, "difference_of": None}
    new, old = read_measures(run_dir, names[-1]), read_measures(run_dir, "m1")
    differ = partial(paired_difference, samples=config.eval.bootstrap_samples)
    return {
        "differences": {
            figure: plain(differ(new[figure], old[figure], _seed(config, f"difference/{figure}")))
            if figure in new and figure in old
            else None
            for figure in DIFFERENCE_FIGURES
        },
        "difference_of": [names[-1].upper(), "M1"],
    }


def _judge_mean_change(run_dir: RunDir, config: Config) -> Json | None:
    """Mean score that the judge gave in the last round minus the first round's; other prompts, so unpaired."""
    judged = [t for t in range(1, config.num_rounds + 1) if read_record(run_dir.judgements(t)) is not None]
    if len(judged) < 2:
        return None
    new, old = (judge_mean_units(read_judgements(run_dir.judgements(t))) for t in (judged[-1], judged[0]))
    change = unpaired_difference(new, old, _seed(config, "judge_mean_change"), config.eval.bootstrap_samples)
    return {**plain(change), "rounds": [judged[0], judged[-1]], "self_judged": config.judge.model == POLICY}


def _round(run_dir: RunDir, config: Config, t: int) -> Json:
    """Bookkeeping of one round, stage by stage; only what is finished."""
    folders = round_folders(run_dir, t, with_replay=config.replay.num_items > 0)
    records: Mapping[str, Json] = {stage: record for stage, path in folders.items() if (record := read_record(path))}
    roles: dict[str, Any] = {}
    for record in records.values():
        roles |= record["roles"]
    return {
        "round": t,
        "model": f"M{t}",
        "makes": f"M{t + 1}",
        "roles": roles,
        "counts": {stage: record["counts"] for stage, record in records.items()},
        "fingerprints": {stage: record["fingerprint"] for stage, record in records.items()},
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        "tokens": {stage: record["tokens"] for stage, record in records.items()},
    }


def _seed(config: Config, figure: str) -> int:
    return derive_seed(config.random_seed, "summary", figure)
