"""Standard tasks of a run's models, as `selfreward eval tasks --run` leaves them, and what the rounds cost in ability."""

import textwrap
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from selfreward.artifacts import RunDir, read_json
from selfreward.report.evaluated import done_stages
from selfreward.statistics import Z

RULE = (
    "Standard tasks by lm-evaluation-harness; each value is the task's first metric with the harness's standard error. The "
    "change from M1 to the last model takes both errors as independent, which is wide: both answer the same questions."
)

Result = dict[str, Any]
"""{"task", "metric", "value", "stderr", "n", "low", "high"} as tasks.json holds it."""


def read_tasks(run_dir: RunDir, models: Sequence[str]) -> dict[str, dict[str, Result]]:
    """Model -> task -> result; only what is finished, and measured on the models that the run has now."""
    found: dict[str, dict[str, Result]] = {}
    for key, folder in done_stages(run_dir).items():
        place, model, *_ = key.split("/")
        if place == "tasks" and model in models:
            document = read_json(folder / "tasks.json")
            found.setdefault(model, {})[document["task"]] = document["results"][0]
    return {model: found[model] for model in models if model in found}


def tax_rows(tasks: Mapping[str, Mapping[str, Result]], models: Sequence[str]) -> list[dict[str, Any]]:
    """The capability tax: last model minus M1 for each task that both have, and the mean over these tasks.

    Values are shares; a row has `task`, `first`, `last`, `change`, `low`, `high` and `models`.
    """
    last = models[-1] if models else ""
    if "m1" not in tasks or last not in tasks or last == "m1":
        return []
    rows = [_change(task, tasks["m1"][task], result, last) for task, result in tasks[last].items() if task in tasks["m1"]]
    if len(rows) > 1:
        rows.append(_mean(rows, last))
    return rows


def _change(task: str, first: Result, last: Result, model: str) -> dict[str, Any]:
    error = None if None in (first["stderr"], last["stderr"]) else sqrt(first["stderr"] ** 2 + last["stderr"] ** 2)
    return _row(task, (first["value"], last["value"]), error, model)


def _mean(rows: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    errors = [row["error"] for row in rows]
    error = None if None in errors else sqrt(sum(value**2 for value in errors)) / len(rows)
    means = [sum(row[side] for row in rows) / len(rows) for side in ("first", "last")]
    return _row(f"mean of {len(rows)} tasks", (means[0], means[1]), error, model)


def _row(task: str, values: tuple[float, float], error: float | None, model: str) -> dict[str, Any]:
    change = values[1] - values[0]
    ends = {"low": None, "high": None} if error is None else {"low": change - Z * error, "high": change + Z * error}
    return {
        "task": task, "first": values[0], "last": values[1], "change": change, "error": error, **ends,
        "models": ["M1", model.upper()],
    }  # fmt: skip


def render_tasks(document: Mapping[str, Any]) -> str:
    """`selfreward eval tasks` on screen: a line a task and model, then the capability tax."""
    lines = []
    for model, results in document["models"].items():
        for task, result in results.items():
            ends = "" if result["low"] is None else f" [{result['low']:.3f}, {result['high']:.3f}]"
            lines.append(f"{model:<12} {task}: {result['metric']} {result['value']:.3f}{ends} n={result['n'] or '-'}")
    tax = [render_tax(document["tax"])] if document["tax"] else []
    return "\n\n".join(["\n".join(lines), *tax, f"results: {document['place']}"])


def render_tax(rows: Sequence[Mapping[str, Any]]) -> str:
    """The capability tax, a line a task."""
    first, last = rows[0]["models"]
    lines = [f"Capability tax, {first} to {last}, points:"]
    for row in rows:
        ends = "" if row["low"] is None else f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        lines.append(f"  {row['task']}: {100 * row['first']:.1f} to {100 * row['last']:.1f}, {100 * row['change']:+.1f}{ends}")
    return "\n".join([*lines, textwrap.fill(RULE, 80)])
