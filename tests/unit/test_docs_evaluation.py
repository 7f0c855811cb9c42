"""The figures in docs/evaluation.md are those that the code gives."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_alpaca_eval import DATA, MODELS, needs_data

from selfreward.evals.alpaca_eval import (
    SHRINK_LENGTH,
    evaluate_alpaca,
    fit_weights,
    length_terms,
    read_annotations,
    read_difficulty,
    read_weights,
)

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def row_of(name: str) -> list[str]:
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@needs_data
@pytest.mark.parametrize("model", MODELS)
def test_the_alpaca_table(model: str) -> None:
    annotations, difficulty = read_annotations(DATA / f"{model}.json"), read_difficulty(DATA / "instruction_difficulty.json")
    given = evaluate_alpaca(annotations, difficulty, read_weights(DATA / "published.json", model))
    results = [given, evaluate_alpaca(annotations, difficulty), evaluate_alpaca(annotations)]
    cells = row_of(model)
    assert cells[1] == f"{given.mean_length:,.0f}"
    assert cells[2].startswith(f"{given.win_rate:.2f},")
    for cell, result in zip(cells[3:6], results, strict=True):
        shown = [float(number) for number in re.findall(r"[\d.]+\d", cell)]
        wanted = [result.length_controlled_win_rate, result.length_controlled_low, result.length_controlled_high]
        # The optimiser's last digits differ between machines.
        assert shown == pytest.approx(wanted, abs=0.06)


@needs_data
def test_the_ridge_in_use_stands_in_its_table() -> None:
    used = row_of(f"{SHRINK_LENGTH:g}")
    for place, model in enumerate(MODELS, 1):
        rows = read_annotations(DATA / f"{model}.json")
        wins = np.array([row.win for row in rows])
        lengths = np.array([[len(row.output_1), len(row.output_2)] for row in rows], dtype=np.float64)
        weights = fit_weights(wins, length_terms(lengths), None)
        assert float(used[place]) == pytest.approx(100 / (1 + np.exp(-weights.model)), abs=0.02)


def test_every_command_is_named() -> None:
    from selfreward.eval_commands import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if not command.hidden}
    assert names == {"alpaca", "compare", "mt-bench", "tasks"}
    assert all(f"selfreward eval {name}" in PAGE for name in names)
