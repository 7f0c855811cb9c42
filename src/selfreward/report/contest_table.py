"""A head-to-head on screen."""

import textwrap
from collections.abc import Mapping
from typing import Any

from selfreward.report.names import FAILURES

FIGURES = {
    "win_rate": ("{a} wins", "share"),
    "tie_rate": ("ties", "share"),
    "lose_rate": ("{b} wins", "share"),
    "net": ("wins - losses", "points"),
    "score": ("wins + ties / 2", "share"),
    "first_position": ("verdicts for the first shown", "share"),
    "length": ("length of {a}", "number"),
    "opponent_length": ("length of {b}", "number"),
    "length_difference": ("length, difference", "signed"),
    "longer_won": ("the longer one won", "share"),
    "win_rate_longer": ("{a} wins where longer", "share"),
    "win_rate_shorter": ("{a} wins where shorter", "share"),
}
"""Figure -> its name and how it is written."""


def render_contest(summary: Mapping[str, Any], width: int = 80) -> str:
    """Counts, figures with intervals and n, and what to know about the judge."""
    counts, names = summary["counts"], {"a": summary["a"], "b": summary["b"]}
    by = summary["judge"] + (f" with the rubric {summary['rubric']}" if summary["rubric"] else "")
    p = counts["sign_test_p"]
    heads = [
        f"{summary['a']} against {summary['b']}, judged by {by}",
        f"{counts['contests']:,} contests: {counts['wins']:,} won, {counts['ties']:,} tied, {counts['losses']:,} lost, "
        f"{counts['no_verdict']:,} without a verdict",
        f"orders disagree in {counts['orders_disagree']:,}; sign test p = {'-' if p is None else f'{p:.3g}'}",
    ]
    if summary["failed_verdicts"]:
        why = ", ".join(f"{FAILURES[reason]} {number:,}" for reason, number in summary["failed_verdicts"].items())
        heads.append(f"replies without a verdict: {why}")
    left_out = [
        f"{counts[f'only_{side}']:,} that only {name} answers" for side, name in names.items() if counts[f"only_{side}"]
    ]
    if counts["beyond_limit"]:
        left_out.append(f"{counts['beyond_limit']:,} beyond --limit")
    if left_out:
        heads.append(f"instructions not compared: {', '.join(left_out)}")
    lines = [*(textwrap.fill(head, width) for head in heads), ""]
    labels = {figure: label.format(**names) for figure, (label, _) in FIGURES.items()}
    wide = min(max(map(len, labels.values())), 40)
    for figure, (_, unit) in FIGURES.items():
        value = summary["figures"][figure]
        if value["value"] is not None:
            lines.append(f"{labels[figure][:wide]:<{wide}}  {_write(value, unit)}  n={value['n']:,}")
    notes = [textwrap.fill(summary["position"], width), textwrap.fill(summary["rule"], width)]
    return "\n\n".join(["\n".join(lines), *notes])


def _write(figure: Mapping[str, Any], unit: str) -> str:
    def one(value: float) -> str:
        if unit == "share":
            return f"{100 * value:.1f}"
        if unit == "points":
            return f"{100 * value:+.1f}"
        return f"{value:+.0f}" if unit == "signed" else f"{value:.0f}"

    text = f"{one(figure['value']):>7}{' %' if unit in ('share', 'points') else '  '}"
    return text if figure["low"] is None else f"{text} [{one(figure['low'])}, {one(figure['high'])}]"
