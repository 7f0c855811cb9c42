"""The commands that run a pipeline, and those that say what a run would do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from selfreward.artifacts import Run, RunDir, read_json
from selfreward.config import Config, parse_config
from selfreward.errors import StoppedError, UsageError
from selfreward.locking import running
from selfreward.pipeline import plan_pipeline, run_pipeline, stage_keys
from selfreward.planning import Options, check_options
from selfreward.preflight import WARNING, check_config
from selfreward.progress import RichProgress
from selfreward.signals import stopping_on_signals
from selfreward.stopping import Stop


def execute(config: Config, options: Options, as_json: bool = False) -> None:
    """Run a pipeline and show what it gave. Signals stop it as `selfreward.signals` says."""
    stop = Stop()
    with stopping_on_signals(stop):
        _warn(config)
        check_options(options, stage_keys(config))
        with Run.open(config, RichProgress()) as run:
            run.stop = stop
            try:
                run_pipeline(run, options.until, replace(options, say=say))
            except StoppedError as error:
                raise _how_to_go_on(error, run, options) from error
            if run.num_stages["reused"]:
                say("stages: {done} done, {reused} finished before and reused".format(**run.num_stages))
        root = Path(config.run_dir) / config.name
        if options.until is None:
            show(root, as_json)
        else:
            typer.echo(f"{options.until} is done: {root / options.until}")


def _warn(config: Config) -> None:
    """Check everything that can be known before a model loads, and show what is only a warning."""
    for line in check_config(config):
        if line.startswith(WARNING):
            say(line)


def _how_to_go_on(error: StoppedError, run: Run, options: Options) -> StoppedError:
    """The same command goes on, but for one that would begin again."""
    if options.again_from is None:
        return error
    return StoppedError(f"stopped ({run.stop.reason}); the same command without --from goes on from here")


def show_plan(config: Config, options: Options, as_json: bool) -> None:
    """Say what a run of a config would do. Makes nothing, not even the folder."""
    _warn(config)
    _tell(config, options, RunDir(Path(config.run_dir) / config.name), as_json)


def show_status(run_folder: Path, as_json: bool) -> None:
    """Say how far a run is and what `run` with its own settings would do."""
    directory = RunDir(run_folder)
    _tell(parse_config(read_json(directory.config), origin=str(directory.config)), Options(), directory, as_json)


def _tell(config: Config, options: Options, directory: RunDir, as_json: bool) -> None:
    from selfreward.report.status import plan_status, render_plan

    plan = plan_pipeline(config, options, directory)
    status = plan_status(plan, running(directory.log))
    typer.echo(json.dumps(status, indent=1) if as_json else render_plan(status, plan.new_config, terminal_width()), nl=as_json)


def show(root: Path, as_json: bool) -> None:
    """Write summary.json and report.html, then print the table or the JSON."""
    from selfreward.report.html import write_report
    from selfreward.report.summary import write_summary
    from selfreward.report.table import render_table

    directory = RunDir(root)
    summary: dict[str, Any] = write_summary(directory)
    write_report(directory, summary)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    typer.echo(render_table(summary, terminal_width()))
    typer.echo(f"report:  {directory.report}\nsummary: {directory.summary}")


def need_run(root: Path) -> None:
    """Raise UsageError for a folder that is no run's."""
    if not (root / "config.json").is_file():
        raise UsageError(f"{root} is not a run folder (no config.json); runs are kept in runs/NAME")


def say(line: str) -> None:
    """A line for a person, beside the results."""
    typer.echo(line, err=True)


def terminal_width() -> int:
    """Columns that tables may take."""
    return min(shutil.get_terminal_size((80, 24)).columns, 120)
