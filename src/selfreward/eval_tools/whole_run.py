"""`selfreward eval RUN`: evaluate what a run lacks, reuse what is there, and put one row a model together."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, Run, derive_seed, read_json, read_rows, to_plain
from selfreward.config import Config, EndpointConfig, parse_config
from selfreward.errors import DriftError, UsageError
from selfreward.eval_tools.ranking import Evaluated, judge_of_run, rank_run
from selfreward.evals.diversity import mean_overlap
from selfreward.evals.evaluate import evaluate
from selfreward.evals.judge_quality import ORDER_RULE, TIE_RULE
from selfreward.evals.outputs import EVALUATION_TABLE
from selfreward.planning import supersede
from selfreward.progress import Progress
from selfreward.report.evaluated import evaluated_stages
from selfreward.report.html import write_report
from selfreward.report.paper import is_real
from selfreward.report.reading import read_record
from selfreward.report.summary import write_summary
from selfreward.report.task_rows import read_tasks, tax_rows
from selfreward.texts import counted
from selfreward.types import EvalOutput

JUDGE_FIGURES = (
    "judge_pairwise", "judge_pairwise_strict", "judge_tied", "judge_five_best", "judge_exact_match", "judge_spearman",
    "judge_kendall", "judge_scored", "judge_mean", "parse_failure_rate",
)  # fmt: skip
ANSWER_FIGURES = ("oracle_mean", "oracle_exact", "mean_length", "mean_tokens", "truncated_rate", "distinct_1", "distinct_2")
_CONTEST = ("win_rate", "tie_rate", "lose_rate", "net", "longer_won")


def evaluate_run(
    root: Path, judge: str | None, progress: Progress, endpoints: Mapping[str, EndpointConfig] | None = None
) -> dict[str, Any]:
    """Everything about the finished models of the run in `root`, as plain values; `judge` compares them in place of the run's
    own, and may be one of `endpoints` beside the run's own ones, whose settings then tell of it. Writes summary.json and
    report.html again. Raises UsageError where `root` is no run or holds no finished model, and what stages raise."""
    config = run_config(root)
    if endpoints:
        config = config.model_copy(update={"endpoints": {**config.endpoints, **endpoints}})
    with Run.open(config, progress) as run:
        try:
            models = _evaluated(run)
        except DriftError as error:
            why = str(error).partition(" Set another")[0]
            raise DriftError(
                f"{why} `selfreward run` with this run's config says all that differs; with --accept-drift it writes down that "
                "finished stages are reused as they are, and with --from STAGE it does them again"
            ) from error
        if not models:
            raise UsageError(f"{root} holds no finished model; run its config first")
        set_stale_aside(run, "ranking")
        duel = judge_of_run(run, models, judge)
        ranking = None
        if duel is not None and len(models) > 1:
            ranking = read_json(rank_run(run, models, duel).path / "ranking.json")
        done = dict(run.num_stages)
        summary = write_summary(run.dir)
        write_report(run.dir, summary)
    rows = [_row(run, model, models[:place], summary, ranking) for place, model in enumerate(models)]
    tasks = read_tasks(run.dir, [model.name for model in models])
    document = {
        "name": config.name,
        "is_real": is_real(config),
        "stages": done,
        "judge": _judge(config, ranking),
        "models": [row | {"tasks": tasks.get(model.name, {})} for row, model in zip(rows, models, strict=True)],
        "pairs": ranking["pairs"] if ranking else {},
        "tax": tax_rows(tasks, [model.name for model in models]),
        "stale": [stage.key for stage in evaluated_stages(run.dir) if stage.state == "stale"],
        "rules": {"ties": TIE_RULE, "orders": ORDER_RULE},
        "report": str(run.dir.report),
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, default=to_plain))
    return plain


def run_config(root: Path) -> Config:
    """The run's settings, for the folder where it lies now. Raises UsageError where it is no run."""
    if not (root / "config.json").is_file() or not (root / "environment.json").is_file():
        raise UsageError(f"{root} is not a run folder (no config.json and environment.json); runs are kept in runs/NAME")
    config = parse_config(read_json(root / "config.json"), origin=str(root / "config.json"))
    place = root if root.name else root.absolute()
    return config.model_copy(update={"run_dir": str(place.parent), "name": place.name})


