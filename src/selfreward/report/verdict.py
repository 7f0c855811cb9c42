"""One word for a run, by a written rule. Pure: reads the summary's figures, never single responses."""

from collections.abc import Mapping
from typing import Any, Literal

Word = Literal["improving", "gaming itself", "getting worse", "no change", "not measured"]

RULE = (
    "Answers are measured from outside the loop (the oracle), the judge against human ranks, and the model's own scores "
    "by its judging of its own candidates. A change counts when its 95 % interval excludes 0. "
    "Improving: the last model's answers beat M1's. "
    "Gaming itself: the model's own scores rose but its answers did not measurably; without an outside measure of the "
    "answers, its own scores rose while its agreement with human ranks fell. "
    "Getting worse: its answers fell. No change: nothing of these. "
    "Not measured: there is no outside measure of the answers, so a rise cannot be told from a taste for its own words."
)


MAX_FAILED, MAX_TIED, MAX_CUT, MAX_SHIFT, MAX_LONGER = 0.1, 0.5, 0.05, 0.1, 0.1
"""When a warning is given: share of votes without a score, of tied prompts, of answers cut by the token limit, verdicts for
the answer shown first beyond 1/2, and growth of the answers' length."""


def judge_run(summary: Mapping[str, Any]) -> dict[str, Any]:
    """`word`, a `reason` with the figures behind it, the `rule`, and `warnings`: known ways to fail that showed up."""
    word, reason = _judge(summary)
    return {"word": word, "reason": reason, "rule": RULE, "warnings": find_warnings(summary)}


def find_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Known ways to fail (docs: method, "Known ways to fail") that the figures show, as sentences."""
    found = []
    models = {row["model"]: row for row in summary["models"]}
    for name, row in models.items():
        for figure, limit, text in (
            ("parse_failure_rate", MAX_FAILED, "of {}'s votes in its round have no score"),
            ("tie_rate", MAX_TIED, "of the prompts in {}'s round ended in a tie"),
            ("truncated_rate", MAX_CUT, "of {}'s held-out answers were cut by the token limit"),
        ):
            if row[figure] and row[figure]["value"] > limit:
                found.append(f"{100 * row[figure]['value']:.0f} % {text.format(name)}.")
        first = row["first_position"]
        if (
            first
            and first["low"] is not None
            and abs(first["value"] - 0.5) > MAX_SHIFT
            and not first["low"] <= 0.5 <= first["high"]
        ):
            found.append(
                f"{name} as pairwise judge chose the answer shown first in {100 * first['value']:.0f} % of its verdicts."
            )
    if summary["difference_of"]:
        found += _change_warnings(summary, models)
    return found


def _change_warnings(summary: Mapping[str, Any], models: Mapping[str, Any]) -> list[str]:
    last, first = (models[name] for name in summary["difference_of"])
    names = f"from {first['model']} to {last['model']}"
    found = []
    if _side(summary["differences"].get("judge_pairwise")) == -1:
        found.append(f"The judge's agreement with human ranks fell {names}.")
    longer = summary["differences"].get("mean_length")
    if _side(longer) == 1 and longer["value"] > MAX_LONGER * first["mean_length"]["value"]:
        found.append(f"Answers grew {100 * longer['value'] / first['mean_length']['value']:.0f} % longer {names}.")
    new, old = last["distinct_2"], first["distinct_2"]
    if new and old and None not in (new["high"], old["low"]) and new["high"] < old["low"]:
        found.append(f"Answers became less diverse {names} (distinct-2 {old['value']:.3f} to {new['value']:.3f}).")
    return found


def _judge(summary: Mapping[str, Any]) -> tuple[Word, str]:
    if not summary["difference_of"]:
        return "not measured", "M1 and a model after it are not both evaluated."
    last, first = summary["difference_of"]
    answers = summary["differences"].get("oracle_mean")
    judging = summary["differences"].get("judge_pairwise")
    own = summary["judge_mean_change"]
    if own is not None and not own["self_judged"]:
        own = None
    parts = [_phrase("answers", answers, 1.0, ""), _phrase("judge accuracy", judging, 100.0, " points")]
    parts = [f"{last} - {first}: " + ", ".join(part for part in parts if part)] if any(parts) else []
    if own is not None:
        parts.append(f"own scores, round {own['rounds'][0]} to {own['rounds'][1]}: {_phrase('', own, 1.0, '').strip()}")
    reason = "; ".join(parts)
    return _word(answers, judging, own), f"{reason}." if reason else "No change could be measured."


def _word(answers: Any, judging: Any, own: Any) -> Word:
    if _side(answers) is None:
        return "gaming itself" if _side(own) == 1 and _side(judging) == -1 else "not measured"
    if _side(answers) == 1:
        return "improving"
    if _side(own) == 1:
        return "gaming itself"
    return "getting worse" if _side(answers) == -1 else "no change"


def _side(change: Mapping[str, Any] | None) -> int | None:
    """1 above 0, -1 below 0, 0 neither; None when not measured."""
    if change is None or change["low"] is None:
        return None
    return 1 if change["low"] > 0 else -1 if change["high"] < 0 else 0


def _phrase(name: str, change: Mapping[str, Any] | None, scale: float, unit: str) -> str:
    if change is None or change["value"] is None:
        return ""
    digits = 2 if scale == 1.0 else 1
    value, low, high = (
        None if change[key] is None else f"{round(change[key] * scale, digits) + 0.0:+.{digits}f}"
        for key in ("value", "low", "high")
    )
    return f"{name} {value}{unit}" + (f" [{low}, {high}]" if low is not None else "")
