"""`selfreward eval ...`: evaluate a run, or models and files without one. Heavy imports stay inside the commands."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from selfreward.errors import RunError, UsageError

if TYPE_CHECKING:
    from selfreward.config import Config

RUN_COMMAND = "run"


class RunOrCommand(TyperGroup):
    """`eval RUN` beside `eval COMMAND`: a first word that is no command is a run's folder, or a mistake that is named."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command for these words; a run's folder goes to the hidden command `run`."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            if not Path(args[0]).is_dir():
                near = get_close_matches(args[0], self.commands, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                known = ", ".join(name for name, command in self.commands.items() if not command.hidden)
                raise UsageError(f"eval {args[0]!r} is neither a run folder here nor a command; {hint}commands: {known}")
            args = [RUN_COMMAND, *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=RunOrCommand,
    help="Evaluate a run (`selfreward eval RUN`), models, or files of outputs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML config to take settings from.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take this many instructions at most.")]
RubricName = Annotated[str | None, typer.Option(help="A shipped rubric's name or a file.")]


@app.command(RUN_COMMAND, hidden=True)
def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, runs/NAME.")],
    judge: Annotated[str | None, typer.Option(help="Who compares all models, in place of the run's own judge.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="YAML config whose endpoints --judge may name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate what a run lacks, compare all its models, and print one row a model."""
    from selfreward.config import load_config
    from selfreward.eval_tools.whole_run import evaluate_run
    from selfreward.progress import RichProgress
    from selfreward.report.run_table import render_run

    if config_file is not None and judge is None:
        raise UsageError(f"--config {str(config_file)!r} describes endpoints for --judge; name one: --judge endpoint:NAME")
    endpoints = load_config(config_file, []).endpoints if config_file else {}
    _show(evaluate_run(run_folder, judge, RichProgress(), endpoints), as_json, render_run)


@app.command()
def alpaca(  # noqa: PLR0913 - a command has as many parameters as it has options
    overrides: Overrides = None,
    annotations: Annotated[Path | None, typer.Option(help="AlpacaEval's annotations of one model: a JSON list.")] = None,
    glm: Annotated[Path | None, typer.Option(help="Weights of the length-controlled fit to take instead of fitting.")] = None,
    difficulty: Annotated[Path | None, typer.Option(help="{instruction: difficulty} as JSON.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose outputs: a model folder, lab, endpoint:NAME, or outputs.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Instructions: AlpacaEval's set, annotations, or prompts.")] = None,
    outputs: Annotated[Path | None, typer.Option(help="Where outputs go, in AlpacaEval's format: a .json file.")] = None,
    name: Annotated[str | None, typer.Option(help="What the outputs call the model (generator).")] = None,
    baseline: Annotated[Path | None, typer.Option(help="The baseline's outputs, or annotations that hold them.")] = None,
    judge: Annotated[str | None, typer.Option(help="Who compares with the baseline; oracle in the micro-world.")] = None,
    rubric: RubricName = None,
    limit: Limit = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """AlpacaEval 2: both win rates of an annotations file, or a model's outputs (with --baseline and --judge: both)."""
    from selfreward.evals.alpaca_eval import read_difficulty
    from selfreward.report.alpaca_table import render_alpaca, render_outputs

    hard = read_difficulty(difficulty) if difficulty else None
    if annotations is not None:
        _refuse_idle(
            {
                "--model": model, "--outputs": outputs, "--prompts": prompts, "--baseline": baseline, "--judge": judge,
                "--name": name, "--rubric": rubric, "--limit": limit, "--config": config_file,
                "section.key=value": " ".join(overrides or []) or None,
            }
        )  # fmt: skip
        result = _alpaca_rates(annotations, glm, hard)
        _show(result, as_json, render_alpaca)
        return
    if model is None or outputs is None:
        raise UsageError("give --annotations FILE for rates, or --model, --prompts and --outputs to write outputs")
    if glm is not None:
        raise UsageError(f"--glm {str(glm)!r} holds weights of published annotations; they do not fit another judge's")
    from selfreward.eval_tools.alpaca import alpaca_outputs
    from selfreward.eval_tools.options import AlpacaOptions
    from selfreward.progress import RichProgress

    options = AlpacaOptions(
        model=model, name=name, outputs=outputs, prompts=prompts, baseline=baseline, judge=judge, rubric=rubric, limit=limit,
        difficulty=hard,
    )  # fmt: skip
    summary = alpaca_outputs(options, _settings("alpaca", config_file, overrides), RichProgress())
    _show(summary, as_json, render_outputs)


@app.command()
def compare(  # noqa: PLR0913
    a: Annotated[str, typer.Argument(metavar="A", help="A model, a file of outputs, or a run's evals folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, to compare it with.")],
    judge: Annotated[str, typer.Option(help="A model folder, endpoint:NAME, lab; oracle in the micro-world.")],
    overrides: Overrides = None,
    rubric: RubricName = None,
    prompts: Annotated[Path | None, typer.Option(help="Instructions, where A or B is a model.")] = None,
    out: Annotated[Path | None, typer.Option(help="A row a contest: a .parquet or .jsonl file.")] = None,
    limit: Limit = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Two models or two files of outputs head to head: both orders, ties, intervals, position bias, length."""
    from selfreward.eval_tools.compare import compare as run_compare
    from selfreward.eval_tools.options import CompareOptions
    from selfreward.progress import RichProgress
    from selfreward.report.contest_table import render_contest

    options = CompareOptions(a=a, b=b, judge=judge, rubric=rubric, prompts=prompts, out=out, limit=limit)
    _show(run_compare(options, _settings("compare", config_file, overrides), RichProgress()), as_json, render_contest)


@app.command("mt-bench")
def mt_bench(  # noqa: PLR0913
    model: Annotated[str, typer.Option(help="Who answers: a model folder, lab, endpoint:NAME, or a file of answers.")],
    questions: Annotated[Path, typer.Option(help="MT-Bench's questions: JSON lines.")],
    out: Annotated[Path, typer.Option(help="Folder for answers, grades and the work.")],
    overrides: Overrides = None,
    judge: Annotated[str | None, typer.Option(help="Who grades; without one the model only answers.")] = None,
    references: Annotated[Path | None, typer.Option(help="Reference answers, in FastChat's format of answers.")] = None,
    rubric: RubricName = None,
    name: Annotated[str | None, typer.Option(help="What the files call the model.")] = None,
    temperature: Annotated[float | None, typer.Option(help="For all categories, in place of FastChat's of each.")] = None,
    limit: Limit = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """MT-Bench: two-turn answers and grades by category, in FastChat's file formats."""
    from selfreward.eval_tools.mt_bench import DEFAULTS, run_mt_bench
    from selfreward.eval_tools.options import BenchOptions
    from selfreward.progress import RichProgress
    from selfreward.report.bench_table import render_bench

    options = BenchOptions(
        model=model, name=name, questions=questions, out=out, judge=judge, references=references, rubric=rubric,
        temperature=temperature, limit=limit,
    )  # fmt: skip
    changed = overrides or [] if config_file else [*DEFAULTS, *(overrides or [])]
    _show(run_mt_bench(options, _settings("mt-bench", config_file, changed), RichProgress()), as_json, render_bench)


@app.command()
def tasks(  # noqa: PLR0913
    tasks: Annotated[str, typer.Option(help="Comma-separated tasks of the harness, such as arc_easy,hellaswag.")],
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="A model folder, or lab.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results of --model.")] = None,
    of_run: Annotated[Path | None, typer.Option("--run", help="All models of a run; results stay in its folder.")] = None,
    include: Annotated[Path | None, typer.Option(help="A folder with task files of your own.")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num-fewshot", min=0, help="Examples; else the task's own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task at most; for a try only.")] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Standard tasks through lm-evaluation-harness, and for a run what its rounds cost in ability."""
    from selfreward.eval_tools.options import TaskOptions
    from selfreward.eval_tools.tasks import run_tasks
    from selfreward.progress import RichProgress
    from selfreward.report.task_rows import render_tasks

    if of_run is not None and (overrides or config_file):
        raise UsageError("--run takes the run's own settings; leave --config and section.key=value out")
    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    options = TaskOptions(tasks=names, model=model, out=out, run=of_run, include=include, num_fewshot=num_fewshot, limit=limit)
    _show(run_tasks(options, _settings("tasks", config_file, overrides), RichProgress()), as_json, render_tasks)


def _refuse_idle(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that would change nothing."""
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    if given:
        raise UsageError(
            f"--annotations FILE needs --glm and --difficulty at most; leave {', '.join(given)} out, or leave --annotations out"
        )


def _alpaca_rates(annotations: Path, glm: Path | None, hard: dict[str, float] | None) -> dict[str, Any]:
    from selfreward.evals.alpaca_eval import evaluate_alpaca, read_annotations, read_weights

    rows = read_annotations(annotations)
    weights = read_weights(glm, rows[0].model if rows else "") if glm else None
    return asdict(evaluate_alpaca(rows, hard, weights))


def _settings(name: str, config_file: Path | None, overrides: list[str] | None) -> "Config":
    from selfreward.config import default_config, load_config

    changed = overrides or []
    return load_config(config_file, changed) if config_file else default_config(name, changed)


def _show(result: dict[str, Any], as_json: bool, render: Any) -> None:
    typer.echo(json.dumps(result, indent=1) if as_json else render(result))
    if result.get("problem"):
        raise RunError(result["problem"])
