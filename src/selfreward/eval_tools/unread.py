"""What to say where a judge answered and nothing of it could be read: an empty table alone would look like a result."""

from collections.abc import Iterable, Mapping, Sequence

from selfreward.evals.head_to_head import Comparison, PairVote, count_failures
from selfreward.report.names import FAILURES
from selfreward.rubrics import Rubric
from selfreward.texts import shown
from selfreward.types import Vote


def no_verdicts(judge: str, rubric: Rubric | None, rows: Sequence[Comparison]) -> str | None:
    """The problem, where not one of the contests has an outcome; None otherwise, and for the oracle."""
    if rubric is None or not rows or any(row.outcome is not None for row in rows):
        return None
    return nothing_read(
        f"{judge} gave no verdict in both orders", rubric, count_failures(rows), (v for r in rows for v in r.votes)
    )


def nothing_read(what: str, rubric: Rubric, failures: Mapping[str, int], votes: Iterable[Vote | PairVote]) -> str:
    """`what` was not given, why the replies failed, the first of them, and what to change."""
    why = ", ".join(f"{FAILURES[reason]} {number:,}" for reason, number in failures.items())
    said = next((vote.text for vote in votes if vote.failure and vote.text.strip()), None)
    example = f"; a reply is {shown(said)}" if said else ""
    return (
        f"{what} at all ({why}){example}. The model does not answer as rubric {rubric.name!r} asks: try another --rubric, "
        "another --judge, or a larger judge.max_tokens"
    )
