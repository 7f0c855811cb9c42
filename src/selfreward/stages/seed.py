"""The human seed data (paper section 3.1): a source -> ift, eft_train, ranked_train, ranked_heldout, prompts_heldout.

In: files of the user, an Open Assistant export, or the micro-world. Out: five tables that share no prompt between
training and held-out data. Items that leave are counted: `heldout` (a training item whose prompt is held out),
`duplicate`, `over_limit` (beyond `seed.num_*`; the first ones of the file stay), and the source's own reasons.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from selfreward.artifacts import Artifact, Run, Stage, hash_file
from selfreward.config import SeedConfig
from selfreward.errors import DataError
from selfreward.filters import normalise
from selfreward.lab.seed_files import write_seed_files
from selfreward.stages._oasst import load_oasst
from selfreward.stages._sources import SEED_FILES, SeedData, load_files
from selfreward.types import Counts, Demonstration, Drop, EftExample, Prompt, RankedSet

Item = TypeVar("Item", Demonstration, EftExample, Prompt, RankedSet)


def run(run: Run) -> Artifact:
    """Load, clean and store the seed data. Raises DataError when a file is malformed or no IFT pair is left."""
    config = run.config.seed
    # Contents count, not where they lie.
    sections = {"seed": config.model_dump(mode="json", exclude={"path"}), "files": source_hashes(config)}
    return run.stage("seed", sections, {}, _work)


def source_hashes(config: SeedConfig) -> dict[str, str]:
    """Content hash of each file that the source reads; the micro-world writes its files first, to the same bytes."""
    if config.source == "lab":
        with tempfile.TemporaryDirectory(prefix="selfreward-") as folder:
            write_seed_files(Path(folder), config.heldout)
            return {name: hash_file(Path(folder) / name) for name in SEED_FILES if (Path(folder) / name).is_file()}
    path = Path(config.path or "").expanduser()
    files = [path] if config.source == "oasst" else [path / name for name in SEED_FILES]
    return {file.name: hash_file(file) for file in files if file.is_file()}


def clean(data: SeedData, config: SeedConfig) -> SeedData:
    """Drop training items whose prompt is held out, duplicates, and what exceeds the limits."""
    drops = list(data.drops)
    prompts_heldout = _distinct(data.prompts_heldout, lambda item: normalise(item.text), drops)
    ranked_heldout = _distinct(data.ranked_heldout, lambda item: normalise(item.prompt), drops)
    prompts_heldout = _limit(prompts_heldout, config.num_heldout_prompts, drops)
    ranked_heldout = _limit(ranked_heldout, config.num_heldout_ranked, drops)
    # Against everything that the source holds out, whether or not this run uses it.
    heldout = heldout_prompts(data)
    ift = _not_held_out(data.ift, lambda item: item.prompt, heldout, drops)
    eft = _not_held_out(data.eft_train, lambda item: item.instruction, heldout, drops)
    ranked = _not_held_out(data.ranked_train, lambda item: item.prompt, heldout, drops)
    ift = _distinct(ift, lambda item: (normalise(item.prompt), item.response), drops)
    eft = _distinct(eft, lambda item: (item.instruction, item.response, item.judgement), drops)
    ranked = _distinct(ranked, lambda item: (normalise(item.prompt), item.responses), drops)
    return replace(
        data,
        ift=tuple(_limit(ift, config.num_ift, drops)),
        eft_train=tuple(_limit(eft, config.num_eft, drops)),
        ranked_train=tuple(ranked),
        prompts_heldout=tuple(prompts_heldout),
        ranked_heldout=tuple(ranked_heldout),
        drops=tuple(drops),
    )


def heldout_prompts(data: SeedData) -> set[str]:
    """All held-out prompts, normalised."""
    return {normalise(item.text) for item in data.prompts_heldout} | {normalise(item.prompt) for item in data.ranked_heldout}


def _work(stage: Stage) -> Counts:
    loaded = SOURCES[stage.config.seed.source](stage)
    data = clean(loaded, stage.config.seed)
    if not data.ift:
        raise DataError(f"seed.source={stage.config.seed.source} leaves no IFT pair: {_by_reason(data.drops)}")
    training = {normalise(item.prompt) for item in data.ift} | {normalise(item.prompt) for item in data.ranked_train}
    training |= {normalise(item.instruction) for item in data.eft_train}
    heldout = heldout_prompts(data)
    assert not heldout & training, f"held-out prompts in the training data: {sorted(heldout & training)[:3]}"
    stage.write_rows("ift", data.ift, Demonstration)
    stage.write_rows("eft_train", data.eft_train, EftExample)
    stage.write_rows("ranked_train", data.ranked_train, RankedSet)
    stage.write_rows("ranked_heldout", data.ranked_heldout, RankedSet)
    stage.write_rows("prompts_heldout", data.prompts_heldout, Prompt)
    stage.reject(data.drops)
    stage.notes |= {
        "num_ift": len(data.ift),
        "num_eft_train": len(data.eft_train),
        "num_ranked_train": len(data.ranked_train),
        "num_ranked_heldout": len(data.ranked_heldout),
        "num_prompts_heldout": len(data.prompts_heldout),
        **data.notes,
    }
    return Counts(loaded.num_in, data.num_items, _by_reason(data.drops))


def _load_files(stage: Stage) -> SeedData:
    return load_files(Path(stage.config.seed.path or "").expanduser())


def _load_oasst(stage: Stage) -> SeedData:
    return load_oasst(Path(stage.config.seed.path or "").expanduser(), stage.config.seed)


def _load_lab(stage: Stage) -> SeedData:
    folder = stage.path / "source"
    write_seed_files(folder, stage.config.seed.heldout)
    return load_files(folder)


SOURCES: dict[str, Callable[[Stage], SeedData]] = {"files": _load_files, "oasst": _load_oasst, "lab": _load_lab}


def _distinct(items: Sequence[Item], key: Callable[[Item], Hashable], drops: list[Drop]) -> list[Item]:
    seen: set[Hashable] = set()
    kept = []
    for item in items:
        if key(item) in seen:
            drops.append(_drop(item, "duplicate"))
        else:
            seen.add(key(item))
            kept.append(item)
    return kept


def _not_held_out(items: Sequence[Item], prompt: Callable[[Item], str], heldout: set[str], drops: list[Drop]) -> list[Item]:
    kept = []
    for item in items:
        if normalise(prompt(item)) in heldout:
            drops.append(_drop(item, "heldout"))
        else:
            kept.append(item)
    return kept


def _limit(items: Sequence[Item], limit: int, drops: list[Drop]) -> list[Item]:
    drops.extend(_drop(item, "over_limit") for item in items[limit:])
    return list(items[:limit])


def _drop(item: Demonstration | EftExample | Prompt | RankedSet, reason: str) -> Drop:
    return Drop(item.id, reason, json.dumps(asdict(item), ensure_ascii=False))


def _by_reason(drops: Sequence[Drop]) -> dict[str, int]:
    return dict(Counter(drop.reason for drop in drops))
