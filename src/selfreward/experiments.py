"""The demo over several seeds, beside its controls: does the loop turn, and because of what?

Each seed runs the demo config once per variant. Stages that a variant does not change (seed data, SFT baseline, M1,
round 1 up to the change) are copied from the seed's main run, so that variants differ in what they vary and in
nothing else. A difference is M_last - M1; intervals are Student's t over seeds.
"""

import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from selfreward.artifacts import Artifact, Run, RunDir, read_json, to_plain, write_json
from selfreward.config import Config, load_config
from selfreward.errors import UsageError
from selfreward.evals.evaluate import evaluate
from selfreward.pipeline import run_pipeline
from selfreward.progress import RichProgress
from selfreward.report.html import write_report
from selfreward.report.summary import write_summary
from selfreward.stages import dpo
from selfreward.texts import counted
from selfreward.types import Estimate

MAIN = "self_rewarding"
METRICS = (
    "oracle_mean",
    "oracle_exact",
    "greedy_oracle_mean",
    "greedy_oracle_exact",
    "judge_pairwise",
    "judge_spearman",
    "mean_length",
    "distinct_2",
)


@dataclass(frozen=True)
class Variant:
    """One change to the demo config, and the stages that it leaves as they are."""

    overrides: tuple[str, ...]
    shared: tuple[str, ...]


_START = ("seed", "m0", "sft", "eft", "m1")
_ROUND_1 = ("round-1/prompts", "round-1/samples")
_ROUND_1_PAIRS = (*_ROUND_1, "round-1/judgements", "round-1/pairs")

