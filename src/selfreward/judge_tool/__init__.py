"""The judge as a tool of its own: score a file of responses, or measure how well a model judges what people ranked.

In: a file or folder in any shape that `sources` reads, a model, a rubric. Out: a summary for people or machines and, with
`out`, a table with every response, its score and its votes. The work is one stage of a small run in `<out>.run`, so that
the same command goes on where it was stopped; the stage's record and rejects.parquet stay there. Without `out` nothing is
kept.

The file is read three times, as a stream: to count and hash it, to judge it in chunks, to write the table. Memory holds one
chunk, and of each response its length, score and spread.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from selfreward.artifacts import Run, Stage
from selfreward.config import FIRST, POLICY, Config, parse_config
from selfreward.errors import DriftError, UsageError
from selfreward.judge_tool.asking import compare, score, score_by_panel
from selfreward.judge_tool.data import Data
from selfreward.judge_tool.options import RUN_SUFFIX, SUFFIXES, Options, ScoredResponse
from selfreward.judge_tool.refusals import in_our_words, other_settings
from selfreward.judge_tool.summary import summarise
from selfreward.judging import judge_settings, rubric_identity
from selfreward.preflight import check_judge
from selfreward.progress import Progress
from selfreward.rubrics import Rubric, read_rubric
from selfreward.sources import formats
from selfreward.sources.seed_folder import NAME as SEED_FOLDER
from selfreward.stages._panel import panel_rubrics, seat_panel
from selfreward.stages._roles import frozen_player
from selfreward.types import Counts

__all__ = ["Options", "ScoredResponse", "judge_data"]


def judge_data(options: Options, config: Config, progress: Progress) -> dict[str, Any]:
    """Do what the options say; returns the summary, and writes `options.out`.

    Raises UsageError and ConfigError for what cannot work together, DataError for data that cannot be used, ModelError and
    EngineError as engines do.
    """
    if options.rubric is None:
        rubric = read_rubric(config.judge.rubric, "judge.rubric")
    else:
        rubric = read_rubric(options.rubric, "--rubric")
    _check_words(options)
    config = _settings(options, config, rubric)
    _check(options, config, rubric)
    with in_our_words():
        return _work(options, config, rubric, progress)


def _work(options: Options, config: Config, rubric: Rubric, progress: Progress) -> dict[str, Any]:
    data = Data(options, config)
    if options.out is None:
        with tempfile.TemporaryDirectory(prefix="selfreward-judge-") as folder:
            return _judge(options, _in_folder(config, Path(folder)), rubric, data, progress)
    return _judge(options, _in_folder(config, Path(f"{options.out}{RUN_SUFFIX}")), rubric, data, progress)


def _settings(options: Options, config: Config, rubric: Rubric) -> Config:
    """The config with what the options change. `model.path` is the start of a run, and no judge."""
    tree = config.model_dump(mode="json")
    votes = options.num_votes or (config.eval.num_votes if options.agreement else config.judge.num_votes)
    changes: dict[str, Any] = {"num_votes": votes}
    if options.model is not None:
        changes["model"] = options.model
    if options.mode is not None:
        changes["mode"] = options.mode
    if rubric.kind == "pointwise" and options.rubric is not None:
        changes["rubric"] = options.rubric
    tree["judge"] |= changes
    if config.model.path not in (tree["judge"]["model"], *(seat.model for seat in config.judge.panel)):
        tree["model"]["path"] = "lab"  # it is not loaded here and need not exist
    tree["eval"] |= {"num_votes": votes, "oracle": False, "head_to_head": "none"}
    role = "ranked" if options.agreement else "auto"
    tree["seed"] |= {"path": None, "sources": [{"path": str(options.data), "format": options.format, "role": role}]}
    return parse_config(tree, origin="settings")


def _in_folder(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"run_dir": str(folder.parent), "name": folder.name})


def _check_words(options: Options) -> None:
    """What the options say, apart from model and rubric."""
    if not options.data.expanduser().exists():
        raise UsageError(f"{str(options.data)!r} is no file or folder here; give responses to judge")
    known = ["auto", *formats.formats(None), SEED_FOLDER]
    if options.format not in known:
        raise UsageError(f"--format {options.format!r} is unknown; known are {', '.join(known)}")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit} must be at least 1")


def _check(options: Options, config: Config, rubric: Rubric) -> None:
    """Everything else that can be known before the data is read."""
    if rubric.kind == "propose" or (rubric.kind == "pairwise" and not options.agreement):
        wanted = "pointwise or pairwise" if options.agreement else "pointwise"
        raise UsageError(f"--rubric {rubric.name!r} is of kind {rubric.kind}; this needs a {wanted} one")
    if rubric.kind == "pairwise":
        _check_pairwise(options, config, rubric)
    _check_judges(options, config, rubric)
    _check_stage(options, config)
    _check_out(options)


def _check_pairwise(options: Options, config: Config, rubric: Rubric) -> None:
    if config.judge.mode == "expected":
        raise UsageError(f"--mode expected weighs scores, and the pairwise rubric {rubric.name!r} has none; leave it out")
    if options.num_votes is not None:
        raise UsageError(f"--k {options.num_votes} is for scores; the pairwise rubric {rubric.name!r} asks once in each order")
    if config.judge.panel:
        raise UsageError(f"the pairwise rubric {rubric.name!r} needs one judge, not judge.panel; add 'judge.panel=[]'")


def _check_judges(options: Options, config: Config, rubric: Rubric) -> None:
    """Who judges is no part of a run, can be asked, and no option about it is without effect."""
    panel = config.judge.panel
    given: Mapping[str, tuple[str, Any]] = {
        "model": ("--model", options.model), "rubric": ("--rubric", options.rubric), "num_votes": ("--k", options.num_votes)
    }  # fmt: skip
    for name, (option, value) in given.items():
        if value is not None and panel and all(getattr(seat, name) for seat in panel):
            raise UsageError(
                f"{option} {value} would change nothing: each member of judge.panel has a {name} of its own; leave it out, or "
                "add 'judge.panel=[]' to ask one judge"
            )
    rubrics = panel_rubrics(config.judge) if panel else [rubric]
    for number, (seat, own) in enumerate(zip(config.judge.members, rubrics, strict=True)):
        setting = f"judge.panel[{number}].model" if panel else "judge.model" if options.model is None else "--model"
        if seat.model in (POLICY, FIRST):
            hint = "" if options.model is not None else "; --model says who judges"
            raise UsageError(
                f"{setting} {seat.model} is a part of a run; name a model folder, such as runs/NAME/m1/checkpoint{hint}"
            )
        check_judge(config, setting, seat.model, own)


def _check_stage(options: Options, config: Config) -> None:
    if options.stage == Options.stage_of_the_command:
        return
    from selfreward.pipeline import stage_keys

    known = [key for key in stage_keys(config) if key.endswith("evals")]
    if options.stage not in known:
        raise UsageError(f"--seeds-of {options.stage!r} is no stage that judges; the config's are {', '.join(known)}")


def _check_out(options: Options) -> None:
    out = options.out
    if out is None:
        if not options.agreement:
            raise UsageError("scores need a place: give --out scored.parquet (or .jsonl)")
        return
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {str(out)!r} must end with {' or '.join(SUFFIXES)}")
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder; name a file")
    if out.exists() and not Path(f"{out}{RUN_SUFFIX}").is_dir():
        raise UsageError(
            f"--out {str(out)!r} is there already, without the folder {out}{RUN_SUFFIX} of this command; choose another name "
            "or delete it"
        )


def _judge(options: Options, config: Config, rubric: Rubric, data: Data, progress: Progress) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "judge": judge_settings(config.judge),
        "rubric": rubric_identity(rubric, config.judge),
        "data": data.scan.digest,
    }
    facts: list[Mapping[str, Any]] = []
    work: Callable[[Stage], Counts]
    if config.judge.panel:
        judges = seat_panel(config.judge, partial(frozen_player, config=config))
        sections["rubric"] = [rubric_identity(judge.rubric, config.judge) for judge in judges]
        sections["members"] = {str(number): judge.section(config.judge) for number, judge in enumerate(judges)}
        rubric, facts = judges[0].rubric, [judge.facts for judge in judges]
        work = partial(score_by_panel, judges, data)
    else:
        player = frozen_player(config.judge.model, config)
        sections["player"] = player.section
        work = partial(compare if rubric.kind == "pairwise" else score, player, rubric, data)
    with Run.open(config, progress) as run:
        try:
            made = run.stage(options.stage, sections, {}, work)
        except DriftError as error:
            raise other_settings(error, options.out, run.dir.root) from error
    return summarise(options, config, (rubric, facts), data, made)
