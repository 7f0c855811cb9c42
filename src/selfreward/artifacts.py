"""The run directory: where everything lies, what is finished, and whether it may be reused.

A stage is done when its `record.json` exists; it is written last. The record holds a fingerprint of the stage's
settings and inputs: the same fingerprint is reused, another one stops with `DriftError`. Inside a stage, `Stage.chunks`
commits finished chunks, so that a restart redoes at most one of them.
"""

import dataclasses
import json
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
from selfreward.progress import Advance, NullProgress, Progress
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
UNTOLD = "replies_without_token_counts"
SHORTAGES = "out_of_memory"
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
        counts = work(stage)
        if stage.num_rejects is None:
            stage.reject([])
        if stage.num_untold:
            stage.notes[f"num_{UNTOLD}"] = stage.num_untold
        if stage.shortages:
            stage.notes[SHORTAGES] = {"num_halved": len(stage.shortages), "smallest_batch": min(stage.shortages)}
        if stage.num_damaged:
            stage.notes["num_damaged_parts"] = stage.num_damaged
        dropped = {reason: number for reason, number in sorted(counts.dropped.items()) if number}
        assert dropped == dict(sorted((stage.num_rejects or {}).items())), (
            f"stage {stage.key} counted {dropped} but kept {dict(stage.num_rejects or {})} in rejects.parquet"
        )
        return {
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock + stage.earlier_seconds, 3),
            "tokens": stage.tokens,
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
        self.tokens = {"prompt": 0, "generated": 0}
        self.num_untold = 0
        self.earlier_seconds = 0.0
        self.num_damaged = 0
        self.shortages: list[int] = []
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
        self.shortages.append(most)
        self.warn(
            f"{self.key}: no memory for {num_rows} replies at a time to prompts of up to {longest} tokens; going on with "
            f"{most} (engine.batch_size={self.config.engine.batch_size} is too high for this machine)",
            num_rows=num_rows,
            most=most,
        )

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
        own = self.run.progress.task(f"{self.key}: {name}", len(items)) if advance is None else nullcontext(advance)
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
        finished: Advance,
    ) -> Iterator[list[R]]:
        for index, chunk in enumerate(chunks):
            content = fingerprint([self.fingerprint, chunk])
            stem = f"{name}-{index:05d}-{content}"
            rows = self._committed(stem, cls)
            if rows is None:
                self.run.stop.check()  # before the work: what is committed is never lost, what is not is not begun
                rows = self._commit_chunk(stem, chunk, work, cls)
            finished(len(chunk))
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
            self.add_tokens(int(stored["prompt_tokens"]), int(stored["generated_tokens"]), int(stored[UNTOLD]))
            self.earlier_seconds += float(stored["seconds"])
            self.shortages += json.loads(stored[SHORTAGES])
            return rows
        return None

    def _commit_chunk(self, stem: str, chunk: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], cls: type[R]) -> list[R]:
        before, untold, num_short = dict(self.tokens), self.num_untold, len(self.shortages)
        clock = time.perf_counter()
        rows = work(chunk)
        spent = {f"{name}_tokens": str(number - before[name]) for name, number in self.tokens.items()}
        spent[UNTOLD] = str(self.num_untold - untold)
        spent["seconds"] = f"{time.perf_counter() - clock:.3f}"
        spent[SHORTAGES] = json.dumps(self.shortages[num_short:])
        # Read back even when fresh: a resumed stage must see exactly what an uninterrupted one sees.
        return read_part(write_part(self.path / PARTS, stem, rows, cls, spent), cls)[0]
