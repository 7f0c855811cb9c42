"""All models of a run against each other: every pair on the held-out prompts by one judge, then Bradley-Terry strengths.

    ranking/JUDGE/m2-sft     comparisons.parquet   one pair of models, prompt by prompt; `new` is the later one
    ranking/JUDGE/up-to-m3   ranking.json          rates of every pair, strengths of every model, the judge's position bias

A pair is a stage of its own, so that a further round adds pairs and redoes none while the judge is the same. What an evaluation
of the run compared already, by the same judge, is taken from there. The judge is the oracle where the run has it; else
`judge.model`, where `policy` means the run's last model: one judge for all pairs, or strengths would not compare.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from selfreward.artifacts import Artifact, Run, Stage, fingerprint, read_json, read_rows
from selfreward.config import FIRST, POLICY
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.errors import DataError, UsageError
from selfreward.eval_tools.duel import COMPARISONS, ORACLE, Duel, duel_judge
from selfreward.evals.bradley_terry import Game, rank_models
from selfreward.evals.contest import contest_counts, contest_figures, first_position, position_sentence
from selfreward.evals.head_to_head import Comparison, Contest, compare_by_judge, compare_by_oracle, contests
from selfreward.evals.outputs import EVALUATION_TABLE
from selfreward.rubrics import load_rubric
from selfreward.stages._roles import cast_role
from selfreward.types import Counts, Drop, EvalOutput

_WORTH = {"win": 1.0, "tie": 0.5, "lose": 0.0}


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model of the run, in the order in which it was made."""

    name: str
    model: Artifact
    evaluation: Artifact


def judge_of_run(run: Run, models: Sequence[Evaluated], judge: str | None) -> Duel | None:
    """Who compares all pairs: what `--judge` names, or the run's own; None where `eval.head_to_head=none` wants nobody.

    Raises UsageError and ConfigError for one that cannot.
    """
    config = run.config
    if judge is None and config.eval.head_to_head == "none":
        return None
    if judge is None and config.eval.oracle:
        return Duel(ORACLE, None, None)
    setting = judge or config.judge.model
    if setting == ORACLE and not config.eval.oracle:
        raise UsageError("--judge oracle: this run has no oracle scores (eval.oracle=false); name a model")
    if setting not in (POLICY, FIRST):
        return duel_judge(config, setting, None)
    rubric = load_rubric(config.eval.pairwise_rubric, "pairwise")
    player = cast_role(setting, models[-1].model, config, run.dir)
    return Duel(player.label, player, rubric)


def rank_run(run: Run, models: Sequence[Evaluated], duel: Duel) -> Artifact:
    """Compare what is not compared yet, then rank; the artifact holds ranking.json."""
    place = f"ranking/{_slug(duel)}"
    pairs: dict[tuple[str, str], Artifact] = {}
    with ExitStack() as open_engines:
        engine = _lazy(open_engines, run, duel)
        for old, new in combinations(models, 2):
            inputs = {"new": new.evaluation, "old": old.evaluation} | dict(duel.player.inputs if duel.player else {})
            work = partial(_compare_pair, duel, engine, new, old)
            pairs[new.name, old.name] = run.stage(f"{place}/{new.name}-{old.name}", _sections(run, duel), inputs, work)
    names = [model.name for model in models]
    inputs = {f"{new}-{old}": made for (new, old), made in pairs.items()}
    sections = {"samples": run.config.eval.bootstrap_samples}
    return run.stage(f"{place}/up-to-{names[-1]}", sections, inputs, partial(_rank, duel, models, pairs))


def _slug(duel: Duel) -> str:
    """A folder's name for the judge: a model of the run by its name, anyone else by a hash of what decides the verdicts."""
    if duel.player is None or duel.player.inputs:
        return duel.label
    return f"judge-{fingerprint(duel.player.section)[:12]}"


def _sections(run: Run, duel: Duel) -> Mapping[str, Any]:
    if duel.player is None or duel.rubric is None:
        return {"judge": ORACLE}
    judge = {"player": duel.player.section, "max_tokens": run.config.judge.max_tokens}
    return {"judge": judge, "rubric": duel.rubric.content_hash}


def _lazy(stack: ExitStack, run: Run, duel: Duel) -> Callable[[], Engine]:
    """Opens the judge's engine when it is first asked for, once for all pairs."""
    opened: list[Engine] = []

    def get() -> Engine:
        if not opened:
            assert duel.player is not None, "the oracle needs no engine"
            opened.append(stack.enter_context(open_engine(duel.player.model, run.config)))
        return opened[0]

    return get


