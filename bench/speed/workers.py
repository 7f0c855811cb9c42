"""A peer that needs another interpreter (vLLM on a CPU has a virtual environment of its own), asked over pipes.

The program gets on its standard input one line, the job: {"model": FOLDER, "threads": N, "sampling": {"temperature": T,
"top_p": P}, "requests": [{"prompt_ids": [...], "max_tokens": N, "seed": N}, ...]}. End tokens are to be ignored. It loads the
model, then writes a line `BENCH {"setting": "..."}` to its standard output. For each further line (`run`) it does all requests
once and writes `BENCH {"seconds": S, "num_tokens": [...]}`, one figure a request, in their order. It ends when its input
does. Lines without `BENCH ` are passed over: libraries print there too. Loading is not counted.

Outside its turns the program and all that it starts are stopped (SIGSTOP): threads that wait for work by spinning would slow
whoever has the turn.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from speed.contest import BenchError, Made
from speed.workloads import TEMPERATURE, TOP_P, Workload

MARK = "BENCH "
PATIENCE = 10
"""Seconds that a program has to end when it is told to."""


def job(model: Path, workload: Workload, threads: int) -> dict[str, Any]:
    """What the program is given."""
    pairs = zip(workload.requests, workload.prompt_ids, strict=True)
    return {
        "model": str(model),
        "threads": threads,
        "sampling": {"temperature": TEMPERATURE, "top_p": TOP_P},
        "requests": [
            {"prompt_ids": ids, "max_tokens": request.sampling.max_tokens, "seed": request.seed} for request, ids in pairs
        ],
    }


class Worker:
    """See the module. Raises BenchError when the program ends or answers something else."""

    def __init__(self, name: str, command: tuple[str, ...], work: dict[str, Any]) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(work["threads"])}
        # Another interpreter must not find this one's packages.
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(  # noqa: S603 - the command is the caller's own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, process_group=0
        )
        self._owes_answer = True
        try:
            self._say(json.dumps(work))
            self.setting = str(self._answer()["setting"])
        except BaseException:
            self.close()
            raise
        self._stop()

    def run(self) -> Made:
        """See Contestant."""
        self._signal(signal.SIGCONT)
        self._owes_answer = True
        self._say("run")
        answer = self._answer()
        self._stop()
        return Made(float(answer["seconds"]), tuple(answer["num_tokens"]))

    def close(self) -> None:
        """See Contestant. A program in the middle of its turn (Ctrl-C) is not waited for."""
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            return
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        if self._owes_answer:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        self._process.wait()

    def _stop(self) -> None:
        """Its turn is over."""
        self._owes_answer = False
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        """To the program and what it started."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError as error:
            raise self._ended() from error

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line[len(MARK) :])
                return found
        raise self._ended()

    def _ended(self) -> BenchError:
        return BenchError(f"{self.name}: its program ended with exit code {self._process.wait()}; see what it wrote above")
