"""`selfreward eval ...`: evaluations that need no run. Heavy imports stay inside the commands."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Evaluate models and files of outputs.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def alpaca(
    annotations: Annotated[Path, typer.Option(help="AlpacaEval's annotations of one model: a JSON list.")],
    glm: Annotated[Path | None, typer.Option(help="Weights of the length-controlled fit to take instead of fitting.")] = None,
    difficulty: Annotated[Path | None, typer.Option(help="{instruction: difficulty} as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """AlpacaEval 2: win rate and length-controlled win rate against the annotations' baseline."""
    from selfreward.evals.alpaca_eval import evaluate_alpaca, read_annotations, read_difficulty, read_weights
    from selfreward.report.alpaca_table import render_alpaca

    rows = read_annotations(annotations)
    weights = read_weights(glm, rows[0].model if rows else "") if glm else None
    result = evaluate_alpaca(rows, read_difficulty(difficulty) if difficulty else None, weights)
    typer.echo(json.dumps(asdict(result), indent=1) if as_json else render_alpaca(asdict(result)))
