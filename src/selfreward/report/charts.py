"""Which curves the page shows: both axes (answers, judge) over the models, and what each round did."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from selfreward.report.names import NAMES, UNITS
from selfreward.report.reading import Json, estimate
from selfreward.report.svg import RATIO, Curve, Series, Unit, histogram, interval_chart, line_chart, share_bars

Chart = dict[str, Any]
CHANCE = (0.5, "chance")


def model_charts(models: Sequence[Json]) -> list[Chart]:
    """Curves over SFT, M1, M2, ...; charts without a value are left out."""
    wanted = [
        ("Answers", "Mean oracle score, 0 to 5.", {"sampled": "oracle_mean", "greedy": "greedy_oracle_mean"}, None),
        (
            "Right answers",
            "Share of exactly right answers.",
            {"sampled": "oracle_exact", "greedy": "greedy_oracle_exact"},
            None,
        ),
        ("Judge", "Human-ordered pairs that the judge orders alike; equal scores count 1/2.", {"": "judge_pairwise"}, CHANCE),
        (
            "Judge, rank correlation",
            "With the human order, averaged over ranked sets.",
            {"Spearman": "judge_spearman", "Kendall": "judge_kendall"},
            None,
        ),
        ("Length", "Characters of a sampled answer.", {"": "mean_length"}, None),
        (
            "Diversity",
            "Different words (1) and word pairs (2) among all.",
            {"distinct-1": "distinct_1", "distinct-2": "distinct_2"},
            None,
        ),
    ]
    charts = [_over(models, title, note, figures, reference) for title, note, figures, reference in wanted]
    return [chart for chart in [*charts[:4], contest_chart(models), *charts[4:]] if chart]


def contest_chart(models: Sequence[Json]) -> Chart | None:
    """Win, tie, lose of each model against the one before."""
    rows = []
    for model in models:
        parts = [(name, estimate(model[figure])) for name, figure in _CONTEST.items()]
        known = [(name, part) for name, part in parts if part is not None]
        if len(known) == len(parts):
            rows.append((f"{model['model']} against {model['head_to_head']['opponent'].upper()}", known))
    if not rows:
        return None
    judges = sorted({model["head_to_head"]["judge"] for model in models if model["head_to_head"]})
    by = "the oracle" if judges == ["oracle"] else "the newer model as judge, in both orders"
    note = f"Sampled answers to the held-out prompts, decided by {by}."
    return {"title": "Head-to-head", "note": note, "body": share_bars(rows)}


def round_charts(models: Sequence[Json], scale: tuple[float, float]) -> list[Chart]:
    """What the rounds did, over the models that ran one."""
    ran = [model for model in models if model["judge_mean"]]
    if not ran:
        return []
    truth = "oracle" if any(model["round_oracle_mean"] for model in ran) else None
    own = {"judge": "judge_mean"} | ({"oracle": "round_oracle_mean"} if truth else {})
    note = "Mean score of the round's candidates" + (", by the judge and by the oracle." if truth else ", by the judge.")
    charts = [
        _over(ran, "Given and true scores" if truth else "Own scores", note, own, None),
        _over(
            ran,
            "Pairs",
            "Shares of the round's prompts that gave a pair, that ended in a tie; of the pairs, truly better ones."
            if truth
            else "Shares of the round's prompts that gave a pair, and that ended in a tie.",
            {"gave a pair": "pair_yield", "tied": "tie_rate"} | ({"truly better": "pairs_truly_better"} if truth else {}),
            None,
        ),
    ]
    for model in ran:
        body = histogram(model["score_histogram"], *scale)
        votes = sum(model["score_histogram"].values())
        charts.append({"title": f"Scores that {model['model']}'s round gave", "note": f"{votes:,} votes.", "body": body})
    return [chart for chart in charts if chart]


def training_charts(histories: Mapping[str, Sequence[Json]]) -> list[Chart]:
    """Loss of every training; for preference training also accuracy and margin of the implicit rewards."""
    charts: list[Chart] = []
    for model, rows in histories.items():
        for key, title, unit in _HISTORY:
            points = [(row["step"], row[key]) for row in rows if _is_number(row.get(key))]
            if points:
                curve = Curve(model, [float(x) for x, _ in points], [float(y) for _, y in points])
                charts.append({"title": f"{model}: {title}", "note": "", "body": line_chart([curve], unit)})
    return charts


_CONTEST = {"win": "win_rate", "tie": "tie_rate_head_to_head", "lose": "lose_rate"}
_HISTORY = (
    ("loss", "loss", RATIO),
    ("rewards/accuracies", "preference accuracy", UNITS["share"]),
    ("rewards/margins", "preference margin", RATIO),
)


def _over(
    models: Sequence[Json], title: str, note: str, figures: Mapping[str, str], reference: tuple[float, str] | None
) -> Chart | None:
    """A chart of figures over models; None when no model has any of them."""
    labels = [model["model"] for model in models]
    series = [Series(name, [estimate(model[figure]) for model in models]) for name, figure in figures.items()]
    series = [one for one in series if any(point is not None for point in one.points)]
    if not series:
        return None
    unit: Unit = UNITS[NAMES[next(iter(figures.values()))].unit]
    body: Markup = interval_chart(labels, series, unit, reference)
    return {"title": title, "note": note, "body": body}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
