"""Which `judge.mode` ranks better, and what each costs: a model of each finished run judges the same ranked sets in all modes.

In: run folders with a trained model and held-out ranked sets; they are only read. Out: a small run for each run and mode
below `out` (votes.parquet and its record), and summary.json. Votes of all modes have the same seeds, so `sampled-1` is the
first vote of `sampled-3`, and `expected-3` weighs the scores behind the very justifications of `sampled-3`. Intervals are
Student's t over runs (seeds).
"""

import io
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from selfreward.artifacts import Run, RunDir, Stage, hash_file, hash_model, read_json, read_rows, write_json
from selfreward.config import Config, parse_config
from selfreward.engines import open_engine
from selfreward.errors import UsageError
from selfreward.evals.figures import units_of
from selfreward.evals.judge_quality import judge_measures
from selfreward.evals.judging import judge_ranked, scored_sets
from selfreward.experiments import over_seeds, to_plain_tree
from selfreward.judging import check_judge_mode, judge_settings, mean_mass, rubric_identity
from selfreward.rubrics import Rubric, load_rubric
from selfreward.texts import counted
from selfreward.types import Counts, Drop, Judgement, RankedSet

REFERENCE = "sampled-3"
MODES: Mapping[str, Mapping[str, Any]] = {
    "sampled-1": {"mode": "sampled", "num_votes": 1},
    REFERENCE: {"mode": "sampled", "num_votes": 3},
    "expected": {"mode": "expected", "num_votes": 1, "justify": False, "max_retries": 0},
    "expected-any": {"mode": "expected", "num_votes": 1, "justify": False, "min_mass": 0.0, "max_retries": 0},
    "expected-1": {"mode": "expected", "num_votes": 1},
    "expected-3": {"mode": "expected", "num_votes": 3},
}
"""Name -> changes of `judge.*`: sampled and expected with as many justifications as the name says; `expected` has none,
`expected-any` neither, and takes any mass."""
METRICS = {
    "judge_pairwise": "pairwise",
    "judge_spearman": "Spearman",
    "judge_tied": "tied pairs",
    "valid_votes": "valid votes",
    "mean_mass": "mass",
    "prompt_tokens": "prompt tokens",
    "generated_tokens": "generated tokens",
    "milliseconds": "CPU ms",
}
"""What is reported, with headings; tokens and processor time are for each response."""
STAGE = "ranked-votes"


def compare_modes(runs: Sequence[Path], out: Path, *, model: str = "m1", sets_from: Path | None = None) -> dict[str, Any]:
    """Judge in every mode; write and return `out/summary.json`. `sets_from` is a run whose ranked sets all shall judge.

    Raises UsageError for a folder that is no run or lacks the model, ConfigError for a rubric without expected scores.
    """
    results: dict[str, dict[str, Any]] = {}
    for number, root in enumerate(runs, start=1):
        checkpoint = RunDir(root).model_stage(model) / "checkpoint"
        sets = RunDir(sets_from or root).seed / "ranked_heldout.parquet"
        for needed in (RunDir(root).config, checkpoint, sets):
            if not needed.exists():
                raise UsageError(f"{root} cannot be compared: {needed} is missing; name finished runs, and a model they have")
        tree = read_json(RunDir(root).config)
        results[f"run-{number}"] = {
            name: _judge(parse_config(_changed(tree, name, out / f"run-{number}"), origin=str(root)), checkpoint, sets)
            for name in MODES
        }
    summary: dict[str, Any] = to_plain_tree({"model": model, **summarise(results)})
    write_json(out / "summary.json", summary)
    return summary


def summarise(results: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any]:
    """Mean and interval over runs of each mode's metrics, and of their differences from the reference mode."""
    return {
        "reference": REFERENCE,
        "runs": results,
        "modes": {
            mode: {metric: over_seeds([result[mode][metric] for result in results.values()]) for metric in METRICS}
            for mode in MODES
        },
        "differences": {
            mode: {
                metric: over_seeds([_minus(result[mode][metric], result[REFERENCE][metric]) for result in results.values()])
                for metric in METRICS
            }
            for mode in MODES
            if mode != REFERENCE
        },
    }


