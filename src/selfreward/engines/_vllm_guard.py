"""A program of its own, started beside vLLM's processes: it ends them when the one that started it is gone.

They would live on without a master that was killed, and keep its GPUs' memory: the run, started again, would find no room. As
long as the starter lives, it holds the other end of this program's standard input. Linux only, as vLLM is.

    python _vllm_guard.py PID...
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress


def main(words: Sequence[str]) -> None:
    """Wait for the end of standard input, then end the processes of these ids, if they are still the same ones."""
    held = []
    for word in words:
        with suppress(ProcessLookupError):
            held.append(os.pidfd_open(int(word)))
    sys.stdin.buffer.read()
    for process in held:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
