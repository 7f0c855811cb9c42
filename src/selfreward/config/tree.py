"""The root of the tree, whose sections must agree; see `rules`."""

from typing import Literal

from pydantic import Field, model_validator

from selfreward.config.endpoints import EndpointConfig, EndpointName
from selfreward.config.evals import EvalConfig
from selfreward.config.model import EngineConfig, ModelConfig
from selfreward.config.rounds import JudgeConfig, PairConfig, ProposeConfig, SampleConfig
from selfreward.config.rules import broken_rules
from selfreward.config.section import Section
from selfreward.config.seed import EftConfig, SeedConfig
from selfreward.config.training import CheckpointConfig, DpoConfig, ReplayConfig, SftConfig


class Config(Section):
    """One run: every setting of every stage."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder, `<run_dir>/<name>`."""
    run_dir: str = "runs"
    """Where runs are kept."""
    random_seed: int = Field(default=0, ge=0)
    """All randomness of the run derives from this number."""
    mode: Literal["self-rewarding", "no-eft"] = "self-rewarding"
    """`no-eft` trains M1 on IFT alone: the paper's ablation."""
    num_rounds: int = Field(default=2, ge=0, le=100_000)
    """DPO rounds; 2 gives M3."""
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    endpoints: dict[EndpointName, EndpointConfig] = Field(default_factory=dict)
    """Servers that roles may name by `endpoint:NAME`."""
    seed: SeedConfig = SeedConfig()
    eft: EftConfig = EftConfig()
    sft: SftConfig = SftConfig()
    propose: ProposeConfig = ProposeConfig()
    sample: SampleConfig = SampleConfig()
    judge: JudgeConfig = JudgeConfig()
    pair: PairConfig = PairConfig()
    replay: ReplayConfig = ReplayConfig()
    dpo: DpoConfig = DpoConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> "Config":
        if broken := broken_rules(self):
            raise ValueError("; ".join(map(str, broken)))
        return self
