"""The run directory: where everything lies, what is finished, and whether it may be reused.

A stage is done when its `record.json` exists; it is written last. The record holds a fingerprint of the stage's
settings and inputs: the same fingerprint is reused, another one stops with `DriftError`. Inside a stage, `Stage.chunks`
commits finished chunks, so that a restart redoes at most one of them.
"""

import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from selfreward.config import Config
from selfreward.disk import check_writable, writing
from selfreward.drift import ACCEPTED
from selfreward.environment import describe_environment, open_log
from selfreward.errors import CorruptArtifactError, StoppedError, StorageError, UsageError
from selfreward.intact import Intact
from selfreward.locking import RunLock
from selfreward.parts import find_parts, pieces, read_part, set_aside, write_part
from selfreward.progress import NO_STEPS, NullProgress, Progress, Steps, Watched
from selfreward.reuse import (
    BEGUN,
    PARTS,
    RECORD,
    begin,
    check_finished,
    clear_parts,
    clear_temporary,
    clear_unfinished,
    hash_outputs,
    identify,
    read_begun,
)  # fmt: skip
from selfreward.rundir import RunDir, check_is_run
from selfreward.spending import SHORTAGES, UNTOLD, USAGE, PeakMemory, Spending
from selfreward.stopping import Stop
from selfreward.storage import (
    derive_seed,
    fingerprint,
    hash_file,
    hash_model,
    holds_rows,
    iter_rows,
    read_json,
    read_rows,
    read_rows_metadata,
    refuse_secrets,
    replacing,
    to_plain,
    write_bytes,
    write_json,
    write_rows,
    writing_rows,
)  # fmt: skip
from selfreward.types import Counts, Drop

