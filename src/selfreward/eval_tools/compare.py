"""Two models, or two files of outputs, head to head by any judge; no run is needed."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from selfreward.artifacts import derive_seed, to_plain, write_bytes, write_rows
from selfreward.config import Config
from selfreward.errors import UsageError
from selfreward.eval_tools.duel import contests_of, duel_judge, run_duel
from selfreward.eval_tools.options import CompareOptions
from selfreward.eval_tools.sides import open_side, outputs_of
from selfreward.eval_tools.small import check_out, small_run, without_training
from selfreward.eval_tools.unread import no_verdicts
from selfreward.evals.contest import (
    ORACLE_RULE,
    RULE,
    Outcome,
    contest_counts,
    contest_figures,
    outcomes,
    position_sentence,
)
from selfreward.evals.head_to_head import count_failures
from selfreward.evals.outputs import matched, read_instructions
from selfreward.progress import Progress

SUFFIXES = (".parquet", ".jsonl")


def compare(options: CompareOptions, config: Config, progress: Progress) -> dict[str, Any]:
    """Compare A with B; returns the summary as plain values, and writes `out`, a row a contest.

    Raises UsageError and ConfigError for what cannot work together, DataError for files that cannot be used, ModelError and
    EngineError as engines do.
    """
    config = without_training(config)
    if options.out is not None:
        check_out("--out", options.out, SUFFIXES)
    duel = duel_judge(config, options.judge, options.rubric)
    sides = [open_side("A", options.a, config), open_side("B", options.b, config)]
    if options.prompts is None and any(side.player for side in sides):
        raise UsageError("a model needs instructions to answer: give --prompts FILE")
    instructions = read_instructions(options.prompts, options.limit) if options.prompts else None
    with small_run(options.out, config, progress) as run:
        first, second = (outputs_of(run, key, side, instructions) for key, side in zip("ab", sides, strict=True))
        common = matched(first, second)
        if not common:
            raise UsageError(f"A ({options.a}) and B ({options.b}) have no instruction in common; nothing can be compared")
        contests = contests_of(common[: options.limit])
        rows = run_duel(run, "comparisons", duel, contests)
    seed = partial(derive_seed, config.random_seed, "compare")
    figures = contest_figures(contests, rows, seed, config.eval.bootstrap_samples)
    biased, sentence = position_sentence(figures["first_position"])
    names = [side.name for side in sides]
    if names[0] == names[1]:
        names = [f"{name} ({place})" for name, place in zip(names, "AB", strict=True)]
    summary = {
        "a": names[0],
        "b": names[1],
        "judge": duel.label,
        "rubric": duel.rubric_name or None,
        "rubric_hash": duel.rubric.content_hash if duel.rubric else None,
        "counts": contest_counts(rows)
        | {
            "only_a": len(first) - len(common),
            "only_b": len(second) - len(common),
            "beyond_limit": len(common) - len(contests),
        },
        "failed_verdicts": count_failures(rows),
        "figures": figures,
        "position_biased": biased if duel.player else None,
        "position": sentence if duel.player else "The oracle compares scores: it knows no positions.",
        "rule": RULE if duel.player else ORACLE_RULE,
        "out": str(options.out) if options.out else None,
        "problem": no_verdicts(duel.label, duel.rubric, rows),
    }
    if options.out is not None:
        _write(options.out, outcomes(contests, rows))
    plain: dict[str, Any] = json.loads(json.dumps(summary, default=to_plain))
    return plain


def _write(out: Path, rows: list[Outcome]) -> None:
    if out.suffix == ".parquet":
        write_rows(out, rows, Outcome)
        return
    lines = (json.dumps(row, default=to_plain, ensure_ascii=False) for row in rows)
    write_bytes(out, "".join(f"{line}\n" for line in lines).encode("utf-8", errors="backslashreplace"))
