"""What the command line says, and what a row of the output holds."""

from dataclasses import dataclass
from pathlib import Path

from selfreward.types import Vote

SUFFIXES = (".parquet", ".jsonl")
RUN_SUFFIX = ".run"
"""What the folder of the work is called beside the output."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. None: the config decides."""

    data: Path
    model: str
    agreement: bool = False
    rubric: str | None = None
    num_votes: int | None = None
    mode: str | None = None
    out: Path | None = None
    format: str = "auto"
    limit: int | None = None
    stage: str = "judge"
    """The stage whose seeds the votes have: with a run's settings and `m1/evals` they are the run's own votes."""


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A row of the output. `rank` is the human one (0 is best), None where nobody ranked."""

    id: str
    prompt: str
    response: str
    rank: int | None
    score: float | None
    votes: tuple[Vote, ...]
