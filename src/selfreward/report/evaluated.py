"""What `selfreward eval` added to a run beside the stages of the method, and whether it still belongs to the run's models.

Stages of the method that are done again leave rankings and task results of the models that were there before. Such a stage has
an input whose fingerprint no finished stage of the run has: it is stale, and nothing shows it as a figure of this run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfreward.artifacts import RunDir
from selfreward.planning import EVALUATED, SUPERSEDED, has_work
from selfreward.report.reading import Json, read_record


@dataclass(frozen=True, slots=True)
class EvaluatedStage:
    """A stage of `selfreward eval` in a run's folder. `record`: None while it is not finished."""

    key: str
    path: Path
    state: Literal["done", "started", "stale"]
    record: Json | None

    @property
    def group(self) -> str:
        """What tables put together: `ranking/JUDGE`, `tasks/MODEL`."""
        return "/".join(self.key.split("/")[:2])


def evaluated_stages(run_dir: RunDir) -> list[EvaluatedStage]:
    """All of them, by key. Raises CorruptArtifactError for a record that cannot be read."""
    folders = _folders(run_dir)
    records = {key: record for key, path in folders.items() if (record := read_record(path)) is not None}
    fitting = _fitting(records, _fingerprints(run_dir))
    found = []
    for key, path in folders.items():
        state: Literal["done", "started", "stale"] = "done" if key in fitting else "stale" if key in records else "started"
        found.append(EvaluatedStage(key, path, state, records.get(key)))
    return found


def done_stages(run_dir: RunDir) -> dict[str, Path]:
    """Those that are finished and belong to the run's models: key -> folder."""
    return {stage.key: stage.path for stage in evaluated_stages(run_dir) if stage.state == "done"}


def _folders(run_dir: RunDir) -> dict[str, Path]:
    """Key -> folder of everything finished or begun."""
    found = {}
    for name in EVALUATED:
        for pattern in ("*/*/record.json", "*/*/parts"):
            for path in (run_dir.root / name).glob(pattern):
                if has_work(path.parent):
                    found[path.parent.relative_to(run_dir.root).as_posix()] = path.parent
    return dict(sorted(found.items()))


def _fingerprints(run_dir: RunDir) -> set[str]:
    """Of the finished stages of the method."""
    known = set()
    for path in run_dir.root.rglob("record.json"):
        if path.relative_to(run_dir.root).parts[0] not in (*EVALUATED, SUPERSEDED):
            record = read_record(path.parent)
            known.add(str(record["fingerprint"]) if record else "")
    return known


def _fitting(records: dict[str, Json], known: Iterable[str]) -> set[str]:
    """Keys whose inputs are finished stages of the method, or fitting ones themselves (a ranking's inputs are its pairs)."""
    prints, fitting = set(known), set[str]()
    while True:
        more = {key for key, record in records.items() if key not in fitting and set(record["inputs"].values()) <= prints}
        if not more:
            return fitting
        fitting |= more
        prints |= {str(records[key]["fingerprint"]) for key in more}
