"""The end table of a run as plain text, 80 columns wide by default."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selfreward.report.cost import cost_line
from selfreward.report.names import NAMES, interval, number, with_half
from selfreward.report.reading import estimate

COLUMNS: dict[str, tuple[str, bool]] = {
    "oracle_mean": ("oracle\n0-5", True),
    "greedy_oracle_mean": ("greedy\n0-5", True),
    "oracle_exact": ("exact\n%", False),
    "judge_pairwise": ("judge\npairs %", True),
    "judge_spearman": ("Spear-\nman", False),
    "judge_mean": ("own\nscore", False),
    "parse_failure_rate": ("no\nscore %", False),
    "mean_length": ("length\nchars", False),
    "distinct_2": ("dis-\ntinct-2", False),
}
"""Figure -> its heading and whether half its interval is shown."""
ORACLE_COLUMNS = frozenset({"oracle_mean", "greedy_oracle_mean", "oracle_exact"})
CHANGES = ("oracle_mean", "oracle_exact", "greedy_oracle_mean", "judge_pairwise", "judge_spearman", "judge_mean", "mean_length")


def render_table(summary: Mapping[str, Any], width: int = 80) -> str:
    """Verdict, one row a model, the change from M1 to the last model with intervals, and the cost in one line."""
    console = Console(width=max(width, 60), file=io.StringIO(), record=True, highlight=False, markup=False)
    verdict = summary["verdict"]
    console.print(f"{summary['name']}: {verdict['word']}", style="bold")
    console.print(verdict["reason"])
    for warning in verdict["warnings"]:
        console.print(f"! {warning}")
    console.print()
    if not summary["models"]:
        console.print("No model is evaluated yet.")
        console.print(cost_line(summary["cost"]["total"]))
        return console.export_text()
    console.print(_models(summary["models"]))
    console.print(_legend(summary["models"]), style="dim")
    changes = [figure for figure in CHANGES if estimate(summary["differences"].get(figure))]
    if changes:
        console.print(_changes(summary, changes))
    console.print(cost_line(summary["cost"]["total"]))
    return console.export_text()


def _models(models: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("\nmodel", no_wrap=True)
    figures = _shown(models)
    for figure in figures:
        table.add_column(COLUMNS[figure][0], justify="right", no_wrap=True)
    with_contest = any(estimate(model["win_rate"]) for model in models)
    if with_contest:
        table.add_column("win/\nlose %", justify="right", no_wrap=True)
    for model in models:
        cells = [_cell(figure, model[figure]) for figure in figures]
        table.add_row(model["model"], *cells, *([_contest(model)] if with_contest else []))
    return table


def _shown(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures that at least one model has; diversity takes the place of an oracle that is not there."""
    figures = [figure for figure in COLUMNS if any(estimate(model[figure]) for model in models)]
    return [figure for figure in figures if figure != "distinct_2"] if ORACLE_COLUMNS & set(figures) else figures


def _cell(figure: str, value: Mapping[str, Any] | None) -> str:
    """`3.44 ±.05`; the unit stands in the heading."""
    text, half = with_half(figure, value)
    text = text.removesuffix(" %")
    return f"{text} {half.replace('±0.', '±.')}" if half and COLUMNS[figure][1] else text


def _contest(model: Mapping[str, Any]) -> str:
    wins, losses = estimate(model["win_rate"]), estimate(model["lose_rate"])
    if wins is None or losses is None or wins.value is None or losses.value is None:
        return "-"
    return f"{100 * wins.value:.0f}/{100 * losses.value:.0f}"


def _legend(models: Sequence[Mapping[str, Any]]) -> str:
    size = {figure: max((model[figure] or {"n": 0})["n"] for model in models) for figure in ("mean_length", "judge_pairwise")}
    own = "; own score, no score: of the ranked responses" if any(estimate(model["judge_mean"]) for model in models) else ""
    contest = "; win/lose: against the model before" if any(estimate(model["win_rate"]) for model in models) else ""
    return (
        f"± half a 95 % interval; n = {size['mean_length']} held-out prompts, {size['judge_pairwise']} ranked sets; "
        f"judge pairs: equal scores count 1/2{own}{contest}"
    )


def _changes(summary: Mapping[str, Any], figures: Sequence[str]) -> Table:
    last, first = summary["difference_of"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"{last} - {first}")
    table.add_column("change", justify="right")
    table.add_column("95 % interval")
    table.add_column("n", justify="right")
    for figure in figures:
        change = summary["differences"][figure]
        unit = " (points)" if NAMES[figure].unit == "share" else ""
        value = number(figure, change["value"], sign=True)
        table.add_row(f"{NAMES[figure].label}{unit}", value, interval(figure, change, sign=True), str(change["n"]))
    return table
