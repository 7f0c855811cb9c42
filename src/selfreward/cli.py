"""The command line. Heavy imports stay inside the commands: `selfreward --help` must answer at once.

Exit codes: 0 done, 1 failed or stopped by a signal, 2 wrong usage or config. People never see a traceback; an unexpected
error is written to a file whose name is shown.
"""

import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from selfreward import eval_commands
from selfreward.disk import refusal_of
from selfreward.errors import ConfigError, RunError, SelfRewardError, StoppedError, UsageError
from selfreward.redaction import hide

# Before any Hugging Face import: no telemetry, and no network unless a config asks for it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

INTERRUPTED = "interrupted; the same command goes on from the last finished part"


class InterruptibleGroup(TyperGroup):
    """Says what Ctrl-C means for a run and exits with 1; Typer alone would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(1) from interrupt


app = typer.Typer(
    cls=InterruptibleGroup,
    help="Self-rewarding language models: a model that gets better by judging its own answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lab = typer.Typer(help="The embedded micro-world.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(lab, name="lab")
app.add_typer(eval_commands.app, name="eval")

ConfigFile = Annotated[Path, typer.Argument(help="YAML config, for example configs/demo.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, runs/NAME.")]
VARIANTS_HELP = (
    "Comma-separated, besides the main run: plain_judge, random_judge, positives_only, "
    "same_pairs (the four run when left out), no_nll, no_eft, k1, rounds_6."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]
AgainFrom = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="Do this stage and all behind it again; the old ones are moved aside."),
]
AcceptDrift = Annotated[
    bool, typer.Option("--accept-drift", help="Reuse finished stages although settings differ; their records say so.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be reused and done, and make nothing.")]


@app.command()
def demo(
    overrides: Overrides = None,
    run_dir: Annotated[str, typer.Option(help="Where the run is kept.")] = "runs",
    again_from: AgainFrom = None,
    accept_drift: AcceptDrift = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Take the embedded model from M0 to M3 in minutes and show what it gained."""
    settings = [f"run_dir={json.dumps(run_dir)}", *(overrides or [])]
    _run(preset("demo"), settings, {"again_from": again_from, "accept_drift": accept_drift}, dry_run, as_json)


@app.command()
def run(
    config_file: ConfigFile,
    overrides: Overrides = None,
    again_from: AgainFrom = None,
    accept_drift: AcceptDrift = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run a config from seed data to the report; finished stages are reused."""
    _run(config_file, overrides, {"again_from": again_from, "accept_drift": accept_drift}, dry_run, as_json)


@app.command()
def stage(  # noqa: PLR0913
    config_file: ConfigFile,
    key: Annotated[str, typer.Argument(help="A stage's key, for example m1 or round-1/pairs.")],
    overrides: Overrides = None,
    again_from: AgainFrom = None,
    accept_drift: AcceptDrift = False,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
) -> None:
    """Run up to one stage (and what it needs), then stop."""
    options = {"until": key, "again_from": again_from, "accept_drift": accept_drift}
    _run(config_file, overrides, options, dry_run, as_json)


@app.command()
def seed(config_file: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read and split the seed data alone, and show what was kept and what left. Needs no model.

    With other settings it reads again, as long as nothing else of the run is finished.
    """
    from selfreward.artifacts import Run, RunDir
    from selfreward.config import load_config
    from selfreward.errors import DriftError
    from selfreward.planning import found_stages
    from selfreward.preflight import check_seed
    from selfreward.progress import RichProgress
    from selfreward.report.seed_table import render_seed, seed_summary
    from selfreward.stages import seed as seed_stage

    config = load_config(config_file, overrides or [])
    check_seed(config)
    directory = RunDir(Path(config.run_dir) / config.name)
    with Run.open(config, RichProgress()) as run:
        try:
            made = seed_stage.run(run)
        except DriftError:
            if found_stages(directory) != ["seed"]:
                raise
            typer.echo("the settings or files changed: reading the seed data again", err=True)
            shutil.rmtree(directory.seed)
            made = seed_stage.run(run)
    summary = seed_summary(directory)
    typer.echo(json.dumps(summary, indent=1) if as_json else f"{render_seed(summary, _width())}tables:  {made.path}")


@app.command()
def check(
    config_file: ConfigFile,
    overrides: Overrides = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Rehearse for ten seconds: tokens, time, memory of the run.")
    ] = False,
) -> None:
    """Check a config and the files that it names, without loading a model; with --estimate also say what a run will cost."""
    from selfreward.config import load_config
    from selfreward.preflight import check_config

    config = load_config(config_file, overrides or [])
    for line in check_config(config):
        typer.echo(line)
    if not estimate:
        typer.echo("what the run will cost: selfreward check --estimate rehearses it for ten seconds")
        return
    from selfreward.estimating import estimate_run
    from selfreward.estimating.table import render_estimate
    from selfreward.progress import RichProgress

    typer.echo(render_estimate(estimate_run(config, RichProgress()), _width()), nl=False)


