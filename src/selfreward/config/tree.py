"""The root of the tree, and what its sections must agree on."""

from typing import Literal

from pydantic import Field, model_validator

from selfreward.config.endpoints import EndpointConfig, EndpointName, check_players
from selfreward.config.evals import EvalConfig
from selfreward.config.model import EngineConfig, ModelConfig
from selfreward.config.rounds import JudgeConfig, PairConfig, ProposeConfig, SampleConfig
from selfreward.config.section import Section
from selfreward.config.seed import EftConfig, SeedConfig
from selfreward.config.training import DpoConfig, ReplayConfig, SftConfig


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
    num_rounds: int = Field(default=2, ge=0)
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
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> "Config":
        roles = {"judge.model": self.judge.model, "propose.model": self.propose.model}
        roles |= {f"judge.panel[{place}].model": seat.model for place, seat in enumerate(self.judge.panel) if seat.model}
        check_players(self.endpoints, self.model.path, roles)
        formats = [source.format for source in self.seed.sources]
        if self.eval.oracle and "lab" not in formats:
            raise ValueError(f"eval.oracle needs a seed source of format lab, got {', '.join(formats)}; set eval.oracle=false")
        if self.engine.name == "scripted" and not self.engine.script:
            raise ValueError("engine.name=scripted needs engine.script")
        if self.judge.min_votes > self.eval.num_votes:
            raise ValueError(
                f"eval.num_votes={self.eval.num_votes} is below judge.min_votes={self.judge.min_votes}: no held-out response "
                "could get a score; raise eval.num_votes or lower judge.min_votes"
            )
        if self.mode == "no-eft" and self.replay.num_items:
            raise ValueError("replay.num_items needs EFT data, but mode=no-eft has none; set replay.num_items=0")
        return self
