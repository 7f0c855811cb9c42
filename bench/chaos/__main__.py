"""Kill a run at random moments, let it go on, and compare it with one that nobody disturbed.

    python bench/chaos [--seed 7] [--kills 50] [--jobs 1] [--kills-per-run 4] [--kinds model,samples] [SETTING ...]

The run is the demo at a small size: real processes, training, sampling and judging. Every kill is a SIGKILL to the whole
process group. What must be equal afterwards, and what is forgiven, is written in compare.py; how moments are drawn, in
moments.py. Right after a kill nothing half-written may count (`compare.half_written`).

The seed decides kinds of stages, events, delays and shares of the working time; how fast the machine is decides where a
share falls. Each kill prints a line; the last line is `N passed, N failed`, and the exit code 1 when any failed. The folder of
a run that failed is kept and named.
"""

import argparse
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from attempts import SETTINGS, ChaosError, Kill, Place, Reference, clear, disturbed, uninterrupted
from compare import differences
from moments import draw, group, kind_of

SHOWN = 6
"""Differences shown of a kill; the number of all is told."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the session; returns the exit code."""
    options = _options(arguments)
    seed = secrets.randbelow(10_000) if options.seed is None else options.seed
    print(f"seed {seed}, {options.kills} kills, {options.jobs} at a time", flush=True)
    base = options.keep or Path(tempfile.mkdtemp(prefix="selfreward-chaos-"))
    base.mkdir(parents=True, exist_ok=True)
    settings = (*SETTINGS, *options.settings)
    try:
        reference = _reference(base, settings, options.references)
    except ChaosError as error:
        print(f"the run fails without any kill: {error} (kept in {base})\n0 passed, {options.kills} failed")
        return 1
    rng = random.Random(seed)
    kinds = [kind for kind in options.kinds.split(",") if kind]
    moments = draw(rng, reference.timeline, options.kills, kinds)
    runs, number = [], 0
    for group_of_run in group(rng, moments, reference.timeline, options.kills_per_run):
        runs.append([Kill(number + place, moment) for place, moment in enumerate(group_of_run, 1)])
        number += len(group_of_run)
    started = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        works = [pool.submit(_one, base / f"run-{run[0].number}", settings, run, reference) for run in runs]
        try:
            for work in as_completed(works):
                print("\n".join(work.result()), flush=True)
        except BaseException:  # an interrupt too: the runs at work are waited for, the others are not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    kills = [kill for run in runs for kill in run]
    failed = sum(1 for kill in kills if kill.problems)
    hits = _hits(kills, kinds or [kind_of(stage) for stage in reference.timeline])
    print(f"{len(runs)} runs in {time.monotonic() - started:.0f} s; {hits}")
    if not failed and options.keep is None:
        shutil.rmtree(base)
    print(f"{len(kills) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/chaos", description="Kills a run at random moments and compares what comes of it."
    )
    parser.add_argument("--seed", type=int, help="decides the moments (default: drawn, and printed)")
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--kills-per-run", type=int, default=0, help="kills before a run may finish (default: 1 to 3, drawn)")
    parser.add_argument("--kinds", default="", help="only these kinds of stages, comma-separated: model,samples (default: all)")
    parser.add_argument(
        "--references", type=int, default=2, help="uninterrupted runs that are compared first (1: no comparison)"
    )
    parser.add_argument("--keep", type=Path, help="folder for the runs; kept (default: a temporary one)")
    parser.add_argument("settings", nargs="*", help="settings of the run: section.key=value ...")
    options = parser.parse_args(arguments)
    for name in ("kills", "jobs", "references"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def _reference(base: Path, settings: Sequence[str], number: int) -> Reference:
    """The first uninterrupted run; the others must equal it, or no comparison says anything."""
    places = [Place(base / f"reference-{count}", settings) for count in range(1, number + 1)]
    references = [uninterrupted(place) for place in places]
    first = references[0]
    for place, other in zip(places[1:], references[1:], strict=True):
        if found := differences(first.content, other.content) + ["what they print"] * (first.printed != other.printed):
            raise ChaosError(f"two uninterrupted runs differ: {'; '.join(found[:SHOWN])}")
        clear(place)
    spent = ", ".join(f"{key} {span.seconds:.1f} s" for key, span in first.timeline.items())
    times = " and ".join(f"{reference.seconds:.1f} s" for reference in references)
    print(f"uninterrupted: {times}, {len(first.content)} files equal; {spent}", flush=True)
    return first


def _one(folder: Path, settings: Sequence[str], kills: Sequence[Kill], reference: Reference) -> list[str]:
    """One disturbed run; returns the lines to print."""
    place = Place(folder, settings)
    disturbed(place, kills, reference)
    lines = []
    for kill in kills:
        result = (
            "ok" if not kill.problems else f"FAILED ({len(kill.problems)}): {'; '.join(kill.problems[:SHOWN])}; kept {folder}"
        )
        resumed = f"resumed {kill.seconds:.1f} s {kill.ended}" if kill.ended else "not resumed"
        lines.append(f"{kill.number:3d}  {kill.moment}; killed {kill.fell or 'never'}; {resumed}: {result}")
    if left := place.num_scratch():
        lines.append(f"     (left outside the run's folder: {left} temporary folders)")
    if not any(kill.problems for kill in kills):
        clear(place)
    return lines


def _hits(kills: Sequence[Kill], kinds: Sequence[str]) -> str:
    """How often each kind of stage was hit, and which of the wanted ones were not."""
    hit = Counter(kind_of(kill.stage) for kill in kills if kill.stage)
    missed = dict.fromkeys(kind for kind in kinds if not hit[kind])
    told = ", ".join(f"{kind} {number}" for kind, number in hit.most_common())
    return f"hit: {told or 'nothing'}" + (f"; not hit: {', '.join(missed)}" if missed else "")


if __name__ == "__main__":
    sys.exit(main())
