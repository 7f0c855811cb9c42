"""The paper's figures beside a real run's: reward-modelling ability of SFT, M1, M2, M3 (arXiv 2401.10020, section 3.2.2).

The paper's are Llama 2 70B on its own held-out Open Assistant replies; how it counts ties is not reported. They are a place to
look from, not a target that another model on other data must meet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from selfreward.config import Config
from selfreward.report.names import NAMES, interval, number
from selfreward.report.reading import Json, estimate

PAPER_MODELS = ("SFT", "M1", "M2", "M3")
PAPER: Mapping[str, tuple[float, float, float, float]] = {
    "judge_pairwise": (0.651, 0.787, 0.804, 0.817),
    "judge_five_best": (0.396, 0.415, 0.443, 0.432),
    "judge_exact_match": (0.101, 0.131, 0.143, 0.143),
    "judge_spearman": (0.253, 0.279, 0.331, 0.349),
    "judge_kendall": (0.233, 0.253, 0.315, 0.324),
}
"""Figure -> the paper's value of each of `PAPER_MODELS`."""


def is_real(config: Config) -> bool:
    """Whether a run is none of the micro-world, whose figures have nothing to do with the paper's."""
    return all(source.format != "lab" for source in config.seed.sources)


def paper_rows(models: Sequence[Json]) -> list[dict[str, Any]]:
    """One row a figure: ours with its interval and the paper's, for each of our models that the paper has too."""
    ours = [model for model in models if model["model"] in PAPER_MODELS]
    rows = []
    for figure, values in PAPER.items():
        cells = []
        for model in ours:
            known = estimate(model[figure])
            cells.append(
                {
                    "model": model["model"],
                    "ours": "-" if known is None or known.value is None else number(figure, known.value),
                    "interval": interval(figure, model[figure]),
                    "paper": number(figure, values[PAPER_MODELS.index(model["model"])]),
                }
            )
        rows.append({"figure": figure, "label": NAMES[figure].label, "cells": cells})
    return rows if ours else []