VARIANTS: dict[str, Variant] = {
    MAIN: Variant((), ()),
    "plain_judge": Variant(("replay.num_items=0",), (*_START, *_ROUND_1_PAIRS)),
    "random_judge": Variant(("judge.model=scripted:random", "replay.num_items=0"), (*_START, *_ROUND_1)),
    "positives_only": Variant(("dpo.method=positives-only",), (*_START, *_ROUND_1_PAIRS, "round-1/replay")),
    "same_pairs": Variant(("dpo.method=positives-only",), ()),
    "no_nll": Variant(("dpo.nll_weight=0",), (*_START, *_ROUND_1_PAIRS, "round-1/replay")),
    "no_eft": Variant(("mode=no-eft", "replay.num_items=0"), ("seed", "m0", "sft")),
    "k1": Variant(("judge.num_votes=1",), (*_START, *_ROUND_1)),
    "rounds_6": Variant(("num_rounds=6",), (*_START, *_ROUND_1_PAIRS, "round-1/replay", "round-1/model", "round-1/evals")),
}
"""What is compared. `positives_only` makes pairs of its own from round 2 on; `same_pairs` trains on the chosen answers of the
main run's, each round from the main run's own model. `rounds_6` also shows four rounds (its M5)."""
SAME_PAIRS = "same_pairs"
DEFAULT_VARIANTS = (MAIN, "plain_judge", "random_judge", "positives_only", SAME_PAIRS)
CONTROLS = ("random_judge", "positives_only", SAME_PAIRS)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`1,2,3` -> (1, 2, 3). Raises UsageError."""
    try:
        seeds = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--seeds {text!r} must be whole numbers parted by commas") from error
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {text!r} must name at least one seed, none twice, none below 0")
    return seeds


def run_seeds(
    seeds: Sequence[int],
    out: Path,
    config_file: Path,
    overrides: Sequence[str],
    *,
    jobs: int = 1,
    variants: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run every seed and variant below `out`, finished stages reused; write and return `out/summary.json`.

    Raises UsageError for an unknown variant.
    """
    names = tuple(variants or DEFAULT_VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise UsageError(f"--variants: unknown variants {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    if jobs < 1:
        raise UsageError(f"--jobs {jobs} is below 1")
    names = (MAIN, *(name for name in names if name != MAIN))
    results: dict[str, dict[str, Any]] = {str(seed): {} for seed in seeds}
    # Spawned, not forked: torch's thread pools do not survive a fork.
    with (
        ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool,
        RichProgress().task("runs", len(seeds) * len(names)) as advance,
    ):
        setting = (out, config_file, tuple(overrides))
        waiting = {pool.submit(_run_variant, seed, MAIN, *setting): (seed, MAIN) for seed in seeds}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                seed, name = waiting.pop(future)
                results[str(seed)][name] = future.result()
                advance(1)
                if name == MAIN:  # the others copy stages from it
                    more = {pool.submit(_run_variant, seed, other, *setting): (seed, other) for other in names[1:]}
                    waiting |= more
    summary: dict[str, Any] = to_plain_tree(summarise(results, names))
    write_json(out / "summary.json", summary)
    return summary


def to_plain_tree(value: Any) -> Any:
    """Estimates and mappings as JSON would read them back."""
    return json.loads(json.dumps(value, default=to_plain))


def _end_with_parent() -> None:
    """Make this worker end when the command is killed: nothing else would stop a run in the middle of its hour."""
    parent = parent_process()
    assert parent is not None, "only for worker processes"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_variant(seed: int, name: str, out: Path, config_file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One variant of one seed, in this process, on one thread; returns its summary."""
    variant = VARIANTS[name]
    # The demo's short evaluation sets grow to the whole held-out sets; who gives overrides has the last word.
    settings = [
        "seed.num_heldout_prompts=1000",
        "seed.num_heldout_ranked=400",
        "engine.threads=1",
        *overrides,
        *variant.overrides,
        f"random_seed={seed}",
        f"name={name}",
        f"run_dir='{out / f'seed-{seed}'}'",
    ]
    config = load_config(config_file, settings)
    root = Path(config.run_dir) / config.name
    _copy_shared(root.parent / MAIN, root, variant.shared)
    if name == SAME_PAIRS:
        _train_on_same_pairs(config, root.parent / MAIN, root)
    else:
        with Run.open(config) as run:
            run_pipeline(run)
    summary: dict[str, Any] = write_summary(RunDir(root))
    write_report(RunDir(root), summary)
    print(f"seed {seed}: {name} done, {summary['seconds']:.0f} s of stages", file=sys.stderr, flush=True)
    return summary


def _train_on_same_pairs(config: Config, main: Path, root: Path) -> None:
    """In every round: SFT on the chosen answers of the main run's pairs, from the model that its DPO started from."""
    model_keys = [f"round-{t}/{step}" for t in range(1, config.num_rounds + 1) for step in ("model", "evals")]
    keys = [str(record.parent.relative_to(main)) for record in sorted(main.rglob("record.json"))]
    _copy_shared(main, root, [key for key in keys if key not in model_keys])

    def made(key: str) -> Artifact:
        return Artifact(key, main / key, read_json(main / key / "record.json")["fingerprint"])

    with Run.open(config) as run:
        for t in range(1, config.num_rounds + 1):
            start = "m1" if t == 1 else f"round-{t - 1}/model"
            replay = made(f"round-{t}/replay") if config.replay.num_items else None
            trained = dpo.run(run, t, made(start), made(f"round-{t}/pairs"), replay)
            earlier = "m1/evals" if t == 1 else f"round-{t - 1}/evals"
            evaluate(run, f"m{t + 1}", trained, made("seed"), made(earlier))


def _copy_shared(source: Path, target: Path, keys: Sequence[str]) -> None:
    """Copy finished stages that are missing in the target; their fingerprints are checked when the run reaches them."""
    for key in keys:
        if (source / key / "record.json").is_file() and not (target / key / "record.json").is_file():
            # The record goes last: without it the stage does not count as done.
            shutil.copytree(source / key, target / key, dirs_exist_ok=True, ignore=shutil.ignore_patterns("record.json"))
            for record in sorted((source / key).rglob("record.json"), key=lambda path: -len(path.parts)):
                shutil.copy(record, target / key / record.relative_to(source / key))


def summarise(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Seeds -> mean and interval of each metric's M_last - M1, a variant at a time, and DPO against positives-only."""
    variants = {
        name: {metric: over_seeds([_change(result[name], metric) for result in results.values()]) for metric in METRICS}
        for name in names
    }
    against = {
        name: {
            metric: over_seeds(
                [_minus(_last(result[MAIN], metric), _last(result[name], metric)) for result in results.values()]
            )
            for metric in METRICS
        }
        for name in names
        if name != MAIN
    }
    return {
        "seeds": {seed: dict(result) for seed, result in results.items()},
        "differences": variants[MAIN],
        "controls": {name: variants[name] for name in CONTROLS if name in variants},
        "variants": variants,
        "main_minus_variant": against,
    }


def over_seeds(values: Sequence[float | None]) -> Estimate:
    """Mean of one value a seed with Student's t interval; missing values are left out and lower n."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Estimate(known[0] if known else None, None, None, len(known))
    mean = float(np.mean(known))
    half = float(stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / np.sqrt(len(known)))
    return Estimate(mean, mean - half, mean + half, len(known))


def _value(summary: Mapping[str, Any], model: str, metric: str) -> float | None:
    for row in summary["models"]:
        if row["model"] == model and row.get(metric) is not None:
            value: float | None = row[metric]["value"]
            return value
    return None


def _last(summary: Mapping[str, Any], metric: str) -> float | None:
    return _value(summary, summary["models"][-1]["model"], metric)


def _change(summary: Mapping[str, Any], metric: str) -> float | None:
    return _minus(_last(summary, metric), _value(summary, "M1", metric))


def _minus(new: float | None, old: float | None) -> float | None:
    return None if new is None or old is None else new - old


def seeds_table(summary: Mapping[str, Any], width: int) -> str:
    """What `make seeds` prints: each model's mean over seeds, then M_last - M1 with its interval and each seed."""
    console = Console(width=width, record=True, file=io.StringIO())
    for name in summary["variants"]:
        console.print(_levels_table(summary, name))
    changes = Table(title="M_last - M1: mean over seeds [95 % interval], then each seed", title_justify="left")
    for heading in ("variant", "metric", "mean", "interval", "seeds"):
        changes.add_column(heading)
    for name, metrics in summary["variants"].items():
        for metric in METRICS:
            estimate = _as_estimate(metrics[metric])
            each = [_change(result[name], metric) for result in summary["seeds"].values()]
            changes.add_row(name, metric, _number(estimate.value), _interval(estimate), " ".join(map(_number, each)))
        changes.add_section()
    console.print(changes)
    console.print(_against_table(summary))
    return console.export_text()


def _against_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="main run minus variant, last models", title_justify="left")
    for heading in ("variant", "metric", "mean", "interval"):
        table.add_column(heading)
    for name, metrics in summary["main_minus_variant"].items():
        for metric in ("oracle_mean", "greedy_oracle_mean", "judge_pairwise"):
            estimate = _as_estimate(metrics[metric])
            table.add_row(name, metric, _number(estimate.value), _interval(estimate))
        table.add_section()
    return table


def _levels_table(summary: Mapping[str, Any], name: str) -> Table:
    table = Table(title=f"{name}: mean over {counted(len(summary['seeds']), 'seed')}", title_justify="left")
    for heading in ("model", "oracle", "exact", "greedy", "pairwise", "Spearman", "length"):
        table.add_column(heading)
    results = [result[name] for result in summary["seeds"].values()]
    metrics = ("oracle_mean", "oracle_exact", "greedy_oracle_mean", "judge_pairwise", "judge_spearman", "mean_length")
    for row in results[0]["models"]:
        model = row["model"]
        means = [over_seeds([_value(result, model, metric) for result in results]).value for metric in metrics]
        table.add_row(model, *map(_number, means))
    return table


def _as_estimate(value: Any) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(**value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "-" if estimate.low is None else f"[{_number(estimate.low)}, {_number(estimate.high)}]"