def set_stale_aside(run: Run, place: str) -> None:
    """Move what `selfreward eval` made in `place` of models that were replaced since: it is done again for those of now."""
    stale = [stage for stage in evaluated_stages(run.dir) if stage.state == "stale" and stage.key.startswith(f"{place}/")]
    moved = supersede(run.dir, [stage.key for stage in stale], f"eval-{place}")
    if moved is not None:
        groups = ", ".join(dict.fromkeys(stage.group for stage in stale))
        run.progress.say(f"{groups}: of models that were replaced since; {counted(len(stale), 'stage')} moved to {moved}")
        run.logger.info("evaluations moved aside", extra={"data": {"stages": [s.key for s in stale], "to": str(moved)}})


def _evaluated(run: Run) -> list[Evaluated]:
    """Every finished model with its evaluation, which is done now where it is missing."""
    seed = finished_stage(run, "seed")
    found: list[Evaluated] = []
    for name in ("sft", "m1", *(f"m{t + 1}" for t in range(1, run.config.num_rounds + 1))):
        model = finished_stage(run, run.dir.model_stage(name).relative_to(run.dir.root).as_posix())
        if seed is None or model is None:
            break
        previous = found[-1].evaluation if found else None
        found.append(Evaluated(name, model, evaluate(run, name, model, seed, previous)))
    return found


def finished_stage(run: Run, key: str) -> Artifact | None:
    """A stage that the run has finished; None where it has not."""
    record = read_record(run.dir.root / key)
    return Artifact(key, run.dir.root / key, record["fingerprint"]) if record else None


def _row(
    run: Run, model: Evaluated, earlier: Sequence[Evaluated], summary: Mapping[str, Any], ranking: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One model: answers, contests, judging."""
    known = next(row for row in summary["models"] if row["model"] == model.name.upper())
    outputs = read_rows(model.evaluation.path / EVALUATION_TABLE, EvalOutput)
    texts = [row.text for row in outputs if row.kind == "sampled"]
    seed = derive_seed(run.config.random_seed, "overlap", model.name)
    row: dict[str, Any] = {"model": model.name.upper()}
    row |= {figure: known[figure] for figure in (*ANSWER_FIGURES, *JUDGE_FIGURES)}
    row["overlap"] = mean_overlap(texts, seed)
    row["strength"] = (ranking["strengths"] or {}).get(model.name) if ranking else None
    row |= {f"against_{key}": contest for key, contest in _contests(model, earlier, ranking)}
    return row


def _contests(
    model: Evaluated, earlier: Sequence[Evaluated], ranking: Mapping[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Against the model before and against the SFT baseline; None where there is none."""
    for key, other in (("previous", earlier[-1] if earlier else None), ("sft", earlier[0] if earlier else None)):
        pair = ranking["pairs"].get(f"{model.name}-{other.name}") if ranking and other else None
        yield key, None if pair is None else {figure: pair["figures"][figure] for figure in _CONTEST} | pair["counts"]


def _judge(config: Config, ranking: Mapping[str, Any] | None) -> dict[str, Any]:
    if ranking is None:
        why = (
            "eval.head_to_head=none: nobody compares the models; name a --judge" if config.eval.head_to_head == "none" else None
        )
        return {"name": None, "why_not": why or "one model alone has nobody to be compared with"}
    keys = ("rubric", "no_strengths", "unbounded", "first_position", "position_biased", "position")
    return {"name": ranking["judge"], "why_not": None} | {key: ranking.get(key) for key in keys}
