"""The judge as a tool of its own: score a file of responses, or measure how well a model judges what people ranked.

In: a file or folder in any shape that `sources` reads, a model, a rubric. Out: a summary for people or machines and, with
`out`, a table with every response, its score and its votes. The work is one stage of a small run in `<out>.run`, so that
the same command goes on where it was stopped; the stage's record and rejects.parquet stay there. Without `out` nothing is
kept.

The file is read three times, as a stream: to count and hash it, to judge it in chunks, to write the table. Memory holds one
chunk, and of each response its length, score and spread.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from selfreward.artifacts import Run, Stage, iter_rows, writing_rows
from selfreward.config import FIRST, POLICY, Config, parse_config
from selfreward.engines import open_engine
from selfreward.errors import DriftError, UsageError
from selfreward.evals.head_to_head import Comparison, stream_comparisons
from selfreward.evals.judging import stream_judgements
from selfreward.judge_tool.data import Data
from selfreward.judge_tool.options import RUN_SUFFIX, SUFFIXES, Options, ScoredResponse
from selfreward.judge_tool.summary import summarise
from selfreward.judging import judge_settings, rubric_identity
from selfreward.preflight import check_judge
from selfreward.progress import Progress
from selfreward.rubrics import Rubric, read_rubric
from selfreward.stages._roles import Player, frozen_player
from selfreward.stages.judge import describe
from selfreward.types import Counts, Drop, Judgement

__all__ = ["Options", "ScoredResponse", "judge_data"]


def judge_data(options: Options, config: Config, progress: Progress) -> dict[str, Any]:
    """Do what the options say; returns the summary, and writes `options.out`.

    Raises UsageError and ConfigError for what cannot work together, DataError for data that cannot be used, ModelError and
    EngineError as engines do.
    """
    rubric = read_rubric(options.rubric or config.judge.rubric, "--rubric")
    config = _settings(options, config, rubric)
    _check(options, config, rubric)
    data = Data(options, config)
    if options.out is None:
        with tempfile.TemporaryDirectory(prefix="selfreward-judge-") as folder:
            return _judge(options, _in_folder(config, Path(folder)), rubric, data, progress)
    return _judge(options, _in_folder(config, Path(f"{options.out}{RUN_SUFFIX}")), rubric, data, progress)


def _settings(options: Options, config: Config, rubric: Rubric) -> Config:
    """The config with what the options change. The judge is the only player; the panel and `model.path` are others."""
    tree = config.model_dump(mode="json")
    votes = options.num_votes or (config.eval.num_votes if options.agreement else config.judge.num_votes)
    changes = {"model": options.model, "num_votes": votes, "panel": []}
    if options.mode is not None:
        changes["mode"] = options.mode
    if rubric.kind == "pointwise" and options.rubric is not None:
        changes["rubric"] = options.rubric
    if options.model != config.model.path:
        tree["model"]["path"] = "lab"  # the start of a run: it is not loaded here and need not exist
    tree["judge"] |= changes
    tree["eval"] |= {"num_votes": votes, "oracle": False, "head_to_head": "none"}
    role = "ranked" if options.agreement else "auto"
    tree["seed"] |= {"path": None, "sources": [{"path": str(options.data), "format": options.format, "role": role}]}
    return parse_config(tree, origin="settings")


def _in_folder(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"run_dir": str(folder.parent), "name": folder.name})


def _check(options: Options, config: Config, rubric: Rubric) -> None:
    """Everything that can be known before the data is read."""
    if options.model in (POLICY, FIRST):
        raise UsageError(f"--model {options.model} is a part of a run; name a model folder, such as runs/NAME/m1/checkpoint")
    if rubric.kind == "propose" or (rubric.kind == "pairwise" and not options.agreement):
        wanted = "pointwise or pairwise" if options.agreement else "pointwise"
        raise UsageError(f"--rubric {rubric.name!r} is of kind {rubric.kind}; this needs a {wanted} one")
    if rubric.kind == "pairwise" and config.judge.mode == "expected":
        raise UsageError(f"--mode expected weighs scores, and the pairwise rubric {rubric.name!r} has none; leave it out")
    if options.num_votes is not None and rubric.kind == "pairwise":
        raise UsageError(f"--k {options.num_votes} is for scores; the pairwise rubric {rubric.name!r} asks once in each order")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit} must be at least 1")
    check_judge(config, "--model", options.model, rubric)
    _check_out(options)


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
        raise UsageError(f"--out {str(out)!r} is there already, and not from this command; choose another name")


def _judge(options: Options, config: Config, rubric: Rubric, data: Data, progress: Progress) -> dict[str, Any]:
    player = frozen_player(options.model, config)
    work = _compare if rubric.kind == "pairwise" else _score
    sections = {
        "judge": judge_settings(config.judge),
        "rubric": rubric_identity(rubric, config.judge),
        "player": player.section,
        "data": data.scan.digest,
    }
    with Run.open(config, progress) as run:
        try:
            made = run.stage(options.stage, sections, {}, partial(work, player, rubric, data))
        except DriftError as error:
            why = str(error).partition(" Set another")[0]
            raise UsageError(f"{why} Give another --out, or delete {config.run_dir}/{config.name} to begin again") from error
    return summarise(options, config, rubric, data, made)


def _score(player: Player, rubric: Rubric, data: Data, stage: Stage) -> Counts:
    """Votes on every response, as an evaluation asks for them."""
    stage.roles = {"judge": player.label}
    table = stage.path / "votes.parquet"
    with (
        open_engine(player.model, stage.config) as engine,
        stage.rejecting() as reject,
        writing_rows(table, Judgement) as write,
    ):
        responses = data.responses(reject)
        for judgements in stream_judgements(stage, engine, rubric, responses, data.scan.num_responses):
            for item in judgements:
                write(item)
                if item.score is None:
                    reject(Drop(item.completion_id, "too_few_votes", json.dumps([vote.failure for vote in item.votes])))
    stage.notes |= describe(iter_rows(table, Judgement))
    return _counted(stage, data.scan.num_drops + data.scan.num_responses)


def _compare(player: Player, rubric: Rubric, data: Data, stage: Stage) -> Counts:
    """Verdicts on every pair that the ranks order, in both orders."""
    stage.roles = {"judge": player.label}
    with (
        open_engine(player.model, stage.config) as engine,
        stage.rejecting() as reject,
        writing_rows(stage.path / "comparisons.parquet", Comparison) as write,
    ):
        pairs = data.contests(reject)
        for rows in stream_comparisons(stage, engine, rubric, pairs, data.scan.num_pairs):
            for row in rows:
                write(row)
                if row.outcome is None:
                    reject(Drop(row.prompt_id, row.failures[0], json.dumps(row.failures)))
    return _counted(stage, data.scan.num_drops + data.scan.num_pairs)


def _counted(stage: Stage, num_in: int) -> Counts:
    dropped = dict(stage.num_rejects or ())
    return Counts(num_in, num_in - sum(dropped.values()), dropped)
