"""The run directory: where everything lies, what is finished, and whether it may be reused.

A stage is done when its `record.json` exists; it is written last. The record holds a fingerprint of the stage's
settings and inputs: the same fingerprint is reused, another one stops with `DriftError`. Inside a stage, `Stage.chunks`
commits finished chunks, so that a restart redoes at most one of them.
"""

import dataclasses
import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from selfreward.config import Config
from selfreward.environment import describe_environment, open_log
from selfreward.errors import ConfigError, UsageError
from selfreward.progress import Advance, NullProgress, Progress
from selfreward.reuse import PARTS, RECORD, check_finished, clear_unfinished, hash_outputs
from selfreward.rundir import RunDir
from selfreward.stopping import Stop
from selfreward.storage import (
    arrow_schema,
    derive_seed,
    fingerprint,
    hash_file,
    hash_model,
    holds_rows,
    read_json,
    read_rows,
    read_rows_metadata,
    to_plain,
    write_bytes,
    write_json,
    write_rows,
    writing_rows,
)
from selfreward.types import Counts, Drop

__all__ = [
    "Artifact",
    "Run",
    "RunDir",
    "Stage",
    "arrow_schema",
    "derive_seed",
    "fingerprint",
    "hash_file",
    "hash_model",
    "holds_rows",
    "read_json",
    "read_rows",
    "read_rows_metadata",
    "to_plain",
    "write_bytes",
    "write_json",
    "write_rows",
    "writing_rows",
]

T = TypeVar("T")
R = TypeVar("R")

REJECTS = "rejects"
UNTOLD = "replies_without_token_counts"
_STAGE_KEY = re.compile(r"[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)*")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished stage: its key (`sft`, `round-1/pairs`), its folder, and the fingerprint of its settings and inputs."""

    key: str
    path: Path
    fingerprint: str

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained model, for stages that train one."""
        return self.path / "checkpoint"


