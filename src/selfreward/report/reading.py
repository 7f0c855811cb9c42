"""What the report reads from a run directory: finished stages only, JSON and Parquet only."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfreward.artifacts import RunDir, read_json, read_rows
from selfreward.config import Config, parse_config
from selfreward.statistics import Units
from selfreward.types import Estimate, Judgement, Measure

Json = dict[str, Any]


def read_config(run_dir: RunDir) -> Config:
    """The run's settings as they were resolved. Raises CorruptArtifactError or ConfigError."""
    return parse_config(read_json(run_dir.config), origin=str(run_dir.config))


def read_record(folder: Path) -> Json | None:
    """A stage's record; None when the stage is not finished."""
    path = folder / "record.json"
    if not path.is_file():
        return None
    record: Json = read_json(path)
    return record


def finished_models(run_dir: RunDir, num_rounds: int) -> list[str]:
    """Evaluated models in the order in which they were made: `sft`, `m1`, `m2`, ..."""
    names = ["sft", "m1", *(f"m{t + 1}" for t in range(1, num_rounds + 1))]
    return [name for name in names if read_record(run_dir.evals(name)) is not None]


def stage_folders(run_dir: RunDir, config: Config) -> Iterator[tuple[str, Path]]:
    """Key and folder of every stage that these settings ask for, in the order of the pipeline."""
    folders = [run_dir.seed, run_dir.m0, run_dir.sft, run_dir.evals("sft")]
    if config.mode != "no-eft":
        folders.append(run_dir.eft)
    folders += [run_dir.m1, run_dir.evals("m1")]
    for t in range(1, config.num_rounds + 1):
        folders += round_folders(run_dir, t, with_replay=config.replay.num_items > 0).values()
        folders.append(run_dir.evals(f"m{t + 1}"))
    for folder in folders:
        yield folder.relative_to(run_dir.root).as_posix(), folder


def round_folders(run_dir: RunDir, t: int, with_replay: bool) -> dict[str, Path]:
    """Stage name -> folder of one round."""
    folders = {
        "prompts": run_dir.prompts(t),
        "samples": run_dir.samples(t),
        "judgements": run_dir.judgements(t),
        "pairs": run_dir.pairs(t),
    }
    if with_replay:
        folders["replay"] = run_dir.replay(t)
    return folders | {"model": run_dir.model(t)}


def read_measures(run_dir: RunDir, name: str) -> dict[str, Units]:
    """Figure -> unit -> (value, weight) of an evaluated model."""
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    for row in read_rows(run_dir.evals(name) / "measures.parquet", Measure):
        figures.setdefault(row.figure, {})[row.unit] = (row.value, row.weight)
    return dict(figures)


def read_judgements(folder: Path) -> list[Judgement]:
    """All judgements of a round, also those with too few valid votes (their score is None)."""
    return read_rows(folder / "judgements.parquet", Judgement)


def read_heldout_votes(run_dir: RunDir, name: str) -> list[Judgement]:
    """What an evaluated model said of the held-out ranked responses, the same ones for every model."""
    return read_rows(run_dir.evals(name) / "votes.parquet", Judgement)


def read_true_scores(run_dir: RunDir, t: int) -> dict[str, float]:
    """Completion id -> oracle score of round t's candidates; empty without an oracle or before M_t+1 is evaluated."""
    if read_record(run_dir.evals(f"m{t + 1}")) is None:
        return {}
    return {unit: value for unit, (value, _) in read_measures(run_dir, f"m{t + 1}").get("candidate_oracle", {}).items()}


def ran_round(row: Mapping[str, Any]) -> bool:
    """Whether a summary row's model ran a round whose judging is finished, if only on nothing."""
    return row["round_parse_failures"] is not None


def plain(estimate: Estimate) -> Json:
    """An estimate as it stands in summary.json."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def estimate(figure: Mapping[str, Any] | None) -> Estimate | None:
    """The reverse of `plain`; None stays None, and a figure without a value is None."""
    if figure is None or figure["value"] is None:
        return None
    return Estimate(figure["value"], figure["low"], figure["high"], figure["n"])
