"""Small runs beside an output: work that goes on where it was stopped, without a run of the method.

The work of `--out x.json` lies in the folder `x.json.run`: a run with a config, a log, and one stage for each step.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, Run, RunDir, Stage, read_json
from selfreward.config import FIRST, POLICY, Config, parse_config
from selfreward.config.endpoints import unknown_endpoint
from selfreward.errors import DriftError, UsageError
from selfreward.progress import Progress
from selfreward.types import Counts

RUN_SUFFIX = ".run"


@contextmanager
def small_run(out: Path | None, config: Config, progress: Progress) -> Iterator[Run]:
    """The run in `<out>.run`; one in a temporary folder where nothing is to be kept."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="selfreward-eval-") as folder, _open(Path(folder), config, progress) as run:
            yield run
        return
    with _open(Path(f"{out}{RUN_SUFFIX}"), config, progress) as run:
        yield run


@contextmanager
def folder_run(folder: Path, config: Config, progress: Progress) -> Iterator[Run]:
    """The run in a folder of the user's choice. Raises UsageError for the folder of a run of the method."""
    _refuse_whole_run(folder)
    with _open(folder, config, progress) as run:
        yield run


def _refuse_whole_run(folder: Path) -> None:
    """Opening a run of the method as a small one would write other settings over its config.json."""
    path = RunDir(folder).config
    if not path.is_file():
        return
    config = parse_config(read_json(path), origin=str(path))
    if without_training(config) != config:
        raise UsageError(f"--out {str(folder)!r} is the folder of a run, whose settings this would replace; name another")


def _open(folder: Path, config: Config, progress: Progress) -> Run:
    return Run.open(config.model_copy(update={"run_dir": str(folder.parent), "name": folder.name}), progress)


def do_stage(
    run: Run, key: str, sections: Mapping[str, Any], inputs: Mapping[str, Artifact], work: Callable[[Stage], Counts]
) -> Artifact:
    """One step, done or reused. Raises UsageError where the place holds the step with other settings or data."""
    try:
        return run.stage(key, sections, inputs, work)
    except DriftError as error:
        why = str(error).partition(" Set another")[0]
        raise UsageError(
            f"{why} Give another --out where there is one, or delete {run.dir.root / key} to do it again"
        ) from error


def without_training(config: Config) -> Config:
    """The same settings for work that trains nothing: `model.path` is not loaded and need not exist."""
    tree = config.model_dump(mode="json")
    tree["model"]["path"] = "lab"
    tree["judge"]["panel"] = []
    tree["eval"] |= {"oracle": False, "head_to_head": "none"}
    tree["seed"] |= {"path": None, "sources": [{"format": "lab"}]}
    return parse_config(tree, origin="settings")


def check_names(config: Config, options: Mapping[str, str]) -> None:
    """Raise UsageError for options (`--model` -> value) that name a part of a run, a folder around a model, or an endpoint
    that nobody described."""
    for option, model in options.items():
        if model in (POLICY, FIRST):
            raise UsageError(f"{option} {model} is a part of a run; name a model folder, such as runs/NAME/m1/checkpoint")
        if models := models_inside(Path(model)):
            raise UsageError(f"{option} {model!r} is no model folder; the models in it: {', '.join(map(str, models))}")
        if problem := unknown_endpoint(config.endpoints, option, model):
            raise UsageError(f"{problem}; describe it under `endpoints` in a config and give --config")


def models_inside(folder: Path) -> list[Path]:
    """Model folders of a run, a round, or a stage that somebody named in place of one of them."""
    if any(folder.glob("*.safetensors")):
        return []
    found: list[Path] = []
    for pattern in ("checkpoint", "model/checkpoint", "*/checkpoint", "round-*/model/checkpoint"):
        found += [path for path in sorted(folder.glob(pattern)) if path.is_dir() and path not in found]
    return found


def check_out(option: str, out: Path, suffixes: tuple[str, ...]) -> None:
    """Raise UsageError for an output that cannot be written, or that something else has written."""
    if out.suffix not in suffixes:
        raise UsageError(f"{option} {str(out)!r} must end with {' or '.join(suffixes)}")
    if out.is_dir():
        raise UsageError(f"{option} {str(out)!r} is a folder; name a file")
    if out.exists() and not Path(f"{out}{RUN_SUFFIX}").is_dir():
        raise UsageError(f"{option} {str(out)!r} is there already, and not from this command; choose another name")