class Run:
    """One run: its settings, its folder, its log, and the stages finished so far. Close it, or use it as a context manager."""

    def __init__(self, config: Config, directory: RunDir, progress: Progress, logger: logging.Logger) -> None:
        self.config = config
        self.dir = directory
        self.progress = progress
        self.logger = logger
        self.stop = Stop()
        self.environment: dict[str, Any] = {}
        self.num_stages = {"done": 0, "reused": 0}
        self._is_described = False

    @classmethod
    def open(cls, config: Config, progress: Progress | None = None) -> "Run":
        """Create or reopen the folder `<run_dir>/<name>`; appends to run.log.

        config.json and environment.json tell what made the folder's artifacts. A new folder gets them at once; in one that
        has them they change when a stage begins to work, so that reusing stages or meeting a DriftError leaves them alone.
        Raises ConfigError when the folder holds something that is no run (what a run finds unfinished it clears), and
        UsageError when another process works in it.
        """
        directory = RunDir(Path(config.run_dir) / config.name)
        _check_is_run(directory)
        environment = describe_environment(config.engine.threads)
        directory.root.mkdir(parents=True, exist_ok=True)
        run = cls(config, directory, progress or NullProgress(), open_log(directory.log))
        run.environment = environment
        if not directory.config.exists():
            run._describe()
        run.logger.info("run opened", extra={"data": {"name": config.name, "commit": environment["commit"]}})
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            self.logger.error("run stopped", extra={"data": {"error": f"{type(error).__name__}: {error}"}})
        self.close()

    def _describe(self) -> None:
        """Write config.json and environment.json, once."""
        if not self._is_described:
            write_json(self.dir.environment, self.environment)
            write_json(self.dir.config, self.config)
            self._is_described = True

    def close(self) -> None:
        """Close run.log. Closing twice is allowed."""
        for handler in list(self.logger.handlers):
            self.logger.removeHandler(handler)
            handler.close()

    def stage(
        self,
        key: str,
        sections: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        work: Callable[["Stage"], Counts],
    ) -> Artifact:
        """Do a stage, or reuse it when it was done with the same settings and inputs.

        `key` is also its folder inside the run (`round-1/pairs`). `sections` holds everything that decides the result
        beside the inputs and `random_seed`: config sections, rubric hashes. `work` writes the files and returns its counts;
        record.json follows last. Raises DriftError when the folder was made with other settings or inputs,
        CorruptArtifactError when a finished stage lacks files, or one that is not weights has changed.
        """
        if not _STAGE_KEY.fullmatch(key):
            raise UsageError(f"stage key {key!r} must be a relative folder of lower-case names, like 'round-1/pairs'")
        path = self.dir.root / key
        identity = {
            "stage": key,
            "sections": _plain(sections),
            "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
            "random_seed": self.config.random_seed,
        }
        artifact = Artifact(key, path, fingerprint(identity))
        if (path / RECORD).exists():
            check_finished(key, path, artifact.fingerprint, identity, read_json(path / RECORD))
            self.logger.info("stage reused", extra={"data": {"stage": key, "fingerprint": artifact.fingerprint}})
            self.num_stages["reused"] += 1
            return artifact
        self._describe()
        clear_unfinished(path)
        self.logger.info("stage started", extra={"data": {"stage": key, "fingerprint": artifact.fingerprint}})
        record = self._work(Stage(key, path, self, artifact.fingerprint), work)
        write_json(path / RECORD, {**identity, "fingerprint": artifact.fingerprint, **record})
        shutil.rmtree(path / PARTS, ignore_errors=True)  # its rows are in the outputs now
        self.logger.info(
            "stage finished", extra={"data": {"stage": key, "seconds": record["seconds"], "counts": record["counts"]}}
        )
        self.num_stages["done"] += 1
        return artifact

    def _work(self, stage: "Stage", work: Callable[["Stage"], Counts]) -> dict[str, Any]:
        """Do the work and return the part of the record that tells what happened."""
        started, clock = datetime.now(UTC), time.perf_counter()
        counts = work(stage)
        if stage.num_rejects is None:
            stage.reject([])
        if stage.num_untold:
            stage.notes[f"num_{UNTOLD}"] = stage.num_untold
        dropped = {reason: number for reason, number in sorted(counts.dropped.items()) if number}
        assert dropped == dict(sorted((stage.num_rejects or {}).items())), (
            f"stage {stage.key} counted {dropped} but kept {dict(stage.num_rejects or {})} in rejects.parquet"
        )
        return {
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 3),
            "tokens": stage.tokens,
            "counts": {"in": counts.num_in, "out": counts.num_out, "dropped": dropped},
            "roles": stage.roles,
            "notes": stage.notes,
            "outputs": hash_outputs(stage.path),
            "versions": self.environment["versions"],
            "commit": self.environment["commit"],
        }


