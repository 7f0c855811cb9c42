"""Everything that is measured of one model (paper section 3.2). Reads artifacts, writes artifacts, feeds no training.

model, seed, previous evaluation -> outputs.parquet     one sampled and one greedy response a held-out prompt
                                    votes.parquet       the model's judgements of the held-out ranked responses
                                    comparisons.parquet head-to-head with the previous model, prompt by prompt
                                    measures.parquet    every figure on every unit, for paired intervals later
                                    evals.json          the figures, with n and 95 % intervals
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, Run, Stage, hash_file, read_rows
from selfreward.config import Config
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.evals import oracle
from selfreward.evals.diversity import distinct_n
from selfreward.evals.figures import estimate_all
from selfreward.evals.generations import generate_outputs, length_measures
from selfreward.evals.head_to_head import (
    Comparison,
    compare_by_judge,
    compare_by_oracle,
    comparison_measures,
    contests,
    describe,
)
from selfreward.evals.judge_quality import ORDER_RULE, TIE_RULE, judge_measures
from selfreward.evals.judging import count_failures, judge_ranked, scored_sets
from selfreward.judging import judge_settings, mean_mass, rubric_identity
from selfreward.rubrics import Rubric, load_rubric
from selfreward.types import (
    Completion,
    Counts,
    Drop,
    Estimate,
    EvalOutput,
    Judgement,
    Measure,
    PreferencePair,
    Prompt,
    RankedSet,
)


def evaluate(run: Run, name: str, model: Artifact, seed: Artifact, previous: Artifact | None) -> Artifact:
    """Measure the model `name` (`sft`, `m1`, `m2`, ...); `previous` is the evaluation that it is compared with.

    For a model that a round made, what that round's judging was truly worth is measured too, with the oracle.
    """
    config = run.config
    rubric = load_rubric(config.judge.rubric, "pointwise")
    by_policy = config.eval.head_to_head == "policy" and previous is not None
    pairwise = load_rubric(config.eval.pairwise_rubric, "pairwise") if by_policy else None
    inputs = {"model": model, "seed": seed} | ({"previous": previous} if previous else {})

    def work(stage: Stage) -> Counts:
        return _Evaluation(stage, name, rubric, pairwise, previous).measure(model, seed)

    key = run.dir.evals(name).relative_to(run.dir.root).as_posix()
    return run.stage(key, _sections(config, rubric, pairwise), inputs, work)


def _sections(config: Config, rubric: Rubric, pairwise: Rubric | None) -> Mapping[str, Any]:
    """What decides the figures beside the inputs. The judge here is always the model itself, so who judges in
    the rounds is not in."""
    return {
        "eval": config.eval,
        "dtype": config.model.dtype,
        "engine": {"name": config.engine.name} | ({"script": _script(config)} if config.engine.name == "scripted" else {}),
        "judge": {name: value for name, value in judge_settings(config.judge).items() if name != "num_votes"},
        "sample": config.sample.model_dump(mode="json", exclude={"num_candidates"}),
        "rubric": rubric_identity(rubric, config.judge),
        "pairwise_rubric": pairwise.content_hash if pairwise else None,
    }


def _script(config: Config) -> str:
    """Content of the script file, or the name of a built-in table."""
    name = config.engine.script or ""
    return hash_file(name) if Path(name).is_file() else name


@dataclass
class _Evaluation:
    """The work of one evaluation stage."""

    stage: Stage
    name: str
    rubric: Rubric
    pairwise: Rubric | None
    previous: Artifact | None

    def measure(self, model: Artifact, seed: Artifact) -> Counts:
        """Generate, judge, compare; write all files; return counts of responses asked for and judged."""
        stage = self.stage
        prompts = read_rows(seed.path / "prompts_heldout.parquet", Prompt)
        sets = read_rows(seed.path / "ranked_heldout.parquet", RankedSet)
        stage.roles = {"policy": self.name, "judge": self.name}
        with open_engine(str(model.checkpoint), stage.config) as engine:
            outputs, drops = generate_outputs(stage, engine, prompts)
            judgements = judge_ranked(stage, engine, self.rubric, sets)
            comparisons, contest = self._compare(engine, outputs, len(prompts))
        measures = [
            *oracle.output_measures(outputs),
            *length_measures(outputs),
            *judge_measures(scored_sets(sets, judgements), float(self.rubric.scale[1])),
            *comparison_measures(comparisons),
            *self._round_measures(),
        ]
        figures = estimate_all(measures, lambda figure: stage.seed("interval", figure), stage.config.eval.bootstrap_samples)
        sampled = [output.text for output in outputs if output.kind == "sampled"]
        figures |= {f"distinct_{size}": distinct_n(sampled, size) for size in (1, 2)}
        stage.write_rows("outputs", outputs, EvalOutput)
        stage.write_rows("votes", judgements, Judgement)
        stage.write_rows("comparisons", comparisons, Comparison)
        stage.write_rows("measures", measures, Measure)
        stage.write_json("evals", self._document(figures, judgements, len(sets), contest))
        drops += [Drop(item.completion_id, "too_few_votes") for item in judgements if item.score is None]
        stage.reject(drops)
        return _counts(2 * len(prompts) + len(judgements), drops)

    def _compare(
        self, engine: Engine, outputs: Sequence[EvalOutput], num_prompts: int
    ) -> tuple[list[Comparison], Mapping[str, Any] | None]:
        """Head-to-head with the previous model, as `eval.head_to_head` says; nothing to say without one."""
        method = self.stage.config.eval.head_to_head
        if self.previous is None or method == "none":
            return [], None
        old = read_rows(self.previous.path / "outputs.parquet", EvalOutput)
        if self.pairwise is not None:
            rows = compare_by_judge(self.stage, engine, self.pairwise, contests(outputs, old))
        else:
            rows = compare_by_oracle(outputs, old)
        opponent = _model_of(self.previous)
        return rows, describe(rows, self.name if self.pairwise else "oracle", opponent, num_prompts)

    def _round_measures(self) -> list[Measure]:
        """The oracle's view of the round that made this model; its data decided the model, so the fingerprint holds it."""
        match = re.fullmatch(r"m(\d+)", self.name)
        if not self.stage.config.eval.oracle or match is None or match[1] == "1":
            return []
        directory, t = self.stage.run.dir, int(match[1]) - 1
        completions = read_rows(directory.samples(t) / "completions.parquet", Completion)
        pairs = read_rows(directory.pairs(t) / "pairs.parquet", PreferencePair)
        return oracle.round_measures(completions, pairs)

    def _document(
        self,
        figures: Mapping[str, Estimate],
        judgements: Sequence[Judgement],
        num_sets: int,
        contest: Mapping[str, Any] | None,
    ) -> Mapping[str, Any]:
        mass = mean_mass([vote for judgement in judgements for vote in judgement.votes])
        return {
            "model": self.name,
            "figures": figures,
            "judge": {
                "rubric": self.rubric.name,
                "rubric_hash": self.rubric.content_hash,
                "scale": list(self.rubric.scale),
                "sets": num_sets,
                "responses": len(judgements),
                "unscored": sum(judgement.score is None for judgement in judgements),
                "votes": sum(len(judgement.votes) for judgement in judgements),
                "failed_votes": count_failures(judgements),
                **({} if mass is None else {"mean_mass": mass}),
            },
            "head_to_head": contest,
            "rules": {"ties": TIE_RULE, "orders": ORDER_RULE},
        }


def _model_of(evaluation: Artifact) -> str:
    """`sft/evals` -> sft, `round-1/evals` -> m2."""
    folder = evaluation.key.split("/", maxsplit=1)[0]
    return f"m{int(folder.removeprefix('round-')) + 1}" if folder.startswith("round-") else folder


def _counts(num_in: int, drops: Sequence[Drop]) -> Counts:
    reasons = sorted({drop.reason for drop in drops})
    dropped = {reason: sum(drop.reason == reason for drop in drops) for reason in reasons}
    return Counts(num_in, num_in - len(drops), dropped)
