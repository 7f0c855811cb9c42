"""Whether time grows linearly with the number of candidates, and memory not at all.

Each size runs in a process of its own, because a process never shows how much less memory it could have done with. It does
what the judge stage does: prompts are made and handed to the engine one chunk of requests at a time, replies are counted and
let go. Memory is the process's peak (VmHWM of Linux).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from selfreward.config import EngineConfig
from selfreward.engines.hf import HfEngine
from selfreward.types import Request, Sampling
from speed.contest import BenchError
from speed.models import load_model, load_tokenizer
from speed.workloads import FIRST_SEED, TEMPERATURE, TOP_P, Sizes, judge_prompts

SIZES = (1000, 2000, 5000, 10_000, 20_000)
QUICK_SIZES = (4, 8, 16)


@dataclass(frozen=True, slots=True)
class Point:
    """One process: what it judged, its time (loading left out), and its peak memory before and after."""

    num_candidates: int
    num_tokens: int
    seconds: float
    loaded_mb: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Line:
    """seconds = start + slope * candidates by least squares; `explained` is R squared."""

    start: float
    slope: float
    explained: float


def fit(points: Sequence[Point]) -> Line:
    """The straight line through at least three sizes."""
    sizes = np.array([point.num_candidates for point in points], dtype=float)
    seconds = np.array([point.seconds for point in points])
    slope, start = np.polyfit(sizes, seconds, 1)
    residual = seconds - (start + slope * sizes)
    return Line(float(start), float(slope), float(1 - residual.var() / seconds.var()))


def run(model: Path, sizes: Sequence[int], threads: int, quick: bool, tell: Callable[[str], None]) -> list[Point]:
    """A process for each size, smallest first. Raises BenchError when one fails."""
    points = []
    for number in sizes:
        command = [sys.executable, str(Path(__file__).parent), "--judge", str(number), "--folder", str(model)]
        command += ["--threads", str(threads), *(["--quick"] if quick else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - ourselves
        if done.returncode:
            raise BenchError(f"scaling: the process for {number:,} candidates ended with exit code {done.returncode}")
        points.append(Point(**json.loads(done.stdout.splitlines()[-1])))
        tell(f"scaling: {number:,} candidates in {points[-1].seconds:.1f} s, peak {points[-1].peak_mb:.0f} MB")
    return points


def judge_many(folder: Path, num_candidates: int, sizes: Sizes) -> str:
    """What one process does: one vote on each candidate; a Point as JSON. Raises BenchError for a reply that is missing."""
    tokenizer = load_tokenizer(folder)
    settings = EngineConfig()
    num_tokens = num_replies = 0
    with HfEngine(load_model(folder), tokenizer, settings.batch_size) as engine:
        loaded = _peak_mb()
        started = time.perf_counter()
        for first in range(0, num_candidates, settings.chunk_size):
            last = min(num_candidates, first + settings.chunk_size)
            sampling = Sampling(sizes.vote, TEMPERATURE, TOP_P, ignore_eos=True)
            prompts = judge_prompts(tokenizer, sizes, first, last)
            numbers = range(first, last)
            requests = [Request(str(n), prompt, sampling, FIRST_SEED + n) for n, prompt in zip(numbers, prompts, strict=True)]
            for reply in engine.generate(requests):
                num_tokens += reply.num_tokens or 0
                num_replies += 1
        seconds = time.perf_counter() - started
    if num_replies != num_candidates or num_tokens != num_candidates * sizes.vote:
        raise BenchError(f"scaling: {num_replies:,} replies of {num_tokens:,} tokens to {num_candidates:,} candidates")
    return json.dumps(asdict(Point(num_candidates, num_tokens, seconds, loaded, _peak_mb())))


def render(points: Sequence[Point]) -> str:
    """A table, and the line through it."""
    lines = [f"{'candidates':>10} {'new tokens':>11} {'seconds':>8} {'ms each':>8} {'loaded MB':>9} {'peak MB':>8}"]
    for point in points:
        each = 1000 * point.seconds / point.num_candidates
        lines.append(
            f"{point.num_candidates:10,} {point.num_tokens:11,} {point.seconds:8.1f} {each:8.2f} "
            f"{point.loaded_mb:9.0f} {point.peak_mb:8.0f}"
        )
    line = fit(points)
    smallest, largest = points[0], points[-1]
    lines.append(
        f"seconds = {line.start:.2f} + {1000 * line.slope:.3f}/1000 x candidates, R squared {line.explained:.5f}; "
        f"peak {largest.peak_mb / smallest.peak_mb:.2f}x from {smallest.num_candidates:,} to {largest.num_candidates:,}"
    )
    return "\n".join(lines)


def _peak_mb() -> float:
    """VmHWM, not what getrusage tells: that counts what a parent held while it started this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise BenchError("scaling: /proc/self/status tells no VmHWM; this benchmark needs Linux")
