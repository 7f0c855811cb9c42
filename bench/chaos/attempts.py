"""Real processes of a run: started in a folder of their own, left alone or killed, and looked at afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from compare import Content, differences, half_written, read_content
from moments import REPORT, Moment, Timeline, Watch

SETTINGS = (
    # Few items, small chunks and batches: every stage that works in parts has several of them, every training several steps.
    "seed.num_ift=12", "seed.num_eft=12", "seed.num_heldout_prompts=4", "seed.num_heldout_ranked=3",
    "sft.num_epochs=1", "sft.batch_size=4", "dpo.batch_size=4", "dpo.num_epochs=2", "propose.num_prompts=6",
    "replay.num_items=6", "pair.min_pairs=1", "engine.threads=1", "engine.chunk_size=12", "engine.batch_size=12",
    # Random numbers inside training, which a training that goes on must not draw anew.
    "sft.dropout=0.1", "dpo.dropout=0.1", "eval.bootstrap_samples=200",
    # A state after every step, so that trainings go on in their middle.
    "checkpoints.every_seconds=0", "checkpoints.max_share=1.0",
)  # fmt: skip
"""The demo, small: about ten seconds of work beside the imports."""
LOOK_EVERY, LOOK_CLOSELY = 0.004, 0.001
"""Seconds between two looks at a run; closely, while it is in the stage that shall be hit."""
LATE_TRIES = 4
PATIENCE = 900
"""Seconds after which a process counts as hanging."""


class ChaosError(Exception):
    """A process of the harness did what no kill explains."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The uninterrupted run: what is compared of it, what it printed, and what it spent where."""

    content: Content
    printed: str
    timeline: Timeline
    seconds: float


@dataclass(slots=True)
class Kill:
    """One kill: when it was to come, the stage that it hit and where in it, how long the process after it took (until the
    run's end or the next kill, as `ended` says), and what was wrong."""

    number: int
    moment: Moment
    stage: str | None = None
    fell: str = ""
    seconds: float = 0.0
    ended: str = ""
    problems: list[str] = field(default_factory=list)


class Place:
    """The folder of one run and how its processes are started there: same command, same relative paths, one thread."""

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        self.folder, self.settings = folder, tuple(settings)
        self.root = folder / "runs" / "demo"
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)

    @contextmanager
    def process(self) -> Iterator[subprocess.Popen[bytes]]:
        """A running `selfreward demo`, the leader of its own process group; no one of the group outlives the block."""
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80", "TMPDIR": str(self.scratch),
        }  # fmt: skip
        command = [sys.executable, "-m", "selfreward.cli", "demo", "--run-dir", "runs", *self.settings]
        with (self.folder / "printed.txt").open("wb") as out, (self.folder / "errors.txt").open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603
                command, cwd=self.folder, env=environment, stdout=out, stderr=errors, start_new_session=True
            )
            try:
                yield process
            finally:
                kill_group(process)

    def printed(self) -> str:
        """What the last process wrote to standard output, without the line that tells the costs."""
        text = (self.folder / "printed.txt").read_text(encoding="utf-8")
        return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("cost: "))

    def errors(self) -> str:
        """The last line that the last process wrote to standard error."""
        lines = (self.folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing on standard error"

    def num_scratch(self) -> int:
        """Temporary folders that killed trainings left outside the run's folder, where no later process finds them."""
        return sum(1 for _ in self.scratch.glob("selfreward-*"))


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole group, and wait for its leader. Does nothing once the leader was waited for: its number may be
    another's by then."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_to_end(place: Place, watch: Watch | None = None) -> float:
    """Let a process finish; returns its seconds. Raises ChaosError when it fails or hangs."""
    started = time.monotonic()
    with place.process() as process:
        while process.poll() is None:
            if watch:
                watch.look()
            if time.monotonic() - started > PATIENCE:
                raise ChaosError(f"no end after {PATIENCE} s")
            time.sleep(LOOK_EVERY if watch else 0.05)
        if watch:
            watch.close()
        code = process.returncode
    if code:
        raise ChaosError(f"exit code {code}: {place.errors()}")
    return time.monotonic() - started


def run_and_kill(place: Place, moment: Moment, last_stage: str) -> tuple[str | None, str]:
    """Start a process and kill it at the moment; returns the stage that was hit, and where in it.

    A process that was done before is started again: it writes the report anew, and is killed in there, sooner each time.
    Raises ChaosError when it fails or hangs by itself, or when no kill comes in time.
    """
    for _ in range(LATE_TRIES):
        watch, started = Watch(place.root, last_stage), time.monotonic()
        with place.process() as process:
            while process.poll() is None:
                watch.look()
                if watch.is_due(moment):
                    kill_group(process)
                    break
                if time.monotonic() - started > PATIENCE:
                    raise ChaosError(f"no end after {PATIENCE} s")
                time.sleep(LOOK_CLOSELY if watch.stage == moment.stage else LOOK_EVERY)
            code = process.returncode
        if code == -signal.SIGKILL:
            watch.look()  # what the process still wrote before it died
            inside = "right after" if watch.stage in watch.passed else "in"
            spent = f"{time.monotonic() - watch.since:.2f} s, {watch.changes} changes of its files"
            return watch.stage, f"{inside} {watch.stage} ({spent})"
        if code:
            raise ChaosError(f"exit code {code}: {place.errors()}")
        moment = replace(moment, stage=REPORT, event="start", delay=moment.delay / 2)
    raise ChaosError(f"{LATE_TRIES} processes were done before the kill")


def uninterrupted(place: Place) -> Reference:
    """The run that the others are compared with."""
    watch = Watch(place.root)
    seconds = run_to_end(place, watch)
    return Reference(read_content(place.root), place.printed(), watch.timeline(), seconds)


def disturbed(place: Place, kills: Sequence[Kill], reference: Reference) -> None:
    """One run, killed as told and then left to finish; the kills get their results."""
    last_stage = list(reference.timeline)[-2]  # the report comes after it
    try:
        for place_in_run, kill in enumerate(kills):
            started = time.monotonic()
            kill.stage, kill.fell = run_and_kill(place, kill.moment, last_stage)
            if place_in_run:
                kills[place_in_run - 1].seconds = time.monotonic() - started
                kills[place_in_run - 1].ended = "until the next kill"
            kill.problems += half_written(place.root, reference.content)
        kills[-1].seconds, kills[-1].ended = run_to_end(place), "to the end"
        found = differences(reference.content, read_content(place.root))
        if place.printed() != reference.printed:
            found.append("the table on standard output differs")
    except ChaosError as error:
        found = [str(error)]
    for kill in kills:
        kill.problems += found


def clear(place: Place) -> None:
    """Take a run's folder away."""
    shutil.rmtree(place.folder)