@app.command()
def status(run_folder: RunFolder, as_json: AsJson = False) -> None:
    """Show a run's stages (done, running, stale, begun), what they cost, and what `run` would do next."""
    from selfreward.running import need_run, show_status

    need_run(run_folder)
    show_status(run_folder, as_json)


@app.command()
def report(run_folder: RunFolder, as_json: AsJson = False) -> None:
    """Build summary.json and report.html of a run again from its artifacts and show the table."""
    from selfreward.running import need_run, show

    need_run(run_folder)
    show(run_folder, as_json)


@app.command()
def judge(  # noqa: PLR0913 - a command has as many parameters as it has options
    data: Annotated[Path, typer.Argument(metavar="FILE", help="Responses, or with --agreement ranked ones; a file or folder.")],
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Who judges: a model folder, lab, or endpoint:NAME of the config.")] = None,
    agreement: Annotated[bool, typer.Option("--agreement", help="Measure the judge on what people ranked.")] = False,
    rubric: Annotated[str | None, typer.Option(help="A shipped rubric's name or a file.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Votes for each response.")] = None,
    mode: Annotated[str | None, typer.Option(help="sampled, or expected: the mean of all scores by probability.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where scores and votes go: a .parquet or .jsonl file.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="YAML config to take settings from.")] = None,
    file_format: Annotated[str, typer.Option("--format", help="The data's format, where it is not told from it.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Judge this many rows (or ranked sets) at most.")] = None,
    seeds_of: Annotated[str, typer.Option(help="The stage whose seeds votes have, such as m1/evals of a run.")] = "judge",
    as_json: AsJson = False,
) -> None:
    """Score a file of responses with any model as judge, or measure how well it judges (--agreement)."""
    from selfreward.config import default_config, load_config
    from selfreward.judge_tool import Options, judge_data
    from selfreward.progress import RichProgress
    from selfreward.report.judge_table import render_judge

    changed = overrides or []
    config = load_config(config_file, changed, "judge") if config_file else default_config("judge", changed)
    options = Options(data, model, agreement, rubric, k, mode, out, file_format, limit, seeds_of)
    summary = judge_data(options, config, RichProgress())
    typer.echo(json.dumps(summary, indent=1) if as_json else render_judge(summary, _width()))
    if summary["problem"]:
        raise RunError(summary["problem"])


@lab.command("pretrain")
def lab_pretrain(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    start: Annotated[Path | None, typer.Option("--from", help="A model after some phases, to run the later ones on.")] = None,
    num_phases: Annotated[int, typer.Option("--phases", help="Stop after this many phases; 0 means all.")] = 0,
    scale: Annotated[float, typer.Option(help="Share of the recipe's tokens, for a quick try.")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Pretrain the embedded model M0 from its raw corpus."""
    import dataclasses

    from selfreward.lab.pretrain import Recipe, pretrain
    from selfreward.progress import RichProgress

    if scale <= 0:
        raise UsageError(f"--scale {scale} must be above 0")
    if not 0 <= num_phases <= len(Recipe().phases):
        raise UsageError(f"--phases {num_phases} must be from 0 to {len(Recipe().phases)}, the phases of the recipe")
    wanted = Recipe().phases[: num_phases or None]
    phases = tuple(dataclasses.replace(phase, tokens=int(phase.tokens * scale)) for phase in wanted)
    result = pretrain(out, dataclasses.replace(Recipe(), phases=phases), RichProgress(), threads, start)
    typer.echo(f"M0: {result['parameters']:,} parameters, {result['tokens']:,} tokens in {result['seconds']} s -> {out}")


@lab.command("seeds")
def lab_seeds(
    out: Annotated[Path, typer.Option(help="Folder for the runs and summary.json.")],
    seeds: Annotated[str, typer.Option(help="Comma-separated run seeds.")] = "1,2,3,4,5",
    jobs: Annotated[int, typer.Option(help="Seeds run at the same time, one thread each.")] = 2,
    variants: Annotated[str, typer.Option(help=VARIANTS_HELP)] = "",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repeat the demo over seeds beside its controls and print M_last - M1 with intervals."""
    from selfreward.experiments import parse_seeds, run_seeds, seeds_table

    chosen = [name for name in variants.split(",") if name] or None
    summary = run_seeds(parse_seeds(seeds), out, preset("demo"), list(overrides or []), jobs=jobs, variants=chosen)
    typer.echo(json.dumps(summary, indent=1) if as_json else seeds_table(summary, _width()))


@lab.command("judge-modes")
def lab_judge_modes(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, for example the same run with several seeds.")],
    out: Annotated[Path, typer.Option(help="Folder for the votes and summary.json.")],
    model: Annotated[str, typer.Option(help="Which model of the runs judges: sft, m1, m2, ...")] = "m1",
    sets_from: Annotated[Path | None, typer.Option(help="A run whose ranked sets all judge; else each its own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge held-out ranked sets with sampled and with expected scores: which ranks better, and what each costs."""
    from selfreward.judge_modes import compare_modes, modes_table

    summary = compare_modes(runs, out, model=model, sets_from=sets_from)
    typer.echo(json.dumps(summary, indent=1) if as_json else modes_table(summary, _width()))


@lab.command("data")
def lab_data(
    out: Annotated[Path, typer.Option(help="Folder for the seed files.")],
    heldout: Annotated[str, typer.Option(help="Which held-out set: dev or test.")] = "test",
) -> None:
    """Write the micro-world's seed data as selfreward seed files, to look at or to change."""
    from selfreward.lab.seed_files import write_seed_files

    if heldout not in ("dev", "test"):
        raise UsageError(f"--heldout {heldout!r} must be dev or test")
    write_seed_files(out, heldout)
    typer.echo(f"seed files written to {out}")


def preset(name: str) -> Path:
    """A shipped config: inside the package when installed from a wheel, else the repository's configs/."""
    here = Path(__file__).parent
    for folder in (here / "presets", here.parents[1] / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"the preset {name}.yaml is missing from this installation; install selfreward again")


def _run(config_file: Path, overrides: list[str] | None, options: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    from selfreward.config import load_config
    from selfreward.planning import Options
    from selfreward.running import execute, show_plan

    config = load_config(config_file, overrides or [])
    (show_plan if dry_run else execute)(config, Options(**options), as_json)


def _width() -> int:
    return min(shutil.get_terminal_size((80, 24)).columns, 120)


def main() -> None:
    """Entry point: run a command and turn every error into one line and an exit code."""
    try:
        app()
    except StoppedError as stop:  # as somebody asked: not an error, but not done either
        typer.echo(str(stop), err=True)
        sys.exit(stop.exit_code)
    except SelfRewardError as error:
        for problem in error.problems:
            typer.echo(hide(f"error: {problem}"), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last net: nothing may reach a person as a traceback
        if refusal := refusal_of(error, None):  # outside any stage
            typer.echo(hide(f"error: {refusal}"), err=True)
            sys.exit(refusal.exit_code)
        typer.echo(hide(f"unexpected error: {type(error).__name__}: {error}\n{_keep_traceback()}"), err=True)
        sys.exit(1)


def _keep_traceback() -> str:
    """Write what is being handled to a file of its own; what to tell a person about it."""
    try:
        handle, name = tempfile.mkstemp(prefix="selfreward-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(hide(traceback.format_exc()))
    except OSError as error:
        return f"please report it; its details could not be written to a file: {error}"
    return f"please report it with {name}"


if __name__ == "__main__":
    main()
