"""Standard tasks through lm-evaluation-harness (extra `lm-eval`), for a model folder or for all models of a run.

    PLACE/tasks/MODEL/TASK/tasks.json    every metric of the task; PLACE is --out, or the run's folder

A task of a model is a stage of its own: further tasks add to those that are there.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, Run, Stage, hash_file, read_json
from selfreward.config import ENDPOINT_PREFIX, SCRIPTED_PREFIX, Config
from selfreward.engines.loading import pick_device, resolve_model_path, set_threads
from selfreward.errors import EngineError, MissingExtraError, SelfRewardError, UsageError
from selfreward.eval_tools.options import TaskOptions
from selfreward.eval_tools.sides import model_label
from selfreward.eval_tools.small import check_names, do_stage, folder_run, without_training
from selfreward.eval_tools.whole_run import finished_stage, run_config, set_stale_aside
from selfreward.evals.harness import read_results
from selfreward.preflight import check_writer
from selfreward.progress import Progress
from selfreward.report.html import write_report
from selfreward.report.task_rows import tax_rows
from selfreward.stages._roles import weights_of
from selfreward.texts import one_line
from selfreward.types import Counts

NEED = "standard tasks need lm-evaluation-harness, which is not installed: pip install 'selfreward[lm-eval]'"
NO_DATA = "; the task's data comes from the hub: let it be reached once (HF_HUB_OFFLINE=0), or name a task over local files"
MAX_BATCH = 16
"""Questions at a time: `engine.batch_size` is for short answers, and a task's questions with examples can be long."""


@dataclass(frozen=True)
class _Candidate:
    """A model: what its folder in `tasks/` is called, where its weights lie, and the stage that made it, if one did."""

    name: str
    folder: str
    inputs: Mapping[str, Artifact]


def run_tasks(options: TaskOptions, config: Config, progress: Progress) -> dict[str, Any]:
    """Do what is missing; returns each model's results and, for a run, the capability tax, as plain values.

    Raises MissingExtraError without the harness, UsageError for options that cannot work together, ModelError and EngineError.
    """
    if (options.run is None) == (options.model is None) or (options.model is None) != (options.out is None):
        raise UsageError("give --model MODEL with --out FOLDER, or --run RUN for all models of a run")
    if not options.tasks:
        raise UsageError("--tasks names no task; give for example --tasks arc_easy,hellaswag")
    if options.include is not None and not options.include.is_dir():
        raise UsageError(f"--include {str(options.include)!r} is no folder of task files")
    config = without_training(config) if options.run is None else run_config(options.run)
    alone = None if options.model is None else _of_model(options.model, config)
    installed = need_harness()
    with _open(options, config, progress) as run:
        if alone is None:
            set_stale_aside(run, "tasks")
        results, harness = {}, _Harness(options)
        for candidate in _of_run(run) if alone is None else [alone]:
            results[candidate.name] = _tasks_of(run, candidate, options, (harness, installed))
        if alone is None:
            write_report(run.dir)
    tax = [] if alone is not None else tax_rows(results, list(results))
    return {"models": results, "tax": tax, "place": str(run.dir.root / "tasks")}


def _open(options: TaskOptions, config: Config, progress: Progress) -> AbstractContextManager[Run]:
    return Run.open(config, progress) if options.out is None else folder_run(options.out, config, progress)


def need_harness() -> str:
    """The harness's version. Raises MissingExtraError where it cannot be imported."""
    try:
        import_module("lm_eval")
    except ImportError as error:
        raise MissingExtraError(f"{NEED}; importing it says: {one_line(error)}") from error
    return version("lm-eval")


def _of_run(run: Run) -> list[_Candidate]:
    """Every finished model of the run."""
    found = []
    for name in ("sft", "m1", *(f"m{t + 1}" for t in range(1, run.config.num_rounds + 1))):
        made = finished_stage(run, run.dir.model_stage(name).relative_to(run.dir.root).as_posix())
        if made is not None:
            found.append(_Candidate(name, str(made.checkpoint), {"model": made}))
    if not found:
        raise UsageError(f"{run.dir.root} holds no finished model; run its config first")
    return found


