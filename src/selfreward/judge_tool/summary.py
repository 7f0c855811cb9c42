"""What the command found: figures, health, counts; and the table of the output, written as it is read."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, derive_seed, iter_rows, read_json, replacing, to_plain, writing_rows
from selfreward.config import Config
from selfreward.errors import CorruptArtifactError
from selfreward.evals.figures import estimate_all
from selfreward.evals.head_to_head import Comparison
from selfreward.evals.judge_health import (
    HEALTH_RULE,
    PAIR_RULE,
    JudgedSet,
    health_figures,
    judged_set,
    main_failure,
    pair_measures,
)
from selfreward.evals.judge_quality import ORDER_RULE, TIE_RULE, ScoredSet, judge_measures
from selfreward.judge_tool.data import Data
from selfreward.judge_tool.options import Options, ScoredResponse
from selfreward.rubrics import Rubric
from selfreward.types import Judgement

Write = Callable[[Any], None]


def summarise(options: Options, config: Config, rubric: Rubric, data: Data, made: Artifact) -> dict[str, Any]:
    """What the command prints; writes the output."""
    record = read_json(made.path / "record.json")
    summary = {
        "kind": "agreement" if options.agreement else "scores",
        "data": data.scan.facts,
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
    samples = config.eval.bootstrap_samples
    if rubric.kind == "pairwise":
        summary |= _pairwise_part(options, data, made, seed, samples)
    else:
        summary["judge"] |= {"mode": config.judge.mode, "num_votes": config.eval.num_votes}
        summary["votes"] = record["notes"]
        summary |= _pointwise_part(options, rubric, data, made, (seed, samples))
    plain: dict[str, Any] = json.loads(json.dumps(summary, default=to_plain))
    return plain


def _pointwise_part(
    options: Options, rubric: Rubric, data: Data, made: Artifact, intervals: tuple[Callable[[str], int], int]
) -> dict[str, Any]:
    judgements = iter_rows(made.path / "votes.parquet", Judgement)
    judged: list[JudgedSet] = []
    scored: list[ScoredSet] = []
    unscored: Counter[str] = Counter()
    with _writing(options.out, ScoredResponse) as write:
        for item in data.sets():
            own = [_next(judgements, f"{item.id}/{index}", made) for index in range(len(item.responses))]
            judged.append(judged_set(item.id, tuple(map(len, item.responses)), own))
            if options.agreement:
                scored.append(ScoredSet(item.id, item.ranks, tuple(judgement.score for judgement in own)))
            unscored.update(main_failure(judgement) for judgement in own if judgement.score is None)
            ranks = item.ranks or (None,) * len(own)
            for text, rank, found in zip(item.responses, ranks, own, strict=True):
                write(ScoredResponse(found.completion_id, item.prompt, text, rank, found.score, found.votes))
    part: dict[str, Any] = {
        "counts": {
            "sets": data.scan.num_sets,
            "responses": data.scan.num_responses,
            "scored": data.scan.num_responses - unscored.total(),
        },
        "unscored": dict(unscored.most_common()),
        "health": health_figures(judged, *intervals),
        "rules": {"health": HEALTH_RULE},
    }
    if options.agreement:
        part["figures"] = estimate_all(judge_measures(scored, float(rubric.scale[1])), *intervals)
        part["rules"] |= {"ties": TIE_RULE, "orders": ORDER_RULE}
    return part


def _pairwise_part(options: Options, data: Data, made: Artifact, seed: Callable[[str], int], samples: int) -> dict[str, Any]:
    def set_of(contest_id: str) -> str:
        return contest_id.rpartition("/")[0]

    rows: list[Comparison] = []
    failures: Counter[str] = Counter()
    num_asked = 0
    with _writing(options.out, Comparison) as write:
        for row in iter_rows(made.path / "comparisons.parquet", Comparison):
            write(row)
            failures.update(row.failures)
            num_asked += len(row.votes)
            rows.append(replace(row, votes=()))  # the figures need no texts, which would fill the memory
    both = [row for row in rows if row.new_first is not None and row.old_first is not None]
    return {
        "counts": {
            "sets": data.scan.num_sets,
            "pairs": len(rows),
            "decided": sum(row.outcome is not None for row in rows),
            "missing": sum(row.outcome is None for row in rows),
            "equal_texts": sum(row.outcome == "tie" and row.new_first is None for row in rows),
            "orders_disagree": sum(row.new_first != row.old_first for row in both),
        },
        "verdicts": {"num_verdicts": num_asked, "failures": dict(failures.most_common())},
        "figures": estimate_all(pair_measures(set_of, rows), seed, samples),
        "rules": {"ties": PAIR_RULE},
    }


def _next(judgements: Iterator[Judgement], wanted: str, made: Artifact) -> Judgement:
    found = next(judgements, None)
    if found is None or found.completion_id != wanted:
        raise CorruptArtifactError(f"{made.path} has no votes on {wanted!r} in their place; delete it to judge again")
    return found


@contextmanager
def _writing(out: Path | None, cls: type[Any]) -> Iterator[Write]:
    """What adds a row to the output, whole or not at all; without one, nothing."""
    if out is None:
        yield lambda row: None
    elif out.suffix == ".parquet":
        with writing_rows(out, cls) as write:
            yield write
    else:
        with replacing(out) as file:

            def add(row: Any) -> None:
                line = json.dumps(row, default=to_plain, ensure_ascii=False, allow_nan=False)
                file.write(f"{line}\n".encode())

            yield add
