"""How fast the engine `hf` is beside what a user would pick instead: one table, each row measured in turns in one run.

    python bench/speed [--models demo,15M,90M] [--only judge,candidates,expected] [--peers generate,generate_batch]
                       [--share 1.0] [--repeats 3] [--threads 2] [--quick] [--results bench/results.json]
    python bench/speed --scaling
    python bench/speed --peers vllm --vllm-python OTHER/bin/python

Workloads and models: workloads.py, models.py. Peers, and how their best settings are found: peers.py. `unit` of the table is
what is counted a second, new tokens or candidates; `ratio` divides medians; `limit` is how much of what the machine could do
at best ours reaches (roofline.py). --share takes that part of the candidates and prompts, --quick sizes that mean nothing.
Results are kept in --results; without it only in full runs, in bench/results.json.
"""

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from _results import Row, update

from speed.workloads import QUICK, Sizes

ONLY = ("judge", "candidates", "expected")
PEERS = ("generate", "generate_batch", "vllm")
RESULTS = Path(__file__).parents[1] / "results.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _options(arguments)
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes = QUICK if options.quick else Sizes().share(options.share)
    from speed.contest import BenchError
    from speed.scaling import judge_many

    try:
        if options.judge is not None:
            print(judge_many(options.folder, options.judge, sizes))
            return 0
        with tempfile.TemporaryDirectory(prefix="selfreward-bench-") as folder:
            rows = _scale(options, Path(folder)) if options.scaling else _compare(options, sizes, Path(folder))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = options.results or (None if options.quick or options.share != 1 else RESULTS)
    if results is not None:
        update(results, rows)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    from speed.models import DEMO, MODELS

    parser = argparse.ArgumentParser(prog="bench/speed", description="The engine's speed beside its peers'.")
    parser.add_argument("--models", type=_Names(MODELS), default=(DEMO, "15M", "90M"), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--only", type=_Names(ONLY), default=ONLY, help=f"some of {', '.join(ONLY)}")
    parser.add_argument("--peers", type=_Names(PEERS), default=PEERS[:2], help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--vllm-python", help="the interpreter that has vLLM, for --peers vllm")
    parser.add_argument("--share", type=float, default=1.0, help="part of the candidates and prompts")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--batch-size", type=int, help="ours; default: engine.batch_size")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--scaling", action="store_true", help="time and memory from 1,000 to 20,000 candidates, first model")
    parser.add_argument("--results", type=Path, help="JSON file that keeps the rows")
    parser.add_argument("--judge", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        parser.error(f"--share {options.share} must be above 0 and at most 1")
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    if "vllm" in options.peers and options.vllm_python is None:
        parser.error("--peers vllm needs --vllm-python")
    return options


class _Names:
    """Reads `a,b` and refuses other names."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def __call__(self, text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        wrong = [name for name in names if name not in self._allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(self._allowed)}")
        return names


def _compare(options: argparse.Namespace, sizes: Sizes, folder: Path) -> list[Row]:
    """The table of ours beside the peers."""
    from selfreward.config import EngineConfig
    from speed import table
    from speed.matches import Match, Settings

    settings = Settings(
        peers=options.peers,
        repeats=options.repeats,
        threads=options.threads,
        batch_size=options.batch_size or EngineConfig().batch_size,
        quick=options.quick,
        vllm_python=options.vllm_python,
    )
    comparisons, machines = [], []
    for name in options.models:
        match = Match(name, folder, sizes, settings, _tell)
        for only in options.only:
            comparisons += match.play(only)
        machines += match.machines
        match.close()
    print(table.render(comparisons))
    print(f"\n{table.notes(comparisons)}\n")
    print("\n".join(textwrap.fill(line, table.WIDTH, subsequent_indent="  ") for line in machines))
    return [item.row() for item in comparisons]


def _scale(options: argparse.Namespace, folder: Path) -> list[Row]:
    """The table of sizes."""
    from speed import scaling
    from speed.models import write_model

    name = options.models[0]
    model = write_model(name, folder)
    numbers = scaling.QUICK_SIZES if options.quick else scaling.SIZES
    points = scaling.run(model, numbers, options.threads, options.quick, _tell)
    print(scaling.render(points))
    last = points[-1]
    return [Row(f"judge {last.num_candidates:,} (candidates/s)", name, last.num_candidates / last.seconds, None, None, None)]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
