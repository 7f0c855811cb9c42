"""Which curves the page shows: both axes (answers, judge) over the models, and what each round did."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from selfreward.report.names import NAMES, UNITS
from selfreward.report.reading import Json, estimate, ran_round
from selfreward.report.svg import RATIO, Curve, Series, Unit, histogram, interval_chart, line_chart, share_bars
from selfreward.texts import counted
from selfreward.types import Estimate

Chart = dict[str, Any]
CHANCE = (0.5, "chance")
MAX_BARS = 4
"""More head-to-heads than this are drawn as curves."""


def model_charts(models: Sequence[Json]) -> list[Chart]:
    """Curves over SFT, M1, M2, ...: three on answers, three on judging, three on text; without a value, no chart."""
    sampled_greedy = {"sampled": "oracle_mean", "greedy": "greedy_oracle_mean"}
    exact = {"sampled": "oracle_exact", "greedy": "greedy_oracle_exact"}
    charts = [
        _over(models, "Answers", "Mean oracle score, 0 to 5.", sampled_greedy),
        _over(models, "Right answers", "Share of exactly right answers.", exact),
        contest_chart(models),
        _over(models, "Judge", "Human-ordered pairs that it orders alike; a tie counts 1/2.", {"": "judge_pairwise"}, CHANCE),
        own_score_chart(models),
        pair_chart(models),
        _over(models, "Length", "Characters of a sampled answer.", {"": "mean_length"}),
        _over(models, "Diversity", "distinct-2: different word pairs among all.", {"": "distinct_2"}),
        failure_chart(models),
    ]
    return [chart for chart in charts if chart]


def own_score_chart(models: Sequence[Json]) -> Chart | None:
    """The model's scores of the held-out responses, those of its round's candidates, and the true ones where known."""
    figures = {"held out": "judge_mean", "in its round": "round_judge_mean"}
    if not _measured(models, "round_oracle_mean"):
        return _over(models, "Own scores", "Mean score given to ranked responses and to a round's candidates.", figures)
    note = "Mean score given to ranked responses and to a round's candidates; the candidates' oracle score."
    return _over(models, "Given and true scores", note, figures | {"oracle of its round": "round_oracle_mean"})


def failure_chart(models: Sequence[Json]) -> Chart | None:
    """Held-out answers cut by the token limit, and ranked responses that the judge gave no score."""
    labels = [model["model"] for model in models]
    unscored = [_complement(estimate(model["judge_scored"])) for model in models]
    cut = [estimate(model["truncated_rate"]) for model in models]
    if not any((*unscored, *cut)):
        return None
    body = interval_chart(labels, [Series("answer cut", cut), Series("no judge score", unscored)], UNITS["share"])
    return {"title": "Failures", "note": "Held-out answers and ranked responses.", "body": body}


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
    if len(rows) > MAX_BARS:
        ran = [model for model in models if estimate(model["win_rate"])]
        note = f"Against the model before, on sampled answers, decided by {by}."
        return _over(ran, "Head-to-head", note, {"wins": "win_rate", "loses": "lose_rate"})
    return {"title": "Head-to-head", "note": note, "body": share_bars(rows)}


def pair_chart(models: Sequence[Json]) -> Chart | None:
    """What the candidates of each round were good for."""
    ran = [model for model in models if ran_round(model)]
    truth = _measured(ran, "pairs_truly_better")
    note = "Of a round's prompts: gave a pair, ended in a tie" + ("; of the pairs: truly better." if truth else ".")
    figures = {"gave a pair": "pair_yield", "tied": "tie_rate"} | ({"truly better": "pairs_truly_better"} if truth else {})
    return _over(ran, "Pairs", note, figures)


def score_charts(models: Sequence[Json], scale: tuple[float, float]) -> list[Chart]:
    """Histogram of the scores that each model gave to the held-out ranked responses."""
    return [_scores(model["model"], model["score_histogram"], scale) for model in models]


def round_score_charts(models: Sequence[Json], scale: tuple[float, float]) -> list[Chart]:
    """Histogram of the scores that each round's judge gave."""
    ran = [model for model in models if ran_round(model)]
    return [_scores(f"Round of {model['model']}", model["round_score_histogram"], scale) for model in ran]


def _scores(title: str, counts: Mapping[str, int], scale: tuple[float, float]) -> Chart:
    return {"title": title, "note": f"{counted(sum(counts.values()), 'vote')} with a score", "body": histogram(counts, *scale)}


def training_charts(histories: Mapping[str, Sequence[Json]]) -> list[Chart]:
    """Training curves, one chart a measure, one curve a model: supervised loss, then what preference training reports."""
    charts: list[Chart] = []
    start = {name: rows for name, rows in histories.items() if name in ("SFT", "M1")}
    rounds = {name: rows for name, rows in histories.items() if name not in start}
    charts += _curves("Supervised loss", "Per token of the answers.", start, "loss", RATIO)
    preference = _curves("DPO loss", "The preference part of the loss.", rounds, "dpo_loss", RATIO, (math.log(2), "ln 2"))
    charts += preference or _curves("Loss of the rounds", "", rounds, "loss", RATIO)
    charts += _curves("NLL of the chosen", "Per token of the chosen answers.", rounds, "nll", RATIO)
    charts += _curves(
        "Preference accuracy", "Pairs that the new model orders alike.", rounds, "rewards/accuracies", UNITS["share"]
    )
    charts += _curves("Preference margin", "Implicit reward, chosen - rejected.", rounds, "rewards/margins", RATIO)
    return charts


def _curves(
    title: str,
    note: str,
    histories: Mapping[str, Sequence[Json]],
    key: str,
    unit: Unit,
    reference: tuple[float, str] | None = None,
) -> list[Chart]:
    """One chart of a logged measure, or none where nobody logged it."""
    curves = []
    for model, rows in histories.items():
        points = [(float(row["step"]), float(row[key])) for row in rows if _is_number(row.get(key))]
        if points:
            curves.append(Curve(model, [x for x, _ in points], [y for _, y in points]))
    return [{"title": title, "note": note, "body": line_chart(curves, unit, reference)}] if curves else []


_CONTEST = {"win": "win_rate", "tie": "tie_rate_head_to_head", "lose": "lose_rate"}


def _over(
    models: Sequence[Json], title: str, note: str, figures: Mapping[str, str], reference: tuple[float, str] | None = None
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


def _measured(models: Sequence[Json], figure: str) -> bool:
    """Whether any model has a value."""
    return any(estimate(model[figure]) is not None for model in models)


def _complement(share: Estimate | None) -> Estimate | None:
    """1 - share, with the ends of the interval swapped."""
    if share is None or share.value is None:
        return None
    if share.low is None or share.high is None:
        return Estimate(1 - share.value, None, None, share.n)
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.n)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