def modes_table(summary: Mapping[str, Any], width: int) -> str:
    """What the command prints: each mode's means, then the differences from the reference with their intervals."""
    console = Console(width=width, record=True, file=io.StringIO())
    levels = Table(title=f"{summary['model']}: mean over {counted(len(summary['runs']), 'run')}", title_justify="left")
    levels.add_column("mode")
    for heading in METRICS.values():
        levels.add_column(heading, justify="right")
    for mode, metrics in summary["modes"].items():
        levels.add_row(mode, *(_number(metrics[metric]["value"]) for metric in METRICS))
    console.print(levels)
    changes = Table(title=f"minus {summary['reference']}: mean [95 % interval]", title_justify="left")
    for heading in ("mode", "metric", "mean", "interval"):
        changes.add_column(heading)
    for mode, metrics in summary["differences"].items():
        for metric in ("judge_pairwise", "judge_spearman", "judge_tied", "milliseconds"):
            low, high = _number(metrics[metric]["low"]), _number(metrics[metric]["high"])
            changes.add_row(mode, METRICS[metric], _number(metrics[metric]["value"]), f"[{low}, {high}]")
        changes.add_section()
    console.print(changes)
    return console.export_text()


def _changed(tree: Mapping[str, Any], mode: str, folder: Path) -> dict[str, Any]:
    """A run's settings with another judge mode, for a run of its own."""
    changes = MODES[mode]
    return {
        **tree,
        "name": mode,
        "run_dir": str(folder),
        "judge": {**tree["judge"], **changes, "min_votes": 1, "model": "policy", "panel": []},
        "eval": {**tree["eval"], "num_votes": changes["num_votes"]},
    }


def _judge(config: Config, checkpoint: Path, sets_file: Path) -> dict[str, float | None]:
    """Judge in one mode, or reuse what was judged; the metrics."""
    rubric = load_rubric(config.judge.rubric, "pointwise")
    check_judge_mode(rubric, config)
    sets = read_rows(sets_file, RankedSet)
    sections = {
        "judge": judge_settings(config.judge),
        "rubric": rubric_identity(rubric, config.judge),
        "dtype": config.model.dtype,
        "weights": hash_model(checkpoint),
        "sets": hash_file(sets_file),
    }
    with Run.open(config) as run:
        made = run.stage(STAGE, sections, {}, partial(_vote, checkpoint, rubric, sets))
        record = read_json(made.path / "record.json")
    judgements = read_rows(made.path / "votes.parquet", Judgement)
    votes = [vote for judgement in judgements for vote in judgement.votes]
    measures = judge_measures(scored_sets(sets, judgements), float(rubric.scale[1]))
    return {
        **{metric: _mean(units_of(measures, metric)) for metric in METRICS if metric.startswith("judge_")},
        "valid_votes": sum(vote.score is not None for vote in votes) / len(votes),
        "mean_mass": mean_mass(votes),
        "prompt_tokens": record["tokens"]["prompt"] / len(judgements),
        "generated_tokens": record["tokens"]["generated"] / len(judgements),
        "milliseconds": 1000 * record["notes"]["seconds_judging"] / len(judgements),
    }


def _vote(checkpoint: Path, rubric: Rubric, sets: Sequence[RankedSet], stage: Stage) -> Counts:
    stage.roles = {"judge": str(checkpoint)}
    with open_engine(str(checkpoint), stage.config) as engine:
        clock = time.process_time()
        judgements = judge_ranked(stage, engine, rubric, sets)
        stage.notes["seconds_judging"] = round(time.process_time() - clock, 3)
    stage.write_rows("votes", judgements, Judgement)
    drops = [Drop(item.completion_id, "too_few_votes") for item in judgements if item.score is None]
    stage.reject(drops)
    return Counts(len(judgements), len(judgements) - len(drops), {"too_few_votes": len(drops)})


def _mean(units: Mapping[str, tuple[float, float]]) -> float | None:
    if not units:
        return None
    return float(np.average([value for value, _ in units.values()], weights=[weight for _, weight in units.values()]))


def _minus(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
