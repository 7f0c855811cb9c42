"""locking.py: one process a run, who holds it, and what becomes of a lock file whose process is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from selfreward.artifacts import Run
from selfreward.config import Config
from selfreward.errors import UsageError
from selfreward.locking import Holder, RunLock, read_holder, running, this_process, why_gone


def open_run(folder: Path) -> Run:
    return Run.open(Config(name="r", run_dir=str(folder)))


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run until it is ended."""
    code = (
        "import sys, time; from selfreward.artifacts import Run; from selfreward.config import Config;"
        f"run = Run.open(Config(name='r', run_dir={str(folder)!r})); print('open', flush=True); sys.stdin.read(); run.close()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.communicate()


def ended_process() -> int:
    """The id of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def write_lock(folder: Path, holder: Holder) -> Path:
    (folder / "r").mkdir(parents=True, exist_ok=True)
    (folder / "r/run.log").touch()
    path = folder / "r/run.lock"
    path.write_text(json.dumps(asdict(holder)))
    return path


def log_lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "r/run.log").read_text().splitlines()]


def test_who_holds_a_run_is_named_and_closing_gives_it_free(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        message = rf"another process is working in .*: process {process.pid} on {socket.gethostname()} \(since "
        with pytest.raises(UsageError, match=message):
            open_run(tmp_path)
        holder = running(tmp_path / "r/run.log")
        assert holder is not None
        assert holder.pid == process.pid
        assert read_holder(tmp_path / "r/run.lock") == holder, "the one who was refused left it alone"
    assert not (tmp_path / "r/run.lock").exists()
    assert running(tmp_path / "r/run.log") is None
    open_run(tmp_path).close()


def test_a_killed_process_leaves_a_lock_file_that_stops_nobody_and_is_said_in_the_log(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "r/run.lock").exists()
    assert running(tmp_path / "r/run.log") is None
    with open_run(tmp_path):
        holder = read_holder(tmp_path / "r/run.lock")
        assert holder is not None
        assert holder.pid == os.getpid()
    (line,) = [line for line in log_lines(tmp_path) if line["message"] == "stale lock file taken over"]
    assert f"process {process.pid}" in str(line["data"])
    assert "has ended" in str(line["data"])


STALE: list[tuple[str, Callable[[], Holder]]] = [
    ("that process has ended", lambda: replace(this_process(), pid=ended_process())),
    ("belongs to another process now", lambda: replace(this_process(), start="1")),
    ("belongs to another process now", lambda: replace(this_process(), pid=os.getppid(), start="1")),
    ("started anew", lambda: replace(this_process(), boot="another")),
    ("holds no lock on the log", lambda: replace(this_process(), pid=os.getppid(), start="")),
]


@pytest.mark.skipif(sys.platform != "linux", reason="a process's start is read from /proc")
@pytest.mark.parametrize(("why", "holder"), STALE)
def test_a_stale_lock_file_is_taken_over_for_a_named_reason(tmp_path: Path, why: str, holder: Callable[[], Holder]) -> None:
    # The dates say nothing: this one is far in the future.
    path = write_lock(tmp_path, replace(holder(), started="2999-01-01T00:00:00+00:00"))
    with open_run(tmp_path) as run:
        assert run.lock is not None
        assert why in str(run.lock.stale)
        found = read_holder(path)
        assert found is not None
        assert found.start == this_process().start
    assert not path.exists()
    assert why in (tmp_path / "r/run.log").read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_lock_file_that_was_cut_off_stops_nobody(tmp_path: Path, text: str) -> None:
    write_lock(tmp_path, this_process()).write_text(text)
    with open_run(tmp_path) as run:
        assert run.lock is not None
        assert "cut off" in str(run.lock.stale)


def test_a_lock_of_another_host_is_not_judged(tmp_path: Path) -> None:
    path = write_lock(tmp_path, Holder(ended_process(), "elsewhere", "2026-01-01"))
    with pytest.raises(UsageError, match=r"on elsewhere .*cannot be told from here.*delete .*run\.lock"):
        open_run(tmp_path)
    assert path.exists()
    assert str(running(tmp_path / "r/run.log")) == str(read_holder(path))
    path.unlink()
    open_run(tmp_path).close()


def test_a_run_may_be_opened_twice_in_one_process_and_the_first_keeps_it(tmp_path: Path) -> None:
    with open_run(tmp_path):
        open_run(tmp_path).close()
        assert read_holder(tmp_path / "r/run.lock") is not None
    assert not (tmp_path / "r/run.lock").exists()


NOT_LOCKABLE = 10**6
"""A descriptor that the system locks as little as it locks files on some file systems."""


def test_without_locks_of_the_system_the_lock_file_decides(tmp_path: Path) -> None:
    first = RunLock(tmp_path / "run.log")
    first.take(NOT_LOCKABLE)
    assert not first.has_system_lock
    assert first.path.exists()
    first.release()
    parent = replace(this_process(), pid=os.getppid(), start="")
    first.path.write_text(json.dumps(asdict(parent)))
    with pytest.raises(UsageError, match=f"process {os.getppid()}"):
        RunLock(tmp_path / "run.log").take(NOT_LOCKABLE)
    first.path.write_text(json.dumps(asdict(replace(parent, pid=ended_process()))))
    second = RunLock(tmp_path / "run.log")
    second.take(NOT_LOCKABLE)
    assert "has ended" in str(second.stale)


def test_this_process_is_at_work() -> None:
    assert why_gone(this_process()) is None
