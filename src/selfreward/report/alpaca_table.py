"""AlpacaEval 2 on screen."""

from collections.abc import Mapping
from typing import Any


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
    return "\n".join(f"{name:<19} {text}".rstrip() for name, text in rows)
