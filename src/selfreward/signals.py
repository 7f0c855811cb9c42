"""Ctrl-C and SIGTERM while a run works: the first one asks for a stop, the second one stops at once.

The first lets the part at work be finished and committed; the run then ends by itself. The second raises KeyboardInterrupt
where the program stands: what is not committed is lost, as if the process had been killed. A third ends the process even
where something holds that up. Only the command line installs these, and only in the main thread.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from selfreward.stopping import Stop

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
ASKED = "finishing the current part, then stopping; once more: stop now"


@contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """Inside the block signals stop a run as told above; behind it they do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    num_seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal num_seen
        num_seen += 1
        name = NAMES[signal.Signals(number)]
        if num_seen == 1:
            stop.ask(name)
            _write(f"\n{name}: {ASKED}\n")
        elif num_seen == 2:
            raise KeyboardInterrupt(name)
        else:
            os._exit(1)

    # What a parent had ignored stays ignored, but for SIGTERM: a job in the background still can be ended.
    wanted = [number for number in NAMES if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[signal.Signals, Any] = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: it was installed by something that is not Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _write(text: str) -> None:
    """Straight to standard error: inside a handler the stream's own buffer may be in use."""
    with suppress(OSError, ValueError):  # nobody can read it: a closed terminal, or a stream without a file
        os.write(sys.stderr.fileno(), text.encode())
