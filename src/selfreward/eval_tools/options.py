"""What the command line of `selfreward eval ...` says, a class a command. Fields that mean the same are defined once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What every command has that may ask a judge: who, by which rubric, and how many instructions at most."""

    judge: str | None = None
    rubric: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions(EvalOptions):
    """`a` and `b`: models or outputs. `out` gets a row a contest."""

    a: str
    b: str
    judge: str
    prompts: Path | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(EvalOptions):
    """One model that answers, or a file of what it answered already; `name` is what files call it."""

    model: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaOptions(ModelOptions):
    """`outputs` is written; with a `baseline` and a judge, annotations beside it."""

    outputs: Path
    prompts: Path | None = None
    baseline: Path | None = None
    difficulty: Mapping[str, float] | None = None

    @property
    def annotations(self) -> Path:
        """Where annotations go: beside the outputs."""
        return self.outputs.with_name(f"{self.outputs.stem}.annotations.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions(ModelOptions):
    """MT-Bench: `out` is a folder; `temperature` replaces that of every category."""

    questions: Path
    out: Path
    references: Path | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Standard tasks of a `model`, stored in `out`, or of all models of a `run`, stored in its folder."""

    tasks: tuple[str, ...]
    model: str | None = None
    out: Path | None = None
    run: Path | None = None
    include: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
