"""A disk of a few kilobytes, or a read-only one, for a child process: a memory disk in a mount namespace of its own.

Nothing outside the child sees the mount, and it is gone when the child ends. Works for an administrator and, where the machine
allows user namespaces, for anybody; elsewhere the tests skip with the reason.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"


@functools.cache
def _problem() -> str | None:
    """Why no disk can be mounted here; None when one can."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return "needs the programs unshare and mount"
    tried = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"no mounts in a namespace of one's own here: {tried.stderr.strip()}"


def on_small_disk(folder: Path, script: str, *arguments: str, size: str = "1m") -> subprocess.CompletedProcess[str]:
    """Run a shell script with `$DISK`, a disk of this size mounted on `folder`, and `$PYTHON`; returns what it said."""
    if problem := _problem():
        pytest.skip(problem)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "DISK": str(folder),
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(SRC), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    whole = f'mount -t tmpfs -o size={size} none "$DISK" || exit 99\n{script}'
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", whole, "sh", *arguments], capture_output=True, text=True, check=False, env=environment
    )
