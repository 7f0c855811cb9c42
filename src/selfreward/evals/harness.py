"""What lm-evaluation-harness returns, as our figures. Pure; the harness itself is called by `eval_tools.tasks`.

Its results map a task to {"acc,none": value, "acc_stderr,none": error, "alias": ...}: a metric's name and the filter that was
applied, joined by a comma. An error that cannot be had is a text ("N/A").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfreward.errors import EngineError
from selfreward.statistics import Z
from selfreward.texts import shown


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One metric of one task, with a normal 95 % interval where the harness gives an error."""

    task: str
    metric: str
    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int | None


def read_results(document: Mapping[str, Any], task: str) -> list[TaskResult]:
    """Every metric of a task, in the harness's order; the first one stands for the task in tables.

    Raises EngineError for a document without the task or without a number for it.
    """
    table = document.get("results")
    figures = table.get(task) if isinstance(table, Mapping) else None
    if not isinstance(figures, Mapping):
        known = shown(sorted(table)) if isinstance(table, Mapping) else shown(table)
        raise EngineError(f"lm-evaluation-harness gave no result of task {task!r}; it gave {known}")
    n = _num_questions(document, task)
    found = []
    for key, value in figures.items():
        metric, comma, used_filter = str(key).partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = figures.get(f"{metric}_stderr,{used_filter}")
        name = metric if used_filter in ("", "none") else f"{metric} ({used_filter})"
        found.append(_result(task, name, (value, error), n))
    if not found:
        raise EngineError(f"lm-evaluation-harness gave no number for task {task!r}: {shown(dict(figures))}")
    return found


def _num_questions(document: Mapping[str, Any], task: str) -> int | None:
    """Of a task, or of all tasks in a group; None where it is not told."""
    members = (document.get("group_subtasks") or {}).get(task)
    if members:
        numbers = [_num_questions(document, member) for member in members]
        return None if None in numbers else sum(number for number in numbers if number is not None)
    counts = (document.get("n-samples") or {}).get(task)
    return counts.get("effective", counts.get("original")) if isinstance(counts, Mapping) else None


def _result(task: str, metric: str, figure: tuple[Any, Any], n: int | None) -> TaskResult:
    value = float(figure[0])
    if not _is_number(figure[1]):
        return TaskResult(task, metric, value, None, None, None, n)
    error = float(figure[1])
    return TaskResult(task, metric, value, error, value - Z * error, value + Z * error, n)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
