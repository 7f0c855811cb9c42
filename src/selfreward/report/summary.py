"""Run directory -> summary.json: every figure of every model with n and a 95 % interval. Reads artifacts only.

Figures of a model's answers and judging come from its evaluation; figures of a round (`ROUND_FIGURES`) stand with the
model that ran the round as policy. What was not measured is never 0: a figure of an evaluation is null, a figure of a
round is an object whose value is null.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from selfreward.artifacts import RunDir, derive_seed, read_json, write_json
from selfreward.config import POLICY, Config
from selfreward.drift import ACCEPTED
from selfreward.report.cost import run_cost, stage_cost
from selfreward.report.reading import (
    Json,
    finished_models,
    plain,
    read_config,
    read_heldout_votes,
    read_judgements,
    read_measures,
    read_record,
    read_true_scores,
    round_folders,
    stage_folders,
)
from selfreward.report.verdict import judge_run
from selfreward.statistics import (
    NOTHING,
    Units,
    bootstrap_mean,
    bootstrap_share,
    paired_difference,
    unpaired_difference,
    wilson,
)
from selfreward.types import Judgement

VOTE_FIGURES = ("judge_mean", "parse_failure_rate")
"""Of a model's votes on the held-out ranked responses, the same for every model: mean score and share of votes without
one, both bootstrapped by ranked set."""
MODEL_FIGURES = (
    "oracle_mean", "oracle_exact", "greedy_oracle_mean", "greedy_oracle_exact",
    "judge_pairwise", "judge_pairwise_strict", "judge_spearman", "judge_kendall", "judge_exact_match", "judge_five_best",
    "judge_tied", "judge_scored", "mean_length", "mean_tokens", "truncated_rate", "distinct_1", "distinct_2",
    "win_rate", "tie_rate_head_to_head", "lose_rate", "first_position", *VOTE_FIGURES,
)  # fmt: skip
ORACLE_ROUND_FIGURES = ("pairs_truly_better", "pairs_truly_worse", "round_oracle_mean")
ROUND_FIGURES = ("round_judge_mean", "round_parse_failure_rate", "tie_rate", "pair_yield", *ORACLE_ROUND_FIGURES)
"""Of the round that a model ran: mean judge score of its candidates and votes without a score (both bootstrapped by
prompt); prompts whose candidates all got the same mean score; pairs per prompt; with an oracle, pairs whose chosen
response is truly better or truly worse than the rejected one, and the candidates' true mean."""
DIFFERENCE_FIGURES = (
    "oracle_mean", "oracle_exact", "greedy_oracle_mean", "greedy_oracle_exact",
    "judge_pairwise", "judge_pairwise_strict", "judge_spearman", "judge_kendall", "judge_exact_match", "judge_five_best",
    "judge_scored", "judge_mean", "mean_length", "mean_tokens",
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
    done = {key: record for key, folder in stage_folders(run_dir, config) if (record := read_record(folder))}
    records = list(done.values())
    summary: Json = {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "finished": len(records) == len(list(stage_folders(run_dir, config))),
        "models": [_model(run_dir, config, name) for name in names],
        **_differences(run_dir, config, names),
        "self_judged": all(member.model == POLICY for member in config.judge.members),
        **_round_changes(run_dir, config),
        "rounds": rounds,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "tokens": {kind: sum(record["tokens"][kind] for record in records) for kind in ("prompt", "generated")},
        "cost": run_cost(stage_cost(key, record) for key, record in done.items()),
        "accepted_drift": accepted_drift(records),
    }
    return summary | {"verdict": judge_run(summary)}


def accepted_drift(records: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Every difference that somebody accepted, once."""
    found: list[Json] = []
    for record in records:
        found += [item for item in record.get(ACCEPTED, ()) if item not in found]
    return found


def _model(run_dir: RunDir, config: Config, name: str) -> Json:
    """One row of `models`."""
    document = read_json(run_dir.evals(name) / "evals.json")
    figures = document["figures"]
    row: Json = {"model": name.upper()}
    row |= {figure: figures.get(figure) for figure in MODEL_FIGURES}
    row |= _vote_figures(config, read_heldout_votes(run_dir, name), "", name)
    row |= {"head_to_head": document["head_to_head"]}
    row |= {figure: plain(NOTHING) for figure in ROUND_FIGURES}
    row |= {"round_parse_failures": None, "round_score_histogram": None}
    if name != "sft":
        row |= _round_figures(run_dir, config, int(name.removeprefix("m")))
    return row


def _round_figures(run_dir: RunDir, config: Config, t: int) -> Json:
    """What round t says about M_t: only what is finished, and nothing beyond the rounds that these settings ask for."""
    row: Json = {}
    if t > config.num_rounds:
        return row
    if read_record(run_dir.judgements(t)) is not None:
        row |= _vote_figures(config, read_judgements(run_dir.judgements(t)), "round_", f"round-{t}")
    prompts, pairs = read_record(run_dir.prompts(t)), read_record(run_dir.pairs(t))
    if prompts is not None and pairs is not None:
        # Prompts whose candidates were all dropped never reach the pair stage, but they are prompts without a pair.
        row["pair_yield"] = plain(wilson(pairs["counts"]["out"], prompts["counts"]["out"]))
        row["tie_rate"] = plain(wilson(pairs["counts"]["dropped"].get("tie", 0), prompts["counts"]["out"]))
    if read_record(run_dir.evals(f"m{t + 1}")) is not None:
        figures = read_json(run_dir.evals(f"m{t + 1}") / "evals.json")["figures"]
        row |= {figure: figures[figure] for figure in ORACLE_ROUND_FIGURES if figure in figures}
    return row


def _vote_figures(config: Config, judgements: Sequence[Judgement], prefix: str, source: str) -> Json:
    """Scores and failures of these judgements; `source` names their place in the seeds of the intervals."""
    votes = [vote for judgement in judgements for vote in judgement.votes]
    failures = Counter(vote.failure for vote in votes if vote.failure)
    scores = Counter(f"{vote.histogram_score:g}" for vote in votes if vote.histogram_score is not None)
    mean, failed = judge_mean_units(judgements), failure_units(judgements)
    samples = config.eval.bootstrap_samples
    return {
        f"{prefix}judge_mean": plain(bootstrap_mean(mean, _seed(config, f"judge_mean/{source}"), samples)),
        f"{prefix}parse_failure_rate": plain(bootstrap_share(failed, _seed(config, f"parse_failure_rate/{source}"), samples)),
        f"{prefix}parse_failures": {str(reason): count for reason, count in failures.most_common()},
        f"{prefix}score_histogram": {score: scores[score] for score in sorted(scores, key=float)},
    }


def judge_mean_units(judgements: Sequence[Judgement]) -> Units:
    """Prompt or ranked set -> (mean score of its scored responses, their number)."""
    return _by_prompt((item.completion_id, item.score) for item in judgements if item.score is not None)


def failure_units(judgements: Sequence[Judgement]) -> Units:
    """Prompt or ranked set -> (share of the votes on its responses without a score, number of votes)."""
    return _by_prompt((item.completion_id, float(vote.score is None)) for item in judgements for vote in item.votes)


def excess_units(judgements: Sequence[Judgement], true_scores: Mapping[str, float]) -> Units:
    """Prompt -> (mean of judge score - true score over its candidates that have both, their number)."""
    return _by_prompt(
        (item.completion_id, item.score - true_scores[item.completion_id])
        for item in judgements
        if item.score is not None and item.completion_id in true_scores
    )


def _by_prompt(values: Iterable[tuple[str, float]]) -> Units:
    """Values of responses (ids `<prompt>/<index>`) put together by prompt: those of one prompt are not independent."""
    grouped: dict[str, list[float]] = {}
    for response_id, value in values:
        grouped.setdefault(response_id.rsplit("/", maxsplit=1)[0], []).append(value)
    return {prompt: (sum(group) / len(group), float(len(group))) for prompt, group in grouped.items()}


def _differences(run_dir: RunDir, config: Config, names: Sequence[str]) -> Json:
    """Last evaluated model minus M1, paired by held-out prompt or ranked set."""
    if "m1" not in names or names[-1] == "m1":
        return {"differences": {}, "difference_of": None}
    new, old = _units(run_dir, names[-1]), _units(run_dir, "m1")
    differ = partial(paired_difference, samples=config.eval.bootstrap_samples)
    return {
        "differences": {
            figure: plain(differ(new[figure], old[figure], _seed(config, f"difference/{figure}")))
            if new.get(figure) and old.get(figure)
            else None
            for figure in DIFFERENCE_FIGURES
        },
        "difference_of": [names[-1].upper(), "M1"],
    }


def _units(run_dir: RunDir, name: str) -> Mapping[str, Units]:
    return {**read_measures(run_dir, name), "judge_mean": judge_mean_units(read_heldout_votes(run_dir, name))}


def _round_changes(run_dir: RunDir, config: Config) -> Json:
    """Last judged round minus the first; other prompts, so unpaired.

    `round_judge_mean_change`: of the scores that the judge gave. `round_excess_change`: of what it gave beyond the true
    scores of the same candidates, over the rounds whose true scores are known. Null with fewer than two such rounds.
    """
    judged = [t for t in range(1, config.num_rounds + 1) if read_record(run_dir.judgements(t)) is not None]
    judgements = {t: read_judgements(run_dir.judgements(t)) for t in judged}
    means = {t: judge_mean_units(items) for t, items in judgements.items()}
    excess = {t: excess_units(items, read_true_scores(run_dir, t)) for t, items in judgements.items()}
    return {
        "round_judge_mean_change": _change(config, means, "round_judge_mean_change"),
        "round_excess_change": _change(config, excess, "round_excess_change"),
    }


def _change(config: Config, rounds: Mapping[int, Units], figure: str) -> Json | None:
    known = [t for t, units in rounds.items() if units]
    if len(known) < 2:
        return None
    first, last = known[0], known[-1]
    change = unpaired_difference(rounds[last], rounds[first], _seed(config, figure), config.eval.bootstrap_samples)
    return {**plain(change), "rounds": [first, last]}


def _round(run_dir: RunDir, config: Config, t: int) -> Json:
    """Bookkeeping of one round, stage by stage; only what is finished."""
    folders = round_folders(run_dir, t, with_replay=config.replay.num_items > 0)
    records: Mapping[str, Json] = {stage: record for stage, path in folders.items() if (record := read_record(path))}
    roles: dict[str, Any] = {}
    for record in records.values():
        roles |= record["roles"]
    proposed = records.get("prompts")
    return {
        "round": t,
        "prompts_asked": config.propose.num_prompts,
        "prompts_accepted": proposed["counts"]["out"] if proposed else None,
        "prompts_stopped_by": proposed["notes"].get("stopped_by") if proposed else None,
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
