"""AlpacaEval 2 on screen."""

from collections.abc import Iterable, Mapping
from typing import Any

from selfreward.report.names import FAILURES


def render_alpaca(result: Mapping[str, Any]) -> str:
    """The two rates with their errors, and what they stand on. `result`: an AlpacaResult as a mapping."""
    weights = result["weights"]
    if not result["fitted"]:
        how = "with the given weights"
    elif weights["difficulty"]:
        how = "fitted on these annotations, with the given difficulties"
    else:
        how = "fitted here without difficulties: rough (docs/evaluation.md)"
    rows = (
        ("win rate", f"{result['win_rate']:.2f} %  standard error {result['standard_error']:.2f}"),
        (
            "length-controlled",
            f"{result['length_controlled_win_rate']:.2f} %  95 % interval "
            f"[{result['length_controlled_low']:.2f}, {result['length_controlled_high']:.2f}]",
        ),
        ("", how),
        ("annotations", f"{result['n']}, of them draws {result['draws']}"),
        ("mean length", f"{result['mean_length']:.0f} characters; the baseline's {result['baseline_mean_length']:.0f}"),
    )
    return _lines(rows)


def render_outputs(summary: Mapping[str, Any]) -> str:
    """What was written and what was left out and, where a judge compared with a baseline, the rates."""
    dropped = ", ".join(f"{reason} {number}" for reason, number in summary["dropped"].items())
    length = "-" if summary["mean_length"] is None else f"{summary['mean_length']:.0f} characters"
    rows = [
        ("generator", summary["generator"]),
        ("instructions", f"{summary['instructions']:,}"),
        ("outputs", f"{summary['written']:,}, cut by the token limit {summary['truncated']:,}, dropped: {dropped or '-'}"),
        ("mean length", length),
        ("written to", summary["outputs"]),
    ]
    if dropped:
        rows.append(("warning", "outputs are missing: a leaderboard takes whole sets only"))
    text = _lines(rows)
    if "alpaca" not in summary:
        return text
    found = summary["alpaca"]
    judged = [("judge", found["judge"] + (", both orders" if found["both_orders"] else ""))]
    if found["no_verdict"]:
        why = [f"{FAILURES[reason]} {number:,}" for reason, number in found["failed_verdicts"].items()]
        judged += [("no verdict", f"{found['no_verdict']:,}"), *(("", reason) for reason in why)]
    judged.append(("written to", found["annotations"]))
    rates = [render_alpaca(found)] if "win_rate" in found else []
    return "\n\n".join([text, "\n".join([_lines(judged), *rates])])


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<19} {text}".rstrip() for name, text in rows)
