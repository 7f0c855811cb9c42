"""What `selfreward judge` found, as plain text."""

import io
import textwrap
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfreward.report.names import FAILURES
from selfreward.texts import counted

FIGURES = {
    "judge_pairwise": "pairwise accuracy",
    "judge_pairwise_strict": "pairwise accuracy, ties wrong",
    "judge_five_best": "5-best",
    "judge_exact_match": "exact match",
    "judge_spearman": "Spearman",
    "judge_kendall": "Kendall tau-b",
    "judge_tied": "pairs that tie",
    "judge_scored": "responses with a score",
    "first_position": "prefers the first shown",
}
"""Figure -> its name; the paper's five come first, in its order but for the stricter variant."""
HEALTH = {
    "mean_score": "mean score",
    "scored": "responses with a score",
    "failed_votes": "failed votes",
    "vote_spread": "vote spread (sd)",
    "length_within_sets": "score and length, within sets",
    "length_overall": "score and length, overall",
}
BRIEF = "Intervals resample prompts. Responses without a score are in no figure of scores. All terms: docs/judging.md."
"""Below a table of scores; agreement is a measurement, and its rules stand below it."""
UNSCORED = {**FAILURES, "blank": "blank response, not shown to the judge"}
_BAR = 30


def render_judge(summary: Mapping[str, Any], width: int = 80) -> str:
    """Data, agreement, health, rules."""
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    console.print(_head(summary))
    names = {**FIGURES, **HEALTH}
    figures = {**summary.get("figures", {}), **summary.get("health", {})}
    rows = {name: figures[name] for name in names if name in figures}
    if "figures" in summary and "health" in summary:
        rows = {name: figures.get(name, _NOTHING) for name in names if name not in ("first_position", "scored")}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("figure", "value", "95 % interval", "prompts"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, figure in rows.items():
        table.add_row(names[name], _number(figure["value"]), _interval(figure), f"{figure['n']:,}")
    if rows:
        console.print(table)
    else:
        console.print("no figures: not one pair was decided\n")
    if "votes" in summary:
        console.print(_votes(summary["votes"], "near" if summary["judge"]["mode"] == "expected" else "of"))
    elif summary["verdicts"]["failures"]:
        console.print(_failed_verdicts(summary["verdicts"]))
    text = "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())
    said = [rule for _, rule in sorted(summary["rules"].items(), reverse=True)] if "figures" in summary else [BRIEF]
    rules = [textwrap.fill(rule, max(width, 60)) for rule in said]
    return "\n".join([text, *rules, ""])


_NOTHING = {"value": None, "low": None, "high": None, "n": 0}


def _head(summary: Mapping[str, Any]) -> Table:
    table = _plain_table()
    data, judge, counts = summary["data"], summary["judge"], summary["counts"]
    table.add_row("data", f"{data['path']}, format {data['format']} ({'detected' if data['detected'] else 'named'})")
    table.add_row("rows", f"{data['rows']:,}, dropped: {_listed(data['dropped'])}")
    table.add_row("replies", f"{data['replies']:,}, dropped: {_listed(data['replies_dropped'])}")
    for name, note in data["notes"].items():
        table.add_row("", f"{name}: {note}")
    plural = "" if judge.get("num_votes") == 1 else "s"
    votes = f", {judge['num_votes']} vote{plural}, {judge['mode']}" if "mode" in judge else ", both orders, greedy"
    if judge["panel"]:
        for fact in judge["panel"]:
            own = f"{fact['num_votes']} vote{'' if fact['num_votes'] == 1 else 's'}, {judge['mode']}, weight {fact['weight']:g}"
            table.add_row("panel", f"{fact['model']} by {fact['rubric']}, {own}")
    else:
        table.add_row("judge", f"{judge['model']} by {judge['rubric']}{votes}")
    table.add_row("judged", _listed(counts))
    if "unscored" in summary:
        table.add_row("scored", _coverage(counts, summary["unscored"]))
    table.add_row("tokens", f"{summary['tokens']['prompt']:,} asked, {summary['tokens']['generated']:,} written")
    if summary["out"]:
        table.add_row("written to", summary["out"])
    return table


def _coverage(counts: Mapping[str, int], unscored: Mapping[str, int]) -> str:
    """How many responses have a score, and why the others have none: the first thing to know about all figures."""
    share = f"{counts['scored']:,} of {counts['responses']:,} responses ({counts['scored'] / counts['responses']:.1%})"
    if not unscored:
        return share
    why = ", ".join(f"{UNSCORED.get(reason, reason)} {number:,}" for reason, number in unscored.items())
    return f"{share}; the others are in no figure of scores: {why}"


def _failed_verdicts(verdicts: Mapping[str, Any]) -> Table:
    table = _plain_table()
    for reason, number in verdicts["failures"].items():
        share = number / verdicts["num_verdicts"]
        table.add_row("failed", f"{FAILURES[reason]}: {number:,} of {verdicts['num_verdicts']:,} verdicts ({share:.1%})")
    return table


def _plain_table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _votes(votes: Mapping[str, Any], at: str) -> Table:
    """The histogram of the votes' scores, and why votes failed."""
    table = _plain_table()
    most = max(votes["score_histogram"].values(), default=0)
    for score, number in votes["score_histogram"].items():
        table.add_row(f"votes {at} {score}", f"{'#' * max(1, round(_BAR * number / most))} {number:,}")
    for reason, number in votes["failures"].items():
        share = number / votes["num_votes"]
        table.add_row("failed", f"{FAILURES[reason]}: {number:,} of {votes['num_votes']:,} ({share:.1%})")
    if votes["num_retries"]:
        table.add_row(
            "asked again", f"{counted(votes['num_retries'], 'reply', 'replies')}: {_listed(votes['retried_failures'])}"
        )
    if votes.get("mean_mass") is not None:
        table.add_row("legal scores", f"{votes['mean_mass']:.3f} of the probability on average")
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in counts.items()) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return "-" if figure["value"] is None else "too few"
    return f"{figure['low']:.3f} to {figure['high']:.3f}"