class Stage:
    """What a stage's work gets: its folder, seeds, chunked work that survives a restart, and its bookkeeping."""

    def __init__(self, key: str, path: Path, run: Run, fingerprint: str) -> None:
        self.key = key
        self.path = path
        self.run = run
        self.config = run.config
        self.logger = run.logger
        self.fingerprint = fingerprint
        self.roles: dict[str, str] = {}
        self.notes: dict[str, Any] = {}
        self.tokens = {"prompt": 0, "generated": 0}
        self.num_untold = 0
        self.num_rejects: Counter[str] | None = None

    def seed(self, *parts: str | int) -> int:
        """A seed from the run's seed, this stage and the parts (an item's id, a sample's index)."""
        return derive_seed(self.config.random_seed, self.key, *parts)

    def write_rows(self, name: str, items: Sequence[Any], cls: type[Any] | None = None) -> None:
        """Write `<name>.parquet`; pass `cls` when `items` may be empty."""
        write_rows(self.path / f"{name}.parquet", items, cls)

    def write_json(self, name: str, value: Any) -> None:
        """Write `<name>.json`."""
        write_json(self.path / f"{name}.json", value)

    def reject(self, drops: Sequence[Drop]) -> None:
        """Keep every dropped item with its reason in rejects.parquet; call it once, with all of them."""
        with self.rejecting() as reject:
            for drop in drops:
                reject(drop)

    @contextmanager
    def rejecting(self) -> Iterator[Callable[[Drop], None]]:
        """`reject` for as many items as do not fit into memory: a function that keeps one of them; open it once."""
        assert self.num_rejects is None, f"stage {self.key} rejected twice: collect all drops first"
        counted: Counter[str] = Counter()
        with writing_rows(self.path / f"{REJECTS}.parquet", Drop) as write:

            def reject(drop: Drop) -> None:
                counted[drop.reason] += 1
                write(drop)

            yield reject
        self.num_rejects = counted

    def add_tokens(self, prompt: int, generated: int, num_untold: int = 0) -> None:
        """Count tokens that an engine read and wrote, and replies whose tokens no one told; inside `chunks` they are stored
        with the chunk. With such replies the record's tokens are a lower bound, and its notes say for how many."""
        self.tokens["prompt"] += prompt
        self.tokens["generated"] += generated
        self.num_untold += num_untold

    def chunks(
        self,
        name: str,
        items: Sequence[T],
        size: int,
        work: Callable[[Sequence[T]], Sequence[R]],
        cls: type[R],
        advance: Advance | None = None,
    ) -> list[R]:
        """Work through the items in chunks of `size`; each chunk's rows are committed at once and reused on restart.

        A committed chunk is found again by the stage's fingerprint, its place and its items, so other settings never
        meet it. Progress counts items, in a task of its own or by the caller's `advance`. Results come in the order of
        the items.
        """
        assert size >= 1, f"chunk size must be at least 1, got {size}"
        results: list[R] = []
        own = self.run.progress.task(f"{self.key}: {name}", len(items)) if advance is None else nullcontext(advance)
        with own as finished:
            for index, start in enumerate(range(0, len(items), size)):
                chunk = items[start : start + size]
                content = fingerprint([self.fingerprint, chunk])
                part = self.path / PARTS / f"{name}-{index:05d}-{content}.parquet"
                if part.exists():
                    stored = read_rows_metadata(part)
                    told = int(stored["prompt_tokens"]), int(stored["generated_tokens"])
                    self.add_tokens(*told, int(stored.get(UNTOLD, "0")))
                else:
                    self.run.stop.check()  # before the work: what is committed is never lost, what is not is not begun
                    self._commit_chunk(part, chunk, work, cls)
                # Read back even when fresh: a resumed stage must see exactly what an uninterrupted one sees.
                results.extend(read_rows(part, cls))
                finished(len(chunk))
        return results

    def _commit_chunk(self, part: Path, chunk: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], cls: type[R]) -> None:
        before, untold = dict(self.tokens), self.num_untold
        rows = work(chunk)
        spent = {f"{name}_tokens": str(number - before[name]) for name, number in self.tokens.items()}
        spent[UNTOLD] = str(self.num_untold - untold)
        write_rows(part, rows, cls, spent)


def _check_is_run(directory: RunDir) -> None:
    """Refuse a folder with foreign files: opening it as a run would overwrite and clear them."""
    root = directory.root
    if not root.exists():
        return
    if not root.is_dir():
        raise ConfigError(f"{root} is a file, not a run folder; choose another name or run_dir")
    if any(root.iterdir()) and not directory.log.exists() and not any(root.rglob(RECORD)):
        raise ConfigError(f"{root} holds files but no run (no {directory.log.name}); choose another name or run_dir")


def _plain(value: Any) -> Any:
    """The value as JSON would read it back."""
    return json.loads(json.dumps(value, default=to_plain, allow_nan=False))
