"""How fast the engine `hf` is beside what a user would pick instead: one table, each row measured in turns in one run.

    python bench/speed [--models demo,15M,90M] [--only judge,candidates,expected] [--peers own,generate,generate_batch]
                       [--share PART] [--repeats 3] [--threads 2] [--quick] [--results bench/results.json]
    python bench/speed --scaling
    python bench/speed --peers vllm --vllm-python OTHER/bin/python

Workloads and models: workloads.py, models.py. Peers, and how their best settings are found: peers.py. `unit` of the table is
what is counted a second, new tokens or candidates; `ratio` divides medians; `limit` is how much of what the machine could do at
best ours reaches (roofline.py). Expected scores are timed beside votes that peers, or ours itself (`own`), sample. Without
--peers: generate, generate_batch and own, fewer where they take long (DEFAULT_PEERS). --share takes that part of the candidates
and prompts (without it: all, but for what would take long, DEFAULT_SHARES; the rows are named for it: candidates/4), --quick
sizes that mean nothing. Rows are kept as they come in --results; without it in bench/results.json, unless --share or --quick is
given.
"""

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _results import Row, update

from speed.names import DEMO, MODELS, OWN, PEERS

if TYPE_CHECKING:
    from speed.workloads import Sizes

ONLY = ("judge", "candidates", "expected")
DEFAULT_SHARES = {
    ("15M", "candidates"): 0.25,
    ("15M", "expected"): 1 / 6,
    ("90M", "candidates"): 0.125,
    ("90M", "expected"): 0.1,
}
"""Of workloads that take long with these models. The judge workload is whole: its rows share more the more there are."""
DEFAULT_PEERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("demo", "expected"): (OWN, "generate"),
    ("15M", "expected"): (OWN, "generate"),
    ("90M", "judge"): ("generate",),
    ("90M", "candidates"): ("generate",),
    ("90M", "expected"): (OWN,),
}
"""Who plays where USUAL_PEERS would take long."""
USUAL_PEERS = ("generate", "generate_batch", OWN)
"""Who plays elsewhere."""
RESULTS = Path(__file__).parents[1] / "results.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _options(arguments)
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    from speed.contest import BenchError
    from speed.scaling import judge_many
    from speed.workloads import QUICK, Sizes

    try:
        if options.judge is not None:
            print(judge_many(options.folder, options.judge, QUICK if options.quick else Sizes()))
            return 0
        with tempfile.TemporaryDirectory(prefix="selfreward-bench-") as folder:
            (_scale if options.scaling else _compare)(options, Path(folder))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/speed", description="The engine's speed beside its peers'.")
    parser.add_argument(
        "--models", type=_Names(MODELS), help=f"some of {', '.join(MODELS)}; default: all but tiny, with --quick demo and tiny"
    )
    parser.add_argument("--only", type=_Names(ONLY), default=ONLY, help=f"some of {', '.join(ONLY)}")
    parser.add_argument(
        "--peers", type=_Names(PEERS), help=f"some of {', '.join(PEERS)}; default: all but vllm, fewer where they take long"
    )
    parser.add_argument("--vllm-python", help="the interpreter that has vLLM, for --peers vllm")
    parser.add_argument("--share", type=float, help="part of the candidates and prompts")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--batch-size", type=int, help="ours; default: engine.batch_size")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--scaling", action="store_true", help="time and memory from 1,000 to 20,000 candidates, first model")
    parser.add_argument("--results", type=Path, help="JSON file that keeps the rows")
    parser.add_argument("--judge", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.share is not None and not 0 < options.share <= 1:
        parser.error(f"--share {options.share} must be above 0 and at most 1")
    if options.models is None:
        options.models = (DEMO, "tiny") if options.quick else MODELS[:3]
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    if options.peers == (OWN,) and set(options.only) != {"expected"}:
        parser.error(
            f"--peers {OWN} needs --only expected, or another peer: only expected scores are timed beside our own votes"
        )
    if "vllm" in (options.peers or ()) and options.vllm_python is None:
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
        if len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(f"{text!r} names one of them twice")
        return names


def _keep(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    results = options.results or (None if options.quick or options.share is not None else RESULTS)
    if results is not None:
        update(results, rows)


def _sizes(options: argparse.Namespace, model: str, only: str) -> "Sizes":
    from speed.workloads import QUICK, Sizes

    if options.quick:
        return QUICK
    return Sizes().share(DEFAULT_SHARES.get((model, only), 1.0) if options.share is None else options.share)


def _peers(options: argparse.Namespace, model: str, only: str) -> tuple[str, ...]:
    chosen: tuple[str, ...] | None = options.peers
    return chosen or DEFAULT_PEERS.get((model, only), USUAL_PEERS)


def _compare(options: argparse.Namespace, folder: Path) -> None:
    """The table of ours beside the peers."""
    from selfreward.config import EngineConfig
    from speed import table
    from speed.matches import Match, Settings

    settings = Settings(
        repeats=options.repeats,
        threads=options.threads,
        batch_size=options.batch_size or EngineConfig().batch_size,
        quick=options.quick,
        vllm_python=options.vllm_python,
    )
    comparisons, machines = [], []
    for name in options.models:
        match = Match(name, folder, settings, _tell)
        for only in options.only:
            found = match.play(only, _sizes(options, name, only), _peers(options, name, only))
            _keep(options, [item.row() for item in found])
            comparisons += found
        machines += match.machines
        match.close()
    print(table.render(comparisons))
    print(f"\n{table.notes(comparisons)}\n")
    print("\n".join(textwrap.fill(line, table.WIDTH, subsequent_indent="  ") for line in machines))
    if options.quick:
        print("\n--quick shows that it works: these figures mean nothing")


def _scale(options: argparse.Namespace, folder: Path) -> None:
    """The table of sizes."""
    from speed import scaling
    from speed.models import write_model

    name = options.models[0]
    model = write_model(name, folder)
    numbers = scaling.QUICK_SIZES if options.quick else scaling.SIZES
    points = scaling.run(model, numbers, options.threads, options.quick, _tell)
    print(scaling.render(points))
    last = points[-1]
    _keep(
        options,
        [Row(f"judge {last.num_candidates:,} (candidates/s)", name, last.num_candidates / last.seconds, None, None, None)],
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
