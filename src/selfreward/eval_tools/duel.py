"""Who compares two outputs: a model with a pairwise rubric, in both orders, or the micro-world's oracle."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from selfreward.artifacts import Run, Stage, fingerprint, read_rows
from selfreward.config import Config
from selfreward.engines import open_engine
from selfreward.errors import UsageError
from selfreward.eval_tools.small import check_names, do_stage
from selfreward.evals import oracle
from selfreward.evals.head_to_head import Comparison, Contest, compare_by_judge
from selfreward.evals.outputs import ModelOutput, keyed
from selfreward.preflight import check_judge
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import Player, frozen_player
from selfreward.types import Counts, Drop

ORACLE = "oracle"
"""The `--judge` value that means: the micro-world's exact scores. It needs no orders."""
COMPARISONS = "comparisons.parquet"


@dataclass(frozen=True)
class Duel:
    """A judge of pairs. The oracle has neither player nor rubric."""

    label: str
    player: Player | None
    rubric: Rubric | None

    @property
    def rubric_name(self) -> str:
        """Empty for the oracle."""
        return self.rubric.name if self.rubric else ""


def duel_judge(config: Config, judge: str, rubric: str | None) -> Duel:
    """What `--judge` and `--rubric` name, checked. Raises UsageError and ConfigError."""
    if judge == ORACLE:
        if rubric is not None:
            raise UsageError(f"--rubric {rubric!r}: the oracle compares scores and reads no rubric; leave it out")
        return Duel(ORACLE, None, None)
    check_names(config, {"--judge": judge})
    loaded = load_rubric(rubric or config.eval.pairwise_rubric, "pairwise", "--rubric" if rubric else None)
    check_judge(config, "--judge", judge, loaded)
    return Duel(judge, frozen_player(judge, config), loaded)


def contests_of(pairs: Sequence[tuple[ModelOutput, ModelOutput]]) -> list[Contest]:
    """One contest an instruction; the first side is `new`. Ids are the first side's, made different where they are not."""
    ids = [f"{name}-{number}" if number else name for name, number in keyed(new.id for new, _ in pairs)]
    return [Contest(name, new.instruction, new.output, old.output) for name, (new, old) in zip(ids, pairs, strict=True)]


def run_duel(run: Run, key: str, duel: Duel, contests: Sequence[Contest]) -> list[Comparison]:
    """Decide all contests as stage `key`; the rows in their order, those without an outcome also in its rejects."""
    judge = run.config.judge
    sections = {
        "judge": {"player": duel.player.section, "max_tokens": judge.max_tokens} if duel.player else {"player": ORACLE},
        "rubric": duel.rubric.content_hash if duel.rubric else None,
        "data": fingerprint(list(contests)),
    }
    inputs = duel.player.inputs if duel.player else {}
    made = do_stage(run, key, sections, inputs, partial(_decide, duel, contests))
    return read_rows(made.path / COMPARISONS, Comparison)


def _decide(duel: Duel, contests: Sequence[Contest], stage: Stage) -> Counts:
    stage.roles = {"judge": duel.label}
    if duel.player is None or duel.rubric is None:
        rows = [oracle.compare(item) for item in contests]
        if contests and all(row.outcome is None for row in rows):
            raise UsageError(
                "--judge oracle knows the micro-world's tasks only, and none of these instructions is one; name a model"
            )
    else:
        with open_engine(duel.player.model, stage.config) as engine:
            rows = compare_by_judge(stage, engine, duel.rubric, contests)
    drops = [Drop(row.prompt_id, "no_verdict") for row in rows if row.outcome is None]
    stage.write_rows("comparisons", rows, Comparison)
    stage.reject(drops)
    return Counts(len(rows), len(rows) - len(drops), Counter(drop.reason for drop in drops))
