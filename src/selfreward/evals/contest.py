"""What a head-to-head says: win, tie and loss rates, position bias, and what length had to do with it. Pure.

In: decided contests with the lengths of both responses. A unit is a prompt: both responses to it are drawn together, so
resampling prompts pairs the sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from selfreward.evals.head_to_head import Comparison, Contest, comparison_measures
from selfreward.statistics import NOTHING, Units, bootstrap_mean, bootstrap_share, sign_test, wilson
from selfreward.types import Estimate

RULE = (
    "Every pair of responses is shown in both orders. A win needs both verdicts, orders that disagree are a tie, and so are "
    "equal texts, which nobody is asked about. An unreadable verdict makes the comparison missing: it counts in no rate. "
    "Rates have Wilson's interval over prompts; `score` (a tie is half a win), `net` (wins minus losses) and lengths are "
    "resampled by prompt, both sides together. The sign test leaves ties out. Length: characters."
)
ORACLE_RULE = (
    "The micro-world's oracle scores both responses; the higher score wins, equal scores tie. There are no orders. Intervals "
    "as for any judge: Wilson's for rates, resampling by prompt for `score`, `net` and lengths."
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One contest of a table: who won, and the lengths in characters. `first` is side A."""

    id: str
    prompt: str
    outcome: str | None
    first_shown_first: str | None
    first_shown_second: str | None
    first_length: int
    second_length: int


def outcomes(contests: Sequence[Contest], comparisons: Sequence[Comparison]) -> list[Outcome]:
    """Contests beside their comparisons, in their order; side A is `new`."""
    names = {"new": "A", "old": "B", "tie": "tie", None: None}
    return [
        Outcome(
            item.prompt_id, item.prompt, row.outcome, names[row.new_first], names[row.old_first], len(item.new), len(item.old)
        )
        for item, row in zip(contests, comparisons, strict=True)
    ]


def contest_figures(
    contests: Sequence[Contest], comparisons: Sequence[Comparison], seed: Callable[[str], int], samples: int
) -> dict[str, Estimate]:
    """Every figure of a head-to-head for side A (`new`); `seed` maps a figure to its seed.

    `win_rate`, `tie_rate`, `lose_rate`, `score`, `net`; `first_position` (of the verdicts that prefer a response, how many the
    one shown first); `length`, `opponent_length`, `length_difference`; `longer_won` (of contests with a winner whose responses
    differ in length), `win_rate_longer` and `win_rate_shorter` (A's, where its response was the longer or shorter one).
    """
    decided = [(item, row.outcome) for item, row in zip(contests, comparisons, strict=True) if row.outcome is not None]
    results = [outcome for _, outcome in decided]
    worth = {"win": 1.0, "tie": 0.5, "lose": 0.0}
    score: Units = {item.prompt_id: (worth[outcome], 1.0) for item, outcome in decided}
    gaps = [(len(item.new) - len(item.old), outcome) for item, outcome in decided]
    unequal = [(gap > 0) == (outcome == "win") for gap, outcome in gaps if gap and outcome != "tie"]
    longer = [outcome == "win" for gap, outcome in gaps if gap > 0]
    shorter = [outcome == "win" for gap, outcome in gaps if gap < 0]
    lengths = {name: bootstrap_mean(units, seed(name), samples) for name, units in _lengths(contests).items()}
    worth_of_all = bootstrap_share(score, seed("score"), samples)
    return {
        "win_rate": wilson(results.count("win"), len(results)),
        "tie_rate": wilson(results.count("tie"), len(results)),
        "lose_rate": wilson(results.count("lose"), len(results)),
        "score": worth_of_all,
        "net": _net(worth_of_all),
        "first_position": first_position(comparisons, seed("first_position"), samples),
        **lengths,
        "longer_won": wilson(sum(unequal), len(unequal)),
        "win_rate_longer": wilson(sum(longer), len(longer)),
        "win_rate_shorter": wilson(sum(shorter), len(shorter)),
    }


def first_position(comparisons: Sequence[Comparison], seed: int, samples: int) -> Estimate:
    """Of the verdicts that prefer a response, how many the one shown first. Comparisons on one prompt are one unit."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for row in comparison_measures(comparisons):
        if row.figure == "first_position":
            grouped.setdefault(row.unit, []).append((row.value, row.weight))
    units: Units = {
        unit: (sum(value * weight for value, weight in rows) / sum(weight for _, weight in rows), sum(w for _, w in rows))
        for unit, rows in grouped.items()
    }
    return bootstrap_share(units, seed, samples) if units else NOTHING


def contest_counts(comparisons: Sequence[Comparison]) -> dict[str, int | float | None]:
    """How the contests ended, and the sign test's two-sided p."""
    results = [row.outcome for row in comparisons]
    asked = [row for row in comparisons if row.new_first is not None and row.old_first is not None]
    wins, losses = results.count("win"), results.count("lose")
    return {
        "contests": len(comparisons),
        "wins": wins,
        "ties": results.count("tie"),
        "losses": losses,
        "no_verdict": results.count(None),
        "orders_disagree": sum(row.new_first != row.old_first for row in asked),
        "sign_test_p": sign_test(wins, losses),
    }


def position_sentence(first: Estimate) -> tuple[bool | None, str]:
    """Whether the judge prefers a position, in a plain sentence; None where that cannot be said."""
    if first.value is None:
        return None, "Position bias cannot be told: no verdict prefers a response."
    share = f"{100 * first.value:.0f} %"
    if first.low is None or first.high is None:
        return None, f"Position bias cannot be told from one prompt ({share} of verdicts for the response shown first)."
    share += f" [{100 * first.low:.0f}, {100 * first.high:.0f}]"
    if first.low <= 0.5 <= first.high:
        return (
            False,
            f"No position bias found: {share} of the verdicts are for the response shown first; without bias it is 50 %.",
        )
    place = "first" if first.low > 0.5 else "second"
    return True, (
        f"The judge is position-biased: it prefers the response shown {place} ({share} of its verdicts are for the first; "
        "unbiased is 50 %). Both orders are asked, so bias makes ties and no winner, but it hides who is better."
    )


def _net(score: Estimate) -> Estimate:
    """Wins minus losses over all: the score on a scale from -1 to 1."""
    low, high = (None if end is None else 2 * end - 1 for end in (score.low, score.high))
    return Estimate(None if score.value is None else 2 * score.value - 1, low, high, score.n)


def _lengths(contests: Sequence[Contest]) -> Mapping[str, Units]:
    return {
        "length": {item.prompt_id: (float(len(item.new)), 1.0) for item in contests},
        "opponent_length": {item.prompt_id: (float(len(item.old)), 1.0) for item in contests},
        "length_difference": {item.prompt_id: (float(len(item.new) - len(item.old)), 1.0) for item in contests},
    }
