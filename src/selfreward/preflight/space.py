"""How much disk a run will write, and whether it is there."""

import os
from dataclasses import dataclass
from pathlib import Path

from selfreward.config import Config
from selfreward.disk import check_writable, refusal_of
from selfreward.errors import ConfigError, SelfRewardError
from selfreward.rundir import RunDir
from selfreward.texts import counted, one_line

WEIGHT_BYTES = 4
"""Training keeps and saves float32 weights."""
TRAINING_BYTES = 12
"""A weight in the state from which a stopped training goes on: itself and AdamW's two moments. It is there twice while a new
one takes the old one's place."""
TOKEN_BYTES = 8
"""A token of a reply: its text, the part that is committed first, the request's ids. Compression is left out of account."""
_REPLIES = 3
"""Replies of a held-out ranked set, about (the paper: 2.85)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is still to be written. `num_models` weigh `model_bytes` each."""

    num_models: int
    model_bytes: int
    state_bytes: int
    table_bytes: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.num_models * self.model_bytes + self.state_bytes + self.table_bytes


def plan_writes(config: Config, num_parameters: int) -> Plan:
    """What a run of this config writes with a model of this size; finished stages are not counted again."""
    run = RunDir(Path(config.run_dir) / config.name)
    rounds = range(1, config.num_rounds + 1)
    # A folder for each round of a mistyped num_rounds is not looked at: what is not there yet is counted by one step.
    there = [t for t in rounds[: _last_round(run)] if _is_done(run.model(t))]
    num_models = sum(not _is_done(folder) for folder in (run.sft, run.m1)) + len(rounds) - len(there)
    each_round, each_model, once = _table_tokens(config)
    tables = TOKEN_BYTES * (each_round * (len(rounds) - len(there)) + each_model * num_models + once * (not _is_done(run.eft)))
    size = WEIGHT_BYTES * num_parameters
    extra = size * bool(config.replay.num_items and config.replay.method == "sft")  # the model between DPO and replay
    state = (2 * TRAINING_BYTES * num_parameters + extra) * bool(num_models)
    return Plan(num_models, size, state, tables)


def space_problem(config: Config, plan: Plan, free: int) -> ConfigError | None:
    """What to say when `free` bytes do not hold the plan."""
    if plan.total <= free:
        return None
    return ConfigError(
        f"run_dir={config.run_dir!r}: the run still writes about {in_bytes(plan.total)}, but {in_bytes(free)} is free: "
        f"{counted(plan.num_models, 'model')} of {in_bytes(plan.model_bytes)} (num_rounds={config.num_rounds}), "
        f"{in_bytes(plan.state_bytes)} while training, {in_bytes(plan.table_bytes)} of tables (propose.num_prompts="
        f"{config.propose.num_prompts}, sample.num_candidates={config.sample.num_candidates}); make room, set another run_dir, "
        "or lower these"
    )


def check_place(config: Config) -> Path:
    """The nearest folder that exists and will hold the run. Raises ConfigError where nothing can be written there."""
    root = Path(config.run_dir) / config.name
    try:
        return _place(config, root)
    except OSError as error:  # looking fails for a path that is too long, or below a folder that lets nobody in
        if isinstance(error, SelfRewardError):
            raise
        raise ConfigError(f"run_dir={config.run_dir!r}: {refusal_of(error, root) or one_line(error)}") from error


def _place(config: Config, root: Path) -> Path:
    for folder in (root, *root.absolute().parents):
        if folder.is_dir():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"run_dir={config.run_dir!r}: nothing can be written into {str(folder)!r}; set another run_dir"
                )
            check_writable(root)  # permission bits say nothing of a disk mounted read-only, nor to an administrator
            return folder
        if folder.exists() or folder.is_symlink():
            raise ConfigError(f"run_dir={config.run_dir!r}: {str(folder)!r} is no folder; set another run_dir or name")
    raise ConfigError(f"run_dir={config.run_dir!r} lies in no folder that exists; set another run_dir")


def in_bytes(number: int) -> str:
    """`1.4 GB`, in powers of ten as disks are sold."""
    size = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _table_tokens(config: Config) -> tuple[int, int, int]:
    """Most tokens that land in tables: in each round, with each model, once."""
    propose, sample, judge = config.propose, config.sample, config.judge
    asked = propose.max_attempts if propose.source == "self-instruct" else propose.num_prompts
    votes = sum(seat.num_votes for seat in judge.members)
    replies = propose.num_prompts * sample.num_candidates
    each_round = asked * propose.max_tokens + replies * (sample.max_tokens + votes * judge.max_tokens)
    ranked = config.seed.num_heldout_ranked * _REPLIES * config.eval.num_votes * judge.max_tokens
    each_model = config.seed.num_heldout_prompts * sample.max_tokens + ranked
    once = config.seed.num_eft * config.eft.samples * judge.max_tokens * (config.mode == "self-rewarding")
    return each_round, each_model, once


def _last_round(run: RunDir) -> int:
    """How many rounds have a folder."""
    return sum(path.is_dir() for path in run.root.glob("round-*"))


def _is_done(folder: Path) -> bool:
    return (folder / "record.json").is_file()
