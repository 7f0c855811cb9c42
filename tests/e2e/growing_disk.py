"""Run a config again and again on a disk that has a little more room each time; what each attempt said, as JSON lines.

    python growing_disk.py CONFIG DISK STEP

Started by test_faults.py inside a mount namespace: DISK is a memory disk that nobody else sees.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

from selfreward import cli, preflight


def attempt(config: str) -> dict[str, object]:
    """One `selfreward run`: its exit code and what it said."""
    sys.argv = ["selfreward", "run", config]
    said = io.StringIO()
    code: object = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return {"code": code or 0, "said": said.getvalue()}


def main(config: str, disk: str, step: str) -> None:
    preflight.space_problem = lambda *_: None  # type: ignore[assignment] # as if others had filled the disk after the check
    ballast = Path(disk) / "ballast"
    free = 4096
    while True:
        # The disk's own count of what is free, in whole pages.
        room = shutil.disk_usage(disk).free + (ballast.stat().st_size if ballast.exists() else 0)
        ballast.write_bytes(b"x" * max(0, room - free))
        done = attempt(config)
        print(json.dumps({**done, "free": free}), flush=True)
        if done["code"] == 0 or ballast.stat().st_size == 0:
            return
        # What looks for room before it begins tells how much it wants: half of it more, and then the rest.
        free = shutil.disk_usage(disk).free + int(step) * (6 if " needs " in str(done["said"]) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
