"""What the command found: figures, health, counts; and the table of the output, written as it is read."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from selfreward.artifacts import Artifact, derive_seed, iter_rows, read_json, replacing, to_plain, writing_rows
from selfreward.config import Config
from selfreward.errors import CorruptArtifactError
from selfreward.evals.figures import estimate_all
from selfreward.evals.head_to_head import Comparison, Contest
from selfreward.evals.judge_health import (
    HEALTH_RULE,
    PAIR_RULE,
    JudgedSet,
    health_figures,
    joined,
    judged_set,
    main_failure,
    merged_measures,
    pair_measures,
)
from selfreward.evals.judge_quality import ORDER_RULE, TIE_RULE, ScoredSet, judge_measures
from selfreward.judge_tool.data import Data, is_blank
from selfreward.judge_tool.options import Choice, ComparedPair, Options, PairReply, ScoredResponse
from selfreward.rubrics import Rubric
from selfreward.texts import shown
from selfreward.types import Judgement

Write = Callable[[Any], None]


def summarise(
    options: Options, config: Config, rules: tuple[Rubric, Sequence[Mapping[str, Any]]], data: Data, made: Artifact
) -> dict[str, Any]:
    """What the command prints; writes the output. `rules`: the rubric, and the members of a panel."""
    rubric, panel = rules
    record = read_json(made.path / "record.json")
    summary = {
        "kind": "agreement" if options.agreement else "scores",
        "data": data.scan.facts,
        "judge": {
            "model": config.judge.model if not panel else " + ".join(fact["member"] for fact in panel),
            "rubric": rubric.name if not panel else " + ".join(fact["rubric"] for fact in panel),
            "rubric_hash": rubric.content_hash if not panel else " + ".join(fact["rubric_hash"] for fact in panel),
            "panel": list(panel),
            "scale": list(rubric.scale) if rubric.kind == "pointwise" else None,
            "random_seed": config.random_seed,
            "stage": options.stage,
        },
        "tokens": record["tokens"],
        "out": str(options.out) if options.out else None,
        "problem": None,
    }
    seed = partial(derive_seed, config.random_seed, options.stage, "interval")
    samples = config.eval.bootstrap_samples
    if rubric.kind == "pairwise":
        summary |= _pairwise_part(options, rubric, data, made, (seed, samples))
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
    said: str | None = None
    with _writing(options.out, ScoredResponse) as write:
        for item in data.sets():
            own = [
                Judgement(f"{item.id}/{index}", (), None) if is_blank(text) else _next(judgements, f"{item.id}/{index}", made)
                for index, text in enumerate(item.responses)
            ]
            said = said if said is not None else next((vote.text for each in own for vote in each.votes if vote.failure), None)
            judged.append(judged_set(item.id, tuple(map(len, item.responses)), own))
            if options.agreement:
                scored.append(ScoredSet(item.id, item.ranks, tuple(judgement.score for judgement in own)))
            unscored.update(
                main_failure(judgement) if judgement.votes else "blank" for judgement in own if judgement.score is None
            )
            ranks = item.ranks or (None,) * len(own)
            for text, rank, found in zip(item.responses, ranks, own, strict=True):
                write(ScoredResponse(found.completion_id, item.prompt, text, rank, found.score, found.votes))
    part: dict[str, Any] = {
        "counts": {
            "prompts": data.scan.num_prompts,
            **({"sets": data.scan.num_sets} if options.agreement else {}),
            "responses": data.scan.num_responses,
            "scored": data.scan.num_responses - unscored.total(),
        },
        "unscored": dict(unscored.most_common()),
        "health": health_figures(_by_prompt(data, judged), *intervals),
        "rules": {"health": HEALTH_RULE},
    }
    if options.agreement:
        measures = merged_measures(judge_measures(scored, float(rubric.scale[1])), data.scan.group)
        part["figures"] = estimate_all(measures, *intervals)
        part["rules"] |= {"ties": TIE_RULE, "orders": ORDER_RULE}
    if not part["counts"]["scored"]:
        part["problem"] = _no_scores(options, rubric, unscored, said or "")
    return part


def _pairwise_part(
    options: Options, rubric: Rubric, data: Data, made: Artifact, intervals: tuple[Callable[[str], int], int]
) -> dict[str, Any]:
    def set_of(contest_id: str) -> str:
        return data.scan.group(contest_id.rpartition("/")[0])

    rows: list[Comparison] = []
    failures: Counter[str] = Counter()
    num_asked = 0
    said: str | None = None
    kept = iter_rows(made.path / "comparisons.parquet", Comparison)
    with _writing(options.out, ComparedPair) as write:
        for contest, row in zip(data.contests(), kept, strict=True):
            write(_pair(contest, row))
            said = said if said is not None else next((vote.text for vote in row.votes if vote.failure), None)
            failures.update(row.failures)
            num_asked += len(row.votes)
            rows.append(replace(row, votes=()))  # the figures need no texts, which would fill the memory
    decided = sum(row.outcome is not None for row in rows)
    both = [row for row in rows if row.new_first is not None and row.old_first is not None]
    return {
        "counts": {
            "prompts": data.scan.num_prompts,
            "sets": data.scan.num_sets,
            "pairs": len(rows),
            "decided": decided,
            "missing": len(rows) - decided,
            "equal_texts": sum(row.outcome == "tie" and row.new_first is None for row in rows),
            "orders_disagree": sum(row.new_first != row.old_first for row in both),
        },
        "verdicts": {"num_verdicts": num_asked, "failures": dict(failures.most_common())},
        "figures": estimate_all(pair_measures(set_of, rows), *intervals),
        "rules": {"ties": PAIR_RULE},
        "problem": _no_scores(options, rubric, failures, said or "") if rows and not decided else None,
    }


def _pair(contest: Contest, row: Comparison) -> ComparedPair:
    """A comparison in words for what people ranked: its new response is the better one."""
    names: dict[str | None, Choice | None] = {"new": "better", "old": "worse", "tie": "tie", None: None}
    outcomes: dict[str | None, Literal["right", "tie", "wrong"] | None]
    outcomes = {"win": "right", "tie": "tie", "lose": "wrong", None: None}
    replies = tuple(
        PairReply(
            "better" if vote.order == "new_first" else "worse",
            vote.text,
            names[vote.choice],
            vote.failure,
            vote.num_tokens,
            vote.finish_reason,
        )
        for vote in row.votes
    )
    return ComparedPair(row.prompt_id, contest.prompt, contest.new, contest.old, outcomes[row.outcome], replies)


def _by_prompt(data: Data, judged: Sequence[JudgedSet]) -> list[JudgedSet]:
    groups: dict[str, list[JudgedSet]] = {}
    for item in judged:
        groups.setdefault(data.scan.group(item.id), []).append(item)
    return [joined(group) for group in groups.values()]


def _no_scores(options: Options, rubric: Rubric, failures: Mapping[str, int], said: str) -> str:
    """What to do where not one reply could be read."""
    why = ", ".join(f"{name} {number:,}" for name, number in failures.items())
    where = f"the replies stand in {options.out}" if options.out else "give --out to keep the replies"
    example = f"; the first reply is {shown(said)}" if said.strip() else ""
    return (
        f"the judge gave no {'verdict' if rubric.kind == 'pairwise' else 'score'} at all ({why}){example}. The model does not "
        f"answer as rubric {rubric.name!r} asks: try another --rubric (models of the micro-world need lab_additive), another "
        f"--model, or a larger judge.max_tokens; {where}"
    )


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
