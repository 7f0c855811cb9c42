"""AlpacaEval from a model on: outputs in its format, and with a baseline and a judge of one's own its annotations and rates.

The judge sees both orders. Orders that disagree are a draw (preference 1.5); an unreadable verdict gives no annotation, and
is counted. The published figures come of another judge (GPT-4-Turbo, asked once, by the probability of its answer), so rates
of another judge compare with each other and not with the leaderboard.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from selfreward.artifacts import Run, read_json
from selfreward.config import Config
from selfreward.errors import UsageError
from selfreward.eval_tools.duel import Duel, contests_of, duel_judge, run_duel
from selfreward.eval_tools.options import AlpacaOptions
from selfreward.eval_tools.sides import Side, open_side, outputs_of
from selfreward.eval_tools.small import check_out, small_run, without_training
from selfreward.eval_tools.unread import no_verdicts
from selfreward.evals.alpaca_eval import BASELINE_WINS, MODEL_WINS, evaluate_alpaca, read_annotations
from selfreward.evals.head_to_head import count_failures
from selfreward.evals.outputs import BASELINE_KEYS, ModelOutput, matched, read_instructions, write_list, write_outputs
from selfreward.progress import Progress
from selfreward.texts import counted

DRAW = (BASELINE_WINS + MODEL_WINS) / 2
_PREFERENCES = {"win": MODEL_WINS, "lose": BASELINE_WINS, "tie": DRAW}


def alpaca_outputs(options: AlpacaOptions, config: Config, progress: Progress) -> dict[str, Any]:
    """Write the outputs and, with a baseline, the annotations; returns what there is to say, as plain values.

    Raises UsageError and ConfigError for what cannot work together, DataError for files that cannot be used, ModelError and
    EngineError as engines do.
    """
    config = without_training(config)
    check_out("--outputs", options.outputs, (".json",))
    if (options.baseline is None) != (options.judge is None):
        raise UsageError("--baseline FILE and --judge MODEL belong together: a judge compares with the baseline's outputs")
    if options.difficulty is not None and options.judge is None:
        raise UsageError("--difficulty FILE is for rates: name a --baseline FILE and a --judge MODEL too")
    side = open_side("--model", options.model, config, options.name)
    if options.prompts is None and side.player is not None:
        raise UsageError("--model names a model, which needs instructions to answer: give --prompts FILE")
    instructions = read_instructions(options.prompts, options.limit) if options.prompts else None
    duel = duel_judge(config, options.judge, options.rubric) if options.judge else None
    with small_run(options.outputs, config, progress) as run:
        outputs = outputs_of(run, "outputs", side, instructions)[: options.limit]
        write_outputs(options.outputs, outputs)
        summary = _summary(options, run, side, outputs, len(instructions or outputs))
        if duel is not None and options.baseline is not None:
            baseline = open_side("--baseline", str(options.baseline), config, keys=BASELINE_KEYS)
            found = _annotate(options, run, duel, outputs, baseline)
            summary |= {"alpaca": found, "problem": found.pop("problem")}
    return summary


def _summary(options: AlpacaOptions, run: Run, side: Side, outputs: list[ModelOutput], num_instructions: int) -> dict[str, Any]:
    dropped: Mapping[str, int] = {}
    if side.player is not None:
        dropped = read_json(run.dir.root / "outputs" / "record.json")["counts"]["dropped"]
    return {
        "generator": side.name,
        "outputs": str(options.outputs),
        "instructions": num_instructions,
        "written": len(outputs),
        "dropped": dict(dropped),
        "truncated": sum(row.finish_reason == "length" for row in outputs),
        "datasets": dict(Counter(row.dataset for row in outputs).most_common()),
        "mean_length": sum(len(row.output) for row in outputs) / len(outputs) if outputs else None,
    }


def _annotate(options: AlpacaOptions, run: Run, duel: Duel, outputs: list[ModelOutput], baseline: Side) -> dict[str, Any]:
    """Compare with the baseline, write the annotations, and compute AlpacaEval's rates from that file."""
    if baseline.outputs is None:
        raise UsageError(f"--baseline {str(options.baseline)!r} is no file of outputs or annotations")
    pairs = matched(outputs, baseline.outputs)
    if len(pairs) < len(outputs):
        known = {row.instruction for row in baseline.outputs}
        first = next(row.instruction for row in outputs if row.instruction not in known)
        raise UsageError(
            f"--baseline holds no output to {len(outputs) - len(pairs)} of {len(outputs)} instructions, such as "
            f"{first[:60]!r}; give the baseline's outputs to all of them"
        )
    made = run_duel(run, "annotations", duel, contests_of(pairs))
    rows = [
        {
            "instruction": new.instruction,
            "dataset": new.dataset,
            "generator_1": old.generator,
            "output_1": old.output,
            "generator_2": new.generator,
            "output_2": new.output,
            "annotator": f"{duel.label} {duel.rubric_name}".strip(),
            "preference": _PREFERENCES[row.outcome],
        }
        for (new, old), row in zip(pairs, made, strict=True)
        if row.outcome is not None
    ]
    write_list(options.annotations, rows)
    told = {
        "annotations": str(options.annotations),
        "judge": duel.label,
        "both_orders": duel.player is not None,
        "no_verdict": len(made) - len(rows),
        "failed_verdicts": count_failures(made),
        "problem": no_verdicts(duel.label, duel.rubric, made),
    }
    if len(rows) < 2:  # no rate has an error; the file says how little there is
        few = f"{duel.label} decided {len(rows)} of {counted(len(made), 'comparison')}; a rate with an error needs 2 or more"
        return told | {"problem": told["problem"] or few}
    return asdict(evaluate_alpaca(read_annotations(options.annotations), options.difficulty)) | told
