"""What `selfreward eval` added to a run, for its page: all models against each other, the paper's table, standard tasks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfreward.artifacts import RunDir, read_json
from selfreward.config import Config
from selfreward.report.evaluated import done_stages
from selfreward.report.paper import is_real, paper_rows
from selfreward.report.reading import Json
from selfreward.report.task_rows import RULE as TASK_RULE
from selfreward.report.task_rows import Result, read_tasks, tax_rows


def evaluation_parts(run_dir: RunDir, config: Config, models: Sequence[Json]) -> dict[str, Any]:
    """`rankings`, `paper`, `tasks`, `tax` and `task_rule` for the template; what was not measured is empty."""
    names = [model["model"].lower() for model in models]
    tasks = read_tasks(run_dir, names)
    return {
        "rankings": list(_rankings(run_dir, names)),
        "paper": paper_rows(models) if is_real(config) else [],
        "tasks": _task_table(tasks),
        "tax": [_tax_row(row) for row in tax_rows(tasks, names)],
        "task_rule": TASK_RULE,
    }


def _rankings(run_dir: RunDir, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each judge's ranking of all models that are evaluated now."""
    for key, folder in done_stages(run_dir).items():
        if not names or not key.startswith("ranking/") or folder.name != f"up-to-{names[-1]}":
            continue
        document = read_json(folder / "ranking.json")
        yield {
            "judge": document["judge"] + (f" by {document['rubric']}, both orders" if document["rubric"] else ""),
            "notes": [text for key in ("position", "no_strengths", "unbounded") if (text := document.get(key))],
            "biased": bool(document["position_biased"]),
            "rows": [_ranking_row(document, name, names) for name in names],
            "names": [name.upper() for name in names[:-1]],
        }


def _ranking_row(document: Json, name: str, names: Sequence[str]) -> dict[str, Any]:
    strength = (document["strengths"] or {}).get(name)
    return {
        "model": name.upper(),
        "strength": "-" if strength is None else f"{strength['value']:+.2f}",
        "interval": "" if strength is None or strength["low"] is None else f"[{strength['low']:+.2f}, {strength['high']:+.2f}]",
        "pairs": [_pair_cell(document["pairs"].get(f"{name}-{other}")) for other in names[:-1]],
    }


def _pair_cell(pair: Json | None) -> str:
    """Wins, ties and losses; nothing for a model against itself or a later one."""
    if pair is None:
        return ""
    counts = pair["counts"]
    missing = f" ({counts['no_verdict']} unread)" if counts["no_verdict"] else ""
    return f"{counts['wins']} / {counts['ties']} / {counts['losses']}{missing}"


def _task_table(tasks: Mapping[str, Mapping[str, Result]]) -> dict[str, Any]:
    """A row a task, a cell a model: percent and half the interval."""
    known = {task: result for results in tasks.values() for task, result in results.items()}
    rows = []
    for task, last in sorted(known.items()):
        n = "-" if last["n"] is None else f"{last['n']:,}"
        cells = [_task_cell(results.get(task)) for results in tasks.values()]
        rows.append({"task": task, "metric": last["metric"], "n": n, "cells": cells})
    return {"models": [model.upper() for model in tasks], "rows": rows}


def _task_cell(result: Result | None) -> dict[str, str]:
    if result is None:
        return {"text": "-", "half": ""}
    half = "" if result["low"] is None else f"±{50 * (result['high'] - result['low']):.1f}"
    return {"text": f"{100 * result['value']:.1f}", "half": half}


def _tax_row(row: Json) -> dict[str, Any]:
    ends = "" if row["low"] is None else f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return {
        "task": row["task"],
        "first": f"{100 * row['first']:.1f}",
        "last": f"{100 * row['last']:.1f}",
        "change": f"{100 * row['change']:+.1f}",
        "interval": ends,
        "models": row["models"],
    }