__all__ = [
    "Artifact", "Run", "RunDir", "Stage", "derive_seed", "fingerprint", "hash_file", "hash_model",
    "holds_rows", "iter_rows", "read_json", "read_rows", "read_rows_metadata", "replacing", "to_plain", "write_bytes",
    "write_json", "write_rows", "writing_rows",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")

REJECTS = "rejects"
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

    accepted: Sequence[Mapping[str, Any]] = ()
    """Differences between these settings and reused stages that somebody accepted; every record that follows lists them."""

    def __init__(self, config: Config, directory: RunDir, progress: Progress, logger: logging.Logger) -> None:
        self.config = config
        self.dir = directory
        self.progress = progress
        self.logger = logger
        self.stop = Stop()
        self.intact = Intact()
        self.environment: dict[str, Any] = {}
        self.lock: RunLock | None = None
        self.num_stages = {"done": 0, "reused": 0}
        self._is_described = False

    @classmethod
    def open(cls, config: Config, progress: Progress | None = None) -> "Run":
        """Create or reopen the folder `<run_dir>/<name>`; appends to run.log.

        config.json and environment.json tell what made the folder's artifacts. A new folder gets them at once; in one that
        has them they change when a stage begins to work, so that reusing stages or meeting a DriftError leaves them alone.
        Raises ConfigError when the folder holds something that is no run (what a run finds unfinished it clears), StorageError
        when it cannot be written, and UsageError when another process works in it.
        """
        directory = RunDir(Path(config.run_dir) / config.name)
        with writing(directory.root):
            check_is_run(directory)
        check_writable(directory.root)
        with writing(directory.root):
            directory.root.mkdir(parents=True, exist_ok=True)
        environment = describe_environment(config.engine.threads)
        logger, lock = open_log(directory.log)
        run = cls(config, directory, progress or NullProgress(), logger)
        run.lock = lock
        run.environment = environment
        clear_temporary(directory.root)
        if not directory.config.exists():
            run._describe()
        run.logger.info("run opened", extra={"data": {"name": config.name, "commit": environment["commit"]}})
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if isinstance(error, StoppedError):
                self.logger.info("run stopped as asked", extra={"data": {"reason": self.stop.reason}})
            elif error is not None:
                self.logger.error("run stopped", extra={"data": {"error": f"{type(error).__name__}: {error}"}})
        except StorageError as second:
            if error is None:
                raise
            error.add_note(str(second))  # the first error is what a person has to know
        self.close()

    def _describe(self) -> None:
        """Write config.json and environment.json, once."""
        if not self._is_described:
            refuse_secrets(self.config, self.environment)
            write_json(self.dir.environment, self.environment)
            write_json(self.dir.config, self.config)
            self._is_described = True

    def close(self) -> None:
        """Close run.log and give the run free. Closing twice is allowed."""
        if self.lock is not None:
            self.lock.release()
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
        record.json follows last. Before it works, the files of its inputs are compared with their records. Raises DriftError
        when the folder was made with other settings or inputs, CorruptArtifactError when a finished stage lacks files or one
        has changed (weights: has another size, where nothing is done with them), StorageError when the disk refuses.
        """
        if not _STAGE_KEY.fullmatch(key):
            raise UsageError(f"stage key {key!r} must be a relative folder of lower-case names, like 'round-1/pairs'")
        self.stop.check()
        identity = identify(
            key, sections, {name: artifact.fingerprint for name, artifact in inputs.items()}, self.config.random_seed
        )
        artifact = Artifact(key, self.dir.root / key, fingerprint(identity))
        path = artifact.path
        if (path / RECORD).exists():
            artifact = dataclasses.replace(artifact, fingerprint=check_finished(path, artifact.fingerprint, identity))
            clear_parts(path)  # a kill between the record and the end of the stage leaves them
            self.logger.info("stage reused", extra={"data": {"stage": key, "fingerprint": artifact.fingerprint}})
            self.num_stages["reused"] += 1
            return artifact
        self._describe()
        for given in inputs.values():
            self.intact.check(given.key, given.path)
        with writing(path):
            clear_unfinished(path)
            if (path / BEGUN).is_file() and read_begun(path) is None:
                self.logger.warning("a damaged note of what was begun is written anew", extra={"data": {"stage": key}})
            begun = begin(path, artifact.fingerprint, identity, self.environment["versions"])
            self.logger.info("stage started", extra={"data": {"stage": key, "fingerprint": artifact.fingerprint}})
            record = self._work(Stage(key, path, self, artifact.fingerprint), work)
            accepted = [*begun.get(ACCEPTED, ()), *(item for item in self.accepted if item not in begun.get(ACCEPTED, ()))]
            told = {ACCEPTED: accepted} if accepted else {}
            write_json(path / RECORD, {**identity, "fingerprint": artifact.fingerprint, **record, **told})
        self.intact.add(path, record["outputs"])
        clear_parts(path)
        self.logger.info(
            "stage finished", extra={"data": {"stage": key, "seconds": record["seconds"], "counts": record["counts"]}}
        )
        self.num_stages["done"] += 1
        return artifact

    def _work(self, stage: "Stage", work: Callable[["Stage"], Counts]) -> dict[str, Any]:
        """Do the work and return the part of the record that tells what happened."""
        started, clock = datetime.now(UTC), time.perf_counter()
        counts, spent = work(stage), stage.spent
        if stage.num_rejects is None:
            stage.reject([])
        if spent.num_untold:
            stage.notes[f"num_{UNTOLD}"] = spent.num_untold
        if spent.shortages:
            stage.notes[SHORTAGES] = {"num_halved": len(spent.shortages), "smallest_batch": min(spent.shortages)}
        if stage.num_damaged:
            stage.notes["num_damaged_parts"] = stage.num_damaged
        dropped = {reason: number for reason, number in sorted(counts.dropped.items()) if number}
        assert dropped == dict(sorted((stage.num_rejects or {}).items())), (
            f"stage {stage.key} counted {dropped} but kept {dict(stage.num_rejects or {})} in rejects.parquet"
        )
        return {
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock + spent.earlier_seconds, 3),
            "tokens": spent.tokens,
            USAGE: spent.record(),
            "counts": {"in": counts.num_in, "out": counts.num_out, "dropped": dropped},
            "roles": stage.roles,
            "notes": stage.notes,
            "outputs": (outputs := hash_outputs(stage.path)),
            "sizes": {name: (stage.path / name).stat().st_size for name in outputs},
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
        self.spent = Spending(PeakMemory())
        self.num_damaged = 0
        self.num_found = 0
        self.training_progress = Watched(run.progress, key)
        self._piece: tuple[Steps, int] = (NO_STEPS, 0)
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

    def warn(self, message: str, **data: Any) -> None:
        """Tell of something that went wrong and was mended: to the person and to run.log."""
        self.logger.warning(message, extra={"data": {"stage": self.key, **data}})
        self.run.progress.say(message)

    def tell_shortage(self, num_rows: int, most: int, longest: int) -> None:
        """A batch of `num_rows` replies did not fit into memory; at most `most` at a time followed. Stored with the chunk."""
        self.spent.shortages.append(most)
        self.warn(
            f"{self.key}: no memory for {num_rows} replies at a time to prompts of up to {longest} tokens; going on with "
            f"{most} (engine.batch_size={self.config.engine.batch_size} is too high for this machine)",
            num_rows=num_rows,
            most=most,
        )

    def within(self, share: float) -> None:
        """Show that this share of the chunk that is worked on is there, about."""
        steps, size = self._piece
        steps.within(share * size)

    def chunks(
        self,
        name: str,
        items: Sequence[T],
        size: int,
        work: Callable[[Sequence[T]], Sequence[R]],
        cls: type[R],
        is_shown: bool = True,
    ) -> list[R]:
        """Work through the items in chunks of `size`; each chunk's rows are committed at once and reused on restart.

        A committed chunk is found again by the stage's fingerprint, its place and its items, so other settings never
        meet it. Progress counts items, unless the caller shows its own. Results come in the order of the items.
        """
        own = self.run.progress.task(f"{self.key}: {name}", len(items)) if is_shown else nullcontext(NO_STEPS)
        with own as finished:
            return [row for rows in self._chunks(name, pieces(items, size), work, cls, finished) for row in rows]

    def stream(
        self,
        name: str,
        items: Iterable[T],
        size: int,
        work: Callable[[Sequence[T]], Sequence[R]],
        cls: type[R],
        num_items: int,
    ) -> Iterator[list[R]]:
        """As `chunks` for items that come one by one: a chunk's results at a time, and no other chunk in memory."""
        with self.run.progress.task(f"{self.key}: {name}", num_items) as finished:
            yield from self._chunks(name, pieces(items, size), work, cls, finished)

    def _chunks(
        self,
        name: str,
        chunks: Iterable[list[T]],
        work: Callable[[Sequence[T]], Sequence[R]],
        cls: type[R],
        finished: Steps,
    ) -> Iterator[list[R]]:
        for index, chunk in enumerate(chunks):
            content = fingerprint([self.fingerprint, chunk])
            stem = f"{name}-{index:05d}-{content}"
            rows = self._committed(stem, cls)
            if rows is None:
                self.run.stop.check()  # before the work: what is committed is never lost, what is not is not begun
                self._piece = (finished, len(chunk))
                rows = self._commit_chunk(stem, chunk, work, cls)
                finished(len(chunk))
            else:
                self.num_found += 1
                finished.found(len(chunk))
            yield rows

    def _committed(self, stem: str, cls: type[R]) -> list[R] | None:
        """The rows of a chunk that an earlier attempt committed; None without any that are whole."""
        for path in find_parts(self.path / PARTS, stem):
            try:
                rows, stored = read_part(path, cls)
            except CorruptArtifactError as error:
                set_aside(path)
                self.num_damaged += 1
                self.warn(f"{self.key}: a damaged part was set aside and is done again", part=path.name, error=str(error))
                continue
            self.spent.add_stored(stored)
            return rows
        return None

    def _commit_chunk(self, stem: str, chunk: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], cls: type[R]) -> list[R]:
        mark, clock = self.spent.mark(), time.perf_counter()
        rows = work(chunk)
        spent = self.spent.since(mark, time.perf_counter() - clock)
        # Read back even when fresh: a resumed stage must see exactly what an uninterrupted one sees.
        return read_part(write_part(self.path / PARTS, stem, rows, cls, spent), cls)[0]
