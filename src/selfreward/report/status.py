"""How far a run is: one row a stage, from the records alone."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfreward.artifacts import RunDir
from selfreward.report.reading import read_config, read_record, stage_folders
from selfreward.texts import counted


def run_status(run_folder: str | Path) -> list[dict[str, Any]]:
    """Every stage that the run's settings ask for, in order: `stage`, `state` (`done`, `started`, `waiting`), and for finished
    ones `counts`, `seconds`, `tokens`, `fingerprint`, `outputs` (file: SHA-256). Raises CorruptArtifactError."""
    run_dir = RunDir(run_folder)
    rows = []
    for key, folder in stage_folders(run_dir, read_config(run_dir)):
        record = read_record(folder)
        row: dict[str, Any] = {"stage": key, "state": "done" if record else "started" if _has_work(folder) else "waiting"}
        for field in ("counts", "seconds", "tokens", "fingerprint", "outputs"):
            row[field] = record[field] if record else None
        rows.append(row)
    return rows


def render_status(stages: Sequence[Mapping[str, Any]], width: int = 80) -> str:
    """The same for people."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage")
    table.add_column("state")
    for heading in ("in", "out", "dropped", "seconds", "tokens"):
        table.add_column(heading, justify="right")
    for row in stages:
        if row["state"] == "done":
            counts = row["counts"]
            tokens = sum(row["tokens"].values())
            cells = [str(counts["in"]), str(counts["out"]), str(sum(counts["dropped"].values())), f"{row['seconds']:.1f}"]
            table.add_row(row["stage"], row["state"], *cells, f"{tokens:,}" if tokens else "-")
        else:
            table.add_row(row["stage"], row["state"])
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    console.print(table)
    done = sum(row["state"] == "done" for row in stages)
    console.print(f"{done} of {counted(len(stages), 'stage')} done")
    return console.export_text()


def _has_work(folder: Path) -> bool:
    """Whether a stage left files before it was stopped; evaluations inside a stage's folder are their own stage."""
    return folder.is_dir() and any(item.name != "evals" for item in folder.iterdir())
