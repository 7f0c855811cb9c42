"""What the seed stage read and kept, as plain text, from its record alone."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfreward.artifacts import RunDir
from selfreward.errors import CorruptArtifactError
from selfreward.report.reading import read_record
from selfreward.texts import counted

TABLES = {
    "ift": "IFT pairs",
    "eft_train": "EFT targets, ready",
    "ranked_train": "ranked sets for EFT",
    "prompts_heldout": "held-out prompts",
    "ranked_heldout": "held-out ranked sets",
}
"""Split -> its name for people."""
NAMES = {**TABLES, "unused_heldout": "unused held-out rows"}
_BAR = 30
"""Characters of the longest bar of a histogram."""


def seed_summary(run_dir: RunDir) -> dict[str, Any]:
    """Counts and notes of a finished seed stage. Raises CorruptArtifactError when there is none."""
    record = read_record(run_dir.seed)
    if record is None:
        raise CorruptArtifactError(f"{run_dir.seed} holds no finished seed stage; run it first")
    return {"counts": record["counts"], "fingerprint": record["fingerprint"], **record["notes"]}


def render_seed(summary: Mapping[str, Any], width: int = 80) -> str:
    """Sources with what they gave and why rows left, then the five tables."""
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    for place, source in enumerate(summary["sources"]):
        console.print(f"source {place + 1}: {source['path'] or 'the embedded micro-world'}", style="bold", soft_wrap=True)
        console.print(_source(source))
    console.print(_tables(summary))
    for split, others in summary["overlaps"].items():
        found = ", ".join(f"{number} with {_name(other)}" for other, number in others.items())
        console.print(f"left out of {_name(split)} for an overlapping prompt: {found}")
    if summary["num_ranked_train"]:
        console.print("ranked sets for EFT: as many are asked for as seed.num_eft targets need, one a reply")
    if not summary["num_ranked_heldout"]:
        console.print("! no held-out ranked sets: the judge's quality will not be measured", style="bold")
    counts = summary["counts"]
    console.print(f"{counted(counts['in'], 'row')} in, {counts['out']:,} kept, {sum(counts['dropped'].values()):,} dropped")
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


def _source(source: Mapping[str, Any]) -> Table:
    """One source as a table of a name and what it says."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    replies = source["replies"]
    table.add_row("format", f"{source['format']} ({'detected' if source['detected'] else 'named'})")
    table.add_row("rows in", f"{source['rows']:,}{', then its cap was reached' if source['stopped_at_cap'] else ''}")
    table.add_row("kept", _listed({_name(split): number for split, number in source["kept"].items()}))
    table.add_row("dropped", _listed(source["dropped"]))
    if replies["in"]:
        table.add_row("replies in", f"{replies['in']:,}, kept {replies['kept']:,}")
        table.add_row("replies dropped", _listed(replies["dropped"]))
    table.add_row("languages", _listed(source["languages"]))
    for name, spread in source["words"].items():
        if spread:
            values = ", ".join(f"{label} {value:,.0f}" for label, value in spread.items())
            table.add_row(f"words, {name}", values)
    most = max(source["scores"].values(), default=0)
    for score, number in source["scores"].items():
        table.add_row(f"score {score}", f"{'#' * max(1, round(_BAR * number / most))} {number:,}")
    table.add_row("", "")
    return table


def _tables(summary: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("table")
    table.add_column("items", justify="right")
    table.add_column("asked for", justify="right")
    for split, name in TABLES.items():
        table.add_row(name, f"{summary[f'num_{split}']:,}", f"{summary['asked'][split]:,}")
    return table


def _name(split: str) -> str:
    return NAMES[split]


def _listed(counts: Mapping[str, int]) -> str:
    """`reason 12, other 3`, the largest first; a dash for nothing."""
    ordered: Sequence[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number:,}" for name, number in ordered) or "-"