def _compare_pair(duel: Duel, engine: Callable[[], Engine], new: Evaluated, old: Evaluated, stage: Stage) -> Counts:
    stage.roles = {"judge": duel.label}
    outputs = [read_rows(model.evaluation.path / EVALUATION_TABLE, EvalOutput) for model in (new, old)]
    known = _known(duel, new, old)
    if known is not None:
        rows = known
    elif duel.rubric is None:
        rows = compare_by_oracle(*outputs)
    else:
        rows = compare_by_judge(stage, engine(), duel.rubric, contests(*outputs))
    stage.notes = {"taken_from": new.evaluation.key if known is not None else None}
    drops = [Drop(row.prompt_id, "no_verdict") for row in rows if row.outcome is None]
    stage.write_rows("comparisons", rows, Comparison)
    stage.reject(drops)
    return Counts(len(rows), len(rows) - len(drops), Counter(drop.reason for drop in drops))


def _known(duel: Duel, new: Evaluated, old: Evaluated) -> list[Comparison] | None:
    """What the evaluation of the newer model compared, if it was this judge on this pair."""
    contest = read_json(new.evaluation.path / "evals.json")["head_to_head"]
    if contest is None or (contest["judge"], contest["opponent"]) != (duel.label, old.name):
        return None
    return read_rows(new.evaluation.path / COMPARISONS, Comparison)


def _rank(duel: Duel, models: Sequence[Evaluated], pairs: Mapping[tuple[str, str], Artifact], stage: Stage) -> Counts:
    stage.roles = {"judge": duel.label}
    samples = stage.config.eval.bootstrap_samples
    by_name = {model.name: model for model in models}
    games: list[Game] = []
    document: dict[str, Any] = {"judge": duel.label, "rubric": duel.rubric_name or None, "pairs": {}}
    everything: list[Comparison] = []
    for (new, old), made in pairs.items():
        rows = read_rows(made.path / COMPARISONS, Comparison)
        items = _contests(by_name[new], by_name[old], rows)
        seed = partial(stage.seed, f"{new}-{old}")
        document["pairs"][f"{new}-{old}"] = {
            "counts": contest_counts(rows),
            "figures": contest_figures(items, rows, seed, samples),
        }
        games += [Game(row.prompt_id, new, old, _WORTH[row.outcome]) for row in rows if row.outcome is not None]
        everything += rows
    names = [model.name for model in models]
    document |= _strengths(names, games, stage) | _position(everything, stage)
    stage.write_json("ranking", document)
    return Counts(len(everything), len(everything))


def _strengths(names: Sequence[str], games: Sequence[Game], stage: Stage) -> dict[str, Any]:
    """Strengths relative to the first model; without them, why they cannot be had.

    Ties alone would make all models equal with an interval of no width, which nobody found out.
    """
    if all(game.score == _WORTH["tie"] for game in games):
        return {"strengths": None, "no_strengths": "No strengths: no comparison has a winner.", "unbounded": None}
    try:
        found = rank_models(names, games, stage.seed("strengths"), stage.config.eval.bootstrap_samples)
    except DataError as error:
        return {"strengths": None, "no_strengths": f"No strengths: {error}.", "unbounded": None}
    anchor = replace(found[names[0]], low=None, high=None)  # 0 by definition: it has no interval
    without = [name.upper() for name in names[1:] if found[name].low is None]
    why = f"No interval for {', '.join(without)}: without both wins and losses against the others no bound is known."
    return {"strengths": {**found, names[0]: anchor}, "no_strengths": None, "unbounded": why if without else None}


def _position(rows: Sequence[Comparison], stage: Stage) -> dict[str, Any]:
    """Position bias over all pairs; a prompt is one unit however many pairs were compared on it."""
    if all(row.new_first is None and row.old_first is None for row in rows):
        return {"first_position": None, "position_biased": None, "position": None}
    figures = first_position(rows, stage.seed("position"), stage.config.eval.bootstrap_samples)
    biased, sentence = position_sentence(figures)
    return {"first_position": figures, "position_biased": biased, "position": sentence}


def _contests(new: Evaluated, old: Evaluated, rows: Sequence[Comparison]) -> list[Contest]:
    """The texts of the compared pairs, in the order of the rows."""
    outputs = [read_rows(model.evaluation.path / EVALUATION_TABLE, EvalOutput) for model in (new, old)]
    items = {item.prompt_id: item for item in contests(*outputs)}
    return [items[row.prompt_id] for row in rows]
