"""The judge as a tool of its own: score a file of responses, or measure how well a model judges what people ranked.

In: a file or folder in any shape that `sources` reads, a model, a rubric. Out: a summary for people or machines and, with
`out`, a table with every response, its score and its votes. The work is one stage of a small run in `<out>.run`, so that
the same command goes on where it was stopped; the stage's record and rejects.parquet stay there. Without `out` nothing is
kept.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from selfreward.artifacts import (
    Artifact,
    Run,
    Stage,
    derive_seed,
    fingerprint,
    holds_rows,
    read_json,
    read_rows,
    to_plain,
    write_bytes,
    write_rows,
)
from selfreward.config import FIRST, POLICY, Config, parse_config
from selfreward.engines import open_engine
from selfreward.errors import DataError, DriftError, UsageError
from selfreward.evals.figures import estimate_all
from selfreward.evals.head_to_head import Comparison, Contest, compare_by_judge
from selfreward.evals.judge_health import HEALTH_RULE, PAIR_RULE, JudgedSet, health_figures, pair_measures
from selfreward.evals.judge_quality import ORDER_RULE, TIE_RULE, judge_measures
from selfreward.evals.judging import judge_responses, responses_of, scored_sets
from selfreward.judging import judge_settings
from selfreward.preflight import check_judge
from selfreward.progress import Progress
from selfreward.rubrics import Rubric, read_rubric
from selfreward.sources import Reading, Record, read_source
from selfreward.stages._roles import Player, frozen_player
from selfreward.stages.judge import describe
from selfreward.texts import counted
from selfreward.types import Counts, Drop, Judgement, RankedSet, Vote

SUFFIXES = (".parquet", ".jsonl")
RUN_SUFFIX = ".run"
"""What the folder of the work is called beside the output."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. None: the config decides."""

    data: Path
    model: str
    agreement: bool = False
    rubric: str | None = None
    num_votes: int | None = None
    mode: str | None = None
    out: Path | None = None
    format: str = "auto"
    limit: int | None = None
    stage: str = "judge"
    """The stage whose seeds the votes have: with a run's settings and `m1/evals` they are the run's own votes."""


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A row of the output. `rank` is the human one (0 is best), None where nobody ranked."""

    id: str
    prompt: str
    response: str
    rank: int | None
    score: float | None
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Data:
    """What was read: responses by prompt (without ranks where nobody ranked them), the rows that left, and what there was."""

    sets: list[RankedSet]
    drops: list[Drop]
    facts: Mapping[str, Any]


def judge_data(options: Options, config: Config, progress: Progress) -> dict[str, Any]:
    """Do what the options say; returns the summary, and writes `options.out`.

    Raises UsageError and ConfigError for what cannot work together, DataError for data that cannot be used, ModelError and
    EngineError as engines do.
    """
    rubric = read_rubric(options.rubric or config.judge.rubric, "--rubric")
    config = _settings(options, config, rubric)
    _check(options, config, rubric)
    data = _read(options, config)
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


def _read(options: Options, config: Config) -> Data:
    """The responses to judge. Raises DataError where there are none."""
    if holds_rows(options.data, RankedSet):
        # A run's own table: in its order, which the seeds of votes go by.
        table = read_rows(options.data, RankedSet)[: options.limit]
        reading = Reading("a run's ranked sets", True, len(table), sum(len(item.responses) for item in table))
        return Data(table, [], _facts(reading, [], str(options.data)))
    reading, items = read_source(config.seed.sources[0], "", config.seed.on_bad_row)
    sets: list[RankedSet] = []
    drops: list[Drop] = []
    for item in items:
        if isinstance(item, Record):
            replies = item.replies or ((item.response,) if item.response is not None else ())
            if replies:
                sets.append(RankedSet(item.id, item.prompt, replies, item.ranks if "ranked" in item.roles else ()))
            else:
                drops.append(Drop(item.id, "no_response", json.dumps({"prompt": item.prompt}, ensure_ascii=False)))
        else:
            drops.append(item)
        if len(sets) == options.limit:
            break
    assert reading.num_rows == len(sets) + len(drops), f"{reading.num_rows} rows gave {len(sets)} sets and {len(drops)} drops"
    facts = _facts(reading, drops, str(options.data))
    if not sets:
        what = "ranked replies of one prompt" if options.agreement else "response"
        raise DataError(
            f"{options.data} holds no {what} to judge: {counted(reading.num_rows, 'row')} read, dropped {facts['dropped']}"
        )
    return Data(sets, drops, facts)


def _facts(reading: Reading, drops: Sequence[Drop], path: str) -> dict[str, Any]:
    return {
        "path": path,
        "format": reading.format,
        "detected": reading.detected,
        "rows": reading.num_rows,
        "dropped": dict(Counter(drop.reason for drop in drops).most_common()),
        "replies": reading.num_replies,
        "replies_dropped": dict(reading.replies_dropped.most_common()),
        "notes": reading.notes,
    }


def _judge(options: Options, config: Config, rubric: Rubric, data: Data, progress: Progress) -> dict[str, Any]:
    player = frozen_player(options.model, config)
    work = _compare if rubric.kind == "pairwise" else _score
    sections = {
        "judge": judge_settings(config.judge),
        "rubric": rubric.content_hash,
        "player": player.section,
        "data": fingerprint([data.sets, data.drops]),
    }
    with Run.open(config, progress) as run:
        try:
            made = run.stage(options.stage, sections, {}, partial(work, player, rubric, data))
        except DriftError as error:
            why = str(error).partition(" Set another")[0]
            raise UsageError(f"{why} Give another --out, or delete {config.run_dir}/{config.name} to begin again") from error
    return _summary(options, config, rubric, data, made)


def _score(player: Player, rubric: Rubric, data: Data, stage: Stage) -> Counts:
    """Votes on every response, as an evaluation asks for them."""
    stage.roles = {"judge": player.label}
    with open_engine(player.model, stage.config) as engine:
        judgements = judge_responses(stage, engine, rubric, responses_of(data.sets))
    stage.write_rows("votes", judgements, Judgement)
    stage.notes |= describe(judgements)
    unscored = [Drop(item.completion_id, "too_few_votes") for item in judgements if item.score is None]
    return _counted(stage, [*data.drops, *unscored], len(data.drops) + len(judgements))


def _compare(player: Player, rubric: Rubric, data: Data, stage: Stage) -> Counts:
    """Verdicts on every pair that the ranks order, in both orders."""
    stage.roles = {"judge": player.label}
    pairs = _contests(data.sets)
    with open_engine(player.model, stage.config) as engine:
        rows = compare_by_judge(stage, engine, rubric, pairs)
    stage.write_rows("comparisons", rows, Comparison)
    unread = [Drop(row.prompt_id, "no_verdict") for row in rows if row.outcome is None]
    return _counted(stage, [*data.drops, *unread], len(data.drops) + len(rows))


def _counted(stage: Stage, drops: Sequence[Drop], num_in: int) -> Counts:
    stage.reject(drops)
    return Counts(num_in, num_in - len(drops), Counter(drop.reason for drop in drops))


def _contests(sets: Sequence[RankedSet]) -> list[Contest]:
    """The better (`new`) against the worse response of each ordered pair; ids are `<set id>/<better>-<worse>`."""
    return [
        Contest(f"{item.id}/{i}-{j}", item.prompt, item.responses[i], item.responses[j])
        for item in sets
        for a, b in combinations(range(len(item.ranks)), 2)
        if item.ranks[a] != item.ranks[b]
        for i, j in [(a, b) if item.ranks[a] < item.ranks[b] else (b, a)]
    ]


def _summary(options: Options, config: Config, rubric: Rubric, data: Data, made: Artifact) -> dict[str, Any]:
    """What the command prints; writes the output."""
    record = read_json(made.path / "record.json")
    summary = {
        "kind": "agreement" if options.agreement else "scores",
        "data": data.facts,
        "judge": {
            "model": options.model,
            "rubric": rubric.name,
            "rubric_hash": rubric.content_hash,
            "scale": list(rubric.scale) if rubric.kind == "pointwise" else None,
            "random_seed": config.random_seed,
            "stage": options.stage,
        },
        "tokens": record["tokens"],
        "out": str(options.out) if options.out else None,
    }
    seed = partial(derive_seed, config.random_seed, options.stage, "interval")
    if rubric.kind == "pairwise":
        comparisons = read_rows(made.path / "comparisons.parquet", Comparison)
        summary |= _pairwise_part(data, comparisons, seed, config)
        rows: Sequence[Any] = comparisons
    else:
        judgements = read_rows(made.path / "votes.parquet", Judgement)
        summary["judge"] |= {"mode": config.judge.mode, "num_votes": config.eval.num_votes}
        summary |= _pointwise_part(config, rubric, data, judgements, seed, options.agreement)
        rows = _rows(data.sets, judgements)
    if options.out is not None:
        _write(options.out, rows)
    plain: dict[str, Any] = json.loads(json.dumps(summary, default=to_plain))
    return plain


def _pointwise_part(
    config: Config, rubric: Rubric, data: Data, judgements: Sequence[Judgement], seed: Callable[[str], int], ranked: bool
) -> dict[str, Any]:
    samples = config.eval.bootstrap_samples
    by_id = {judgement.completion_id: judgement for judgement in judgements}
    judged = [
        JudgedSet(
            item.id,
            tuple(map(len, item.responses)),
            tuple(by_id[f"{item.id}/{index}"] for index in range(len(item.responses))),
        )
        for item in data.sets
    ]
    part: dict[str, Any] = {
        "counts": {
            "sets": len(data.sets),
            "responses": len(judgements),
            "scored": sum(judgement.score is not None for judgement in judgements),
        },
        "votes": describe(judgements),
        "health": health_figures(judged, seed, samples),
        "rules": {"health": HEALTH_RULE},
    }
    if ranked:
        measures = judge_measures(scored_sets(data.sets, judgements), float(rubric.scale[1]))
        part["figures"] = estimate_all(measures, seed, samples)
        part["rules"] |= {"ties": TIE_RULE, "orders": ORDER_RULE}
    return part


def _pairwise_part(data: Data, rows: Sequence[Comparison], seed: Callable[[str], int], config: Config) -> dict[str, Any]:
    def set_of(contest_id: str) -> str:
        return contest_id.rpartition("/")[0]

    both = [row for row in rows if row.new_first is not None and row.old_first is not None]
    return {
        "counts": {
            "sets": len(data.sets),
            "pairs": len(rows),
            "decided": sum(row.outcome is not None for row in rows),
            "no_verdict": sum(row.outcome is None for row in rows),
            "equal_texts": sum(row.outcome == "tie" and row.new_first is None for row in rows),
            "orders_disagree": sum(row.new_first != row.old_first for row in both),
        },
        "figures": estimate_all(pair_measures(set_of, rows), seed, config.eval.bootstrap_samples),
        "rules": {"ties": PAIR_RULE},
    }


def _rows(sets: Sequence[RankedSet], judgements: Sequence[Judgement]) -> list[ScoredResponse]:
    by_id = {judgement.completion_id: judgement for judgement in judgements}
    rows = []
    for item in sets:
        for index, text in enumerate(item.responses):
            made = by_id[f"{item.id}/{index}"]
            rank = item.ranks[index] if item.ranks else None
            rows.append(ScoredResponse(made.completion_id, item.prompt, text, rank, made.score, made.votes))
    return rows


def _write(out: Path, rows: Sequence[Any]) -> None:
    """The table, whole or not at all."""
    if out.suffix == ".parquet":
        write_rows(out, rows, type(rows[0]) if rows else ScoredResponse)
        return
    lines = (json.dumps(row, default=to_plain, ensure_ascii=False, allow_nan=False) for row in rows)
    write_bytes(out, "".join(f"{line}\n" for line in lines).encode("utf-8"))
