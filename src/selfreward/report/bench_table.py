"""MT-Bench on screen: a row a category, with n and intervals."""

import textwrap
from collections.abc import Mapping
from typing import Any

from selfreward.report.names import FAILURES


def render_bench(summary: Mapping[str, Any]) -> str:
    """What was answered and, where a judge graded, the table."""
    dropped = ", ".join(f"{reason} {number}" for reason, number in summary["dropped"].items()) or "-"
    lines = [
        f"{summary['model']}: {summary['questions']} questions, {summary['answered_turns']} turns answered",
        f"cut by the token limit {summary['truncated']}, dropped: {dropped}",
        f"answers:   {summary['answers']}",
    ]
    if summary["judge"] is None:
        return "\n".join([*lines, "not graded: name a --judge"])
    low, high = summary["scale"]
    votes, references = summary["votes"], summary["references"]
    failures = ", ".join(f"{FAILURES[reason]} {number}" for reason, number in votes["failures"].items()) or "-"
    lines += [
        f"judgments: {summary['judgments']}",
        f"judge:     {summary['judge']} with the rubric {summary['rubric']}, {low:g} to {high:g}",
        textwrap.fill(f"failed votes: {failures}", 80),
        f"references: {references['given']} of {references['needed']} questions on math, reasoning and coding have one",
        "",
        f"{'category':<12} {'turn 1':>17} {'turn 2':>17} {'both':>17} {'n':>4} {'missing':>7}",
    ]
    for row in summary["categories"]:
        cells = " ".join(f"{_cell(row[label]):>17}" for label in ("first", "second", "both"))
        lines.append(f"{row['category'][:12]:<12} {cells} {row['both']['n']:>4} {row['missing']:>7}")
    return "\n".join([*lines, "", "95 % intervals over questions; n questions with a grade, missing turns without"])


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    text = f"{figure['value']:.2f}"
    return text if figure["low"] is None else f"{text} [{figure['low']:.2f}, {figure['high']:.2f}]"
