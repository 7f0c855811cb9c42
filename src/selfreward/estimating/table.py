"""An estimate for people: a row a stage, the total with its range, memory, what was assumed."""

import io
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfreward.report.cost import GIB
from selfreward.report.page import duration
from selfreward.texts import counted

Json = Mapping[str, Any]
MANY = 10**7
"""From here on tokens are written in millions."""
BUSY = 0.7
"""Of the processors' time: a rehearsal that had less was disturbed."""


def render_estimate(estimate: Json, width: int = 80) -> str:
    """All of it, as text."""
    if not estimate["stages"]:
        return f"all {counted(estimate['num_finished'], 'stage')} are finished: nothing is left to estimate\n"
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for heading in ("asked", "read", "written", "trained", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in estimate["stages"]:
        times = f" x {row['times']}" if row["times"] > 1 else ""
        table.add_row(f"{row['stage']}{times}", *_cells(row))
    table.add_row("start, seed data", "", "", "", "", duration(estimate["start_seconds"]))
    table.add_row("all", *_cells(estimate["total"]))
    console.print(table)
    for line in _lines(estimate):
        console.print(textwrap.fill(line, max(width, 60), subsequent_indent="  "))
    return console.export_text()


def _cells(row: Json) -> list[str]:
    tokens = [_tokens(row[name]) if row[name] else "-" for name in ("asked", "read", "written", "trained")]
    is_known = row["seconds"] > 0 or not any(row[name] for name in ("asked", "written", "trained"))
    return [*tokens, duration(row["seconds"]) if is_known else "?"]


def _tokens(number: int) -> str:
    """`871,224`; of millions `1,952M`."""
    return f"{number:,}" if number < MANY else f"{number / 10**6:,.0f}M"


def _lines(estimate: Json) -> Iterator[str]:
    total, memory = estimate["total"], estimate["memory"]
    if estimate["num_finished"]:
        yield f"{counted(estimate['num_finished'], 'stage')} finished before: not counted"
    about = "at least" if estimate["uncounted"] else "about"
    yield f"time: {about} {duration(total['seconds'])} ({duration(total['low'])} to {duration(total['high'])})"
    if estimate["uncounted"]:
        yield f"time of {', '.join(estimate['uncounted'])} is not known and not counted; their tokens are"
    training = (
        f"{_gib(memory['training'])} training, of these {_gib(memory['training_state'])} for weights, gradients and "
        f"moments of {memory['num_parameters']:,} parameters"
    )
    yield (
        f"memory ({memory['where']}, the whole process): {_gib(memory['generating'])} generating, "
        + (training if memory["training"] else "no training is left")
    )
    if (share := estimate["calibration_share"]) is not None and share < BUSY:
        yield f"! the rehearsal got {share:.0%} of the processor time that it could use: other programs made the times too long"
    for line in estimate["assumed"]:
        yield f"assumed: {line}"
    yield f"rehearsed for {estimate['calibration_seconds']:.0f} s: {'; '.join(map(_speed, estimate['speeds']))}"


def _gib(number: float) -> str:
    """As the run's own costs tell memory."""
    return f"{number / GIB:.2f} GiB"


def _speed(row: Json) -> str:
    who = "" if row["model"] == "policy" else f" by {row['model']}"
    part = ", less than a batch" if row["is_cut"] else ""
    if "trained" in row:
        return f"{row['kind']} {_rate(row['trained'])} trained on ({row['rows']} rows{part})"
    return f"{row['kind']}{who} {_rate(row['read'])} read, {_rate(row['written'])} written ({row['rows']} rows{part})"


def _rate(tokens: float | None) -> str:
    return "-" if tokens is None else f"{tokens:,.0f} tokens/s"
