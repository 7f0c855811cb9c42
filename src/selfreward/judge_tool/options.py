"""What the command line says, and what a row of the output holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from selfreward.types import FinishReason, VerdictFailure, Vote

SUFFIXES = (".parquet", ".jsonl")
RUN_SUFFIX = ".run"
"""What the folder of the work is called beside the output."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. None: the config decides."""

    data: Path
    model: str | None = None
    agreement: bool = False
    rubric: str | None = None
    num_votes: int | None = None
    mode: str | None = None
    out: Path | None = None
    format: str = "auto"
    limit: int | None = None
    stage_of_the_command: ClassVar[str] = "judge"
    stage: str = stage_of_the_command
    """The stage whose seeds the votes have: with a run's settings and `m1/evals` they are the run's own votes."""


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A row of the output. `rank` is the human one (0 is best), None where nobody ranked. A blank response has no votes."""

    id: str
    prompt: str
    response: str
    rank: int | None
    score: float | None
    votes: tuple[Vote, ...]


Choice = Literal["better", "worse", "tie"]


@dataclass(frozen=True, slots=True)
class PairReply:
    """A judge's reply about a pair: which response was `A`, the raw text, and a choice or a named failure."""

    shown_first: Literal["better", "worse"]
    text: str
    choice: Choice | None
    failure: VerdictFailure | None
    num_tokens: int | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """A row of the output of a pairwise judge: two responses that people ordered. `outcome`: whether both replies prefer the
    `better` one (`right`), both the other (`wrong`), or neither (`tie`); None where a verdict is missing. Equal texts tie
    without being shown."""

    id: str
    prompt: str
    better: str
    worse: str
    outcome: Literal["right", "tie", "wrong"] | None
    replies: tuple[PairReply, ...]