def _of_model(model: str, config: Config) -> _Candidate:
    if model.startswith((ENDPOINT_PREFIX, SCRIPTED_PREFIX)):
        raise UsageError(f"--model {model!r}: standard tasks weigh given answers, which needs a model folder")
    check_names(config, {"--model": model})
    check_writer(config, "--model", model)
    return _Candidate(_slug(model_label(model, config)), resolve_model_path(model), {})


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _tasks_of(run: Run, candidate: _Candidate, options: TaskOptions, tool: tuple["_Harness", str]) -> dict[str, Any]:
    """Task -> its first metric, as tasks.json holds it. `tool`: the harness and its version."""
    harness, installed = tool
    sections: dict[str, Any] = {
        "harness": installed,
        "dtype": run.config.model.dtype,
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "include": _include_hashes(options.include),
        "weights": None if candidate.inputs else weights_of(candidate.folder),
    }
    found = {}
    for task in options.tasks:
        work = partial(_evaluate, candidate, task, options, harness)
        key = f"tasks/{candidate.name}/{_slug(task)}"
        made = do_stage(run, key, sections | {"task": task}, candidate.inputs, work)
        found[task] = read_json(made.path / "tasks.json")["results"][0]
    return found


def _include_hashes(folder: Path | None) -> dict[str, str] | None:
    if folder is None:
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def _evaluate(candidate: _Candidate, task: str, options: TaskOptions, harness: "_Harness", stage: Stage) -> Counts:
    """One task of one model. What the harness raises, and there are many kinds, becomes an EngineError."""
    try:
        model, manager = harness.open(candidate.folder, stage.config)
        document = import_module("lm_eval").simple_evaluate(
            model=model,
            tasks=[task],
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            log_samples=False,
            task_manager=manager,
        )
    except SelfRewardError:
        raise
    except Exception as error:
        hint = NO_DATA if isinstance(error, ConnectionError) else ""
        raise EngineError(f"lm-evaluation-harness, task {task!r}: {type(error).__name__}: {one_line(error)}{hint}") from error
    if document is None:
        raise EngineError(f"lm-evaluation-harness returned nothing for task {task!r}")
    results = read_results(document, task)
    stage.roles = {"policy": candidate.name}
    stage.write_json("tasks", {"task": task, "results": results})
    return Counts(results[0].n or 0, results[0].n or 0)


class _Harness:
    """lm-evaluation-harness as one command uses it. Its tables of tasks are read once, and a model is loaded by the first of
    its tasks that is not stored yet, and kept for the others: either costs more than most tasks do."""

    def __init__(self, options: TaskOptions) -> None:
        self._options = options
        self._manager: Any = None
        self._folder: str | None = None
        self._model: Any = None

    def open(self, folder: str, config: Config) -> tuple[Any, Any]:
        """The harness's model of a folder, and its task manager. Raises UsageError for a task that it does not know."""
        given = {"pretrained": folder, "dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code}
        if self._manager is None:
            include = self._options.include
            place = None if include is None else str(include)
            manager = import_module("lm_eval.tasks").TaskManager(include_path=place, metadata=given)
            _check_known(self._options.tasks, manager.all_tasks)
            self._manager = manager
        if self._folder != folder:
            self._folder, self._model = None, None  # the one before goes first: there may be room for one alone
            set_threads(config)
            work = {
                "batch_size": min(config.engine.batch_size, MAX_BATCH),
                "max_batch_size": None,
                "device": pick_device(config),  # the harness's own default is a GPU, whether there is one or not
            }
            self._model = import_module("lm_eval.api.registry").get_model("hf").create_from_arg_obj(given, work)
            self._folder = folder
        return self._model, self._manager


def _check_known(tasks: Sequence[str], known: Sequence[str]) -> None:
    """Raise UsageError for names that the harness has no task, group or tag of; nothing has been loaded yet."""
    unknown = [task for task in tasks if task not in known]
    if unknown:
        near = list(dict.fromkeys(name for task in unknown for name in get_close_matches(task, known, n=3)))
        similar = f"similar: {', '.join(near)}; " if near else ""
        raise UsageError(
            f"--tasks: lm-evaluation-harness has no task {', '.join(map(repr, unknown))}; {similar}"
            "its own list says what there is, and --include FOLDER adds task files of your own"
        )
