"""How far a run is: one row a stage, from its records, and with a plan what would be done next."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfreward.artifacts import RunDir, read_rows_metadata
from selfreward.drift import name_accepted
from selfreward.errors import CorruptArtifactError
from selfreward.locking import Holder
from selfreward.planning import Plan, PlannedStage, has_work
from selfreward.report.cost import cost_line, run_cost, stage_cost
from selfreward.report.evaluated import EvaluatedStage, evaluated_stages
from selfreward.report.reading import Json, read_config, read_record, stage_folders
from selfreward.reuse import committed_parts
from selfreward.spending import USAGE, Spending
from selfreward.texts import counted

STALE = "stale: of models that were replaced since, in no report; the same `selfreward eval` command does it again"
NEXT = {"go on": "goes on", "again": "does again", "do": "begins"}


def run_status(run_folder: str | Path) -> list[Json]:
    """Every stage that the run's settings ask for, in order: `stage`, `state` (`done`, `started`, `waiting`), `parts` (how many
    a started stage committed), `seconds` and `tokens` (of parts too), and for finished ones `counts`, `fingerprint`, `outputs`
    (file: SHA-256). Raises CorruptArtifactError."""
    run_dir = RunDir(run_folder)
    return [_row(key, folder) for key, folder in stage_folders(run_dir, read_config(run_dir))]


def plan_status(plan: Plan, holder: Holder | None = None) -> Json:
    """A plan as plain values: `stages` with what `run_status` says of them and their `action`, the differences (`drift`),
    those accepted before, `next`: what `run` would do, as a sentence. With a `holder`, who works there now, the first stage
    that is begun is `running`."""
    rows = [_row(stage.key, plan.directory.root / stage.key) | _planned(stage) for stage in plan.stages]
    if holder is not None:
        for row in [row for row in rows if row["state"] in ("partly", "waiting")][:1]:
            row["state"] = "running"
    return {
        "folder": str(plan.directory.root),
        "exists": plan.directory.config.is_file(),
        "running": str(holder) if holder else None,
        "stages": rows,
        "extra": list(plan.extra),
        "evaluations": [
            {"stage": stage.key, "state": stage.state} | {field: _of(stage, field) for field in ("counts", "seconds", "tokens")}
            for stage in evaluated_stages(plan.directory)
        ],
        "drift": [
            {"field": item.name, "old": item.old, "new": item.new, "stages": list(item.stages), "said": str(item)}
            for item in plan.drift
        ],
        "accepted_drift": [dict(item) for item in plan.accepted],
        "problem": str(plan.problem) if plan.problem else None,
        "next": "wait: " + str(holder) + " is working here" if holder else next_step(plan),
        "seconds": round(sum(row["seconds"] or 0 for row in rows), 3),
        "tokens": {kind: sum((row["tokens"] or {}).get(kind, 0) for row in rows) for kind in ("prompt", "generated")},
        "cost": run_cost(row["cost"] for row in rows if row["cost"])["total"],
    }


def next_step(plan: Plan) -> str:
    """What `run` would do with these settings, in one sentence."""
    if damaged := [stage for stage in plan.stages if stage.state == "damaged"]:
        return f"stop: {damaged[0].problem}"
    if stale := [stage.key for stage in plan.stages if stage.action == "stop"]:
        return f"stop before any work: {', '.join(stale)} were made with other settings"
    if plan.problem is not None:
        return f"stop: {plan.problem}"
    kept = sum(stage.action in ("reuse", "accept") for stage in plan.stages)
    work = [stage for stage in plan.stages if stage.action in NEXT]
    if not work:
        return f"nothing to do: {counted(kept, 'stage')} reused"
    first, parts = work[0], f" behind {counted(work[0].num_parts, 'committed part')}" if work[0].action == "go on" else ""
    rest = f", then {len(work) - 1} more" if len(work) > 1 else ""
    reused = f"{counted(kept, 'stage')} reused; " if kept else ""
    return f"{reused}{NEXT[first.action]} {first.key}{parts}{rest}"


def render_status(stages: Sequence[Mapping[str, Any]], width: int = 80) -> str:
    """The rows for people."""
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    console.print(_table(stages))
    console.print(f"{sum(row['state'] == 'done' for row in stages)} of {counted(len(stages), 'stage')} done")
    return console.export_text()


def render_plan(status: Mapping[str, Any], config: Mapping[str, Any], width: int = 80) -> str:
    """What `plan_status` gives, for people; `config` are the settings of now as a plain tree."""
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    console.print(_table(status["stages"]))
    rows = status["stages"]
    console.print(f"{sum(row['state'] == 'done' for row in rows)} of {len(rows)} stages done")
    console.print(cost_line(status["cost"]))
    if status["evaluations"]:
        console.print(_evaluations(status["evaluations"]))
        if any(row["state"] == "stale" for row in status["evaluations"]):
            console.print(STALE)
    if status["running"]:
        console.print(f"running: {status['running']}")
    for item in status["drift"]:
        console.print(f"drift: {item['said']} ({', '.join(item['stages'])})")
    for change in name_accepted(status["accepted_drift"], config):
        console.print(f"accepted drift: {change} ({', '.join(change.stages)})")
    if status["extra"]:
        console.print(f"not asked for by these settings: {', '.join(status['extra'])}")
    console.print(f"next: {status['next']}")
    return console.export_text()


def _of(stage: EvaluatedStage, field: str) -> Any:
    return stage.record[field] if stage.record else None


def _evaluations(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `selfreward eval` made, a row a judge's ranking and a row a model's tasks."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("of selfreward eval", no_wrap=True, overflow="ellipsis")
    table.add_column("state")
    for heading in ("stages", "seconds", "tokens"):
        table.add_column(heading, justify="right")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault("/".join(row["stage"].split("/")[:2]), []).append(row)
    for name, members in groups.items():
        states = Counter(row["state"] for row in members)
        said = ", ".join(state if number == len(members) else f"{number} {state}" for state, number in states.items())
        tokens = sum(sum((row["tokens"] or {}).values()) for row in members)
        seconds = sum(row["seconds"] or 0 for row in members)
        table.add_row(name, said, str(len(members)), f"{seconds:.1f}", f"{tokens:,}" if tokens else "-")
    return table


def _row(key: str, folder: Path) -> Json:
    record = read_record(folder)
    row: Json = {"stage": key, "state": "done" if record else "started" if has_work(folder) else "waiting", "parts": 0}
    for field in ("counts", "seconds", "tokens", "fingerprint", "outputs"):
        row[field] = record[field] if record else None
    if record is None and (parts := committed_parts(folder)):
        spent = Spending()
        for told in filter(None, map(_told, parts)):
            spent.add_stored(told)
        row["parts"] = len(parts)
        row["seconds"] = round(spent.earlier_seconds, 3)
        row["tokens"] = spent.tokens
        record = {"seconds": row["seconds"], USAGE: spent.record()}
    row["cost"] = stage_cost(key, record) if record else None
    return row


def _told(part: Path) -> Mapping[str, str] | None:
    """What a part says of its cost; None for one that is damaged (a run sets it aside) or that a working run just cleared."""
    try:
        return read_rows_metadata(part)
    except CorruptArtifactError:
        return None


def _planned(stage: PlannedStage) -> Json:
    changes = [{"field": item.field, "old": item.old, "new": item.new} for item in stage.changes]
    return {"state": stage.state, "action": stage.action, "changes": changes, "problem": stage.problem}


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True, min_width=max((len(row["stage"]) for row in rows), default=0))
    table.add_column("state")
    with_plan = any("action" in row for row in rows)
    if with_plan:
        table.add_column("run would")
    for heading in ("in", "out", "dropped", "seconds", "tokens"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts, tokens = row["counts"], sum((row["tokens"] or {}).values())
        cells = [str(counts["in"]), str(counts["out"]), str(sum(counts["dropped"].values()))] if counts else ["", "", ""]
        cells.append("" if row["seconds"] is None else f"{row['seconds']:.1f}")
        cells.append(f"{tokens:,}" if tokens else "-" if counts else "")
        state = row["state"] + (f", {row['parts']} parts" if row["parts"] else "")
        table.add_row(row["stage"], state, *([row["action"]] if with_plan else []), *cells)
    return table
