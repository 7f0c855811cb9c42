"""Where everything of a run lies."""

import re
from pathlib import Path

from selfreward.errors import ConfigError, UsageError


class RunDir:
    """Every path of a run, in one place. Rounds count from 1; round t turns M_t into M_{t+1}."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.environment = self.root / "environment.json"
        self.log = self.root / "run.log"
        self.summary = self.root / "summary.json"
        self.report = self.root / "report.html"
        self.seed = self.root / "seed"
        self.m0 = self.root / "m0"
        self.sft = self.root / "sft"
        self.eft = self.root / "eft"
        self.m1 = self.root / "m1"

    def round(self, t: int) -> Path:
        """Folder of round t."""
        if t < 1:
            raise UsageError(f"rounds count from 1, got {t}")
        return self.root / f"round-{t}"

    def prompts(self, t: int) -> Path:
        """New prompts of round t."""
        return self.round(t) / "prompts"

    def samples(self, t: int) -> Path:
        """Candidate responses of round t."""
        return self.round(t) / "samples"

    def judgements(self, t: int) -> Path:
        """Judgements of round t."""
        return self.round(t) / "judgements"

    def pairs(self, t: int) -> Path:
        """Preference pairs of round t."""
        return self.round(t) / "pairs"

    def replay(self, t: int) -> Path:
        """Judgement pairs of round t, when `replay.num_items` is set."""
        return self.round(t) / "replay"

    def model(self, t: int) -> Path:
        """The model that round t trains: M_{t+1}."""
        return self.round(t) / "model"

    def model_stage(self, name: str) -> Path:
        """Stage folder that holds a model: `sft`, `m1`, or `m2`, `m3`, ... (made by rounds 1, 2, ...)."""
        if name in ("m0", "sft", "m1"):
            return self.root / name
        return self.model(self._round_of(name))

    def evals(self, name: str) -> Path:
        """Evaluations of a model: `sft/evals`, `m1/evals`, `round-1/evals` for m2, ..."""
        if name in ("m0", "sft", "m1"):
            return self.root / name / "evals"
        return self.round(self._round_of(name)) / "evals"

    @staticmethod
    def _round_of(name: str) -> int:
        match = re.fullmatch(r"m([1-9]\d*)", name)
        if match is None:
            raise UsageError(f"unknown model {name!r}; a run holds 'sft', 'm1', 'm2', ...")
        return int(match[1]) - 1


def check_is_run(directory: RunDir) -> None:
    """Refuse a folder with foreign files: opening it as a run would overwrite and clear them."""
    root = directory.root
    if not root.exists():
        return
    if not root.is_dir():
        raise ConfigError(f"{root} is a file, not a run folder; choose another name or run_dir")
    if any(root.iterdir()) and not directory.log.exists() and not any(root.rglob("record.json")):
        raise ConfigError(f"{root} holds files but no run (no {directory.log.name}); choose another name or run_dir")
