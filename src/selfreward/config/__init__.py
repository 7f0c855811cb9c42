"""The whole configuration tree: YAML file + `a.b=c` overrides -> one frozen, validated `Config`.

Every field has a docstring, a default that is safe on a laptop, and is read by some code (a test checks).
Values that the paper fixes are in `configs/paper.yaml`, each with its section. `tree` holds the root; each branch has a file.
"""

from selfreward.config.endpoints import ENDPOINT_PREFIX, MAX_STOPS, EndpointConfig, endpoint_name
from selfreward.config.evals import EvalConfig
from selfreward.config.load import default_config, load_config, parse_config
from selfreward.config.model import EngineConfig, ModelConfig, VllmConfig
from selfreward.config.players import FIRST, POLICY, SCRIPTED_PREFIX
from selfreward.config.rounds import JudgeConfig, PairConfig, PanelMember, ProposeConfig, SampleConfig
from selfreward.config.section import Section
from selfreward.config.seed import EftConfig, SeedConfig, SourceConfig
from selfreward.config.training import CheckpointConfig, DpoConfig, OptimConfig, ReplayConfig, SftConfig
from selfreward.config.tree import Config

__all__ = [
    "ENDPOINT_PREFIX",
    "FIRST",
    "MAX_STOPS",
    "POLICY",
    "SCRIPTED_PREFIX",
    "CheckpointConfig",
    "Config",
    "DpoConfig",
    "EftConfig",
    "EndpointConfig",
    "EngineConfig",
    "EvalConfig",
    "JudgeConfig",
    "ModelConfig",
    "OptimConfig",
    "PairConfig",
    "PanelMember",
    "ProposeConfig",
    "ReplayConfig",
    "SampleConfig",
    "Section",
    "SeedConfig",
    "SftConfig",
    "SourceConfig",
    "VllmConfig",
    "default_config",
    "endpoint_name",
    "load_config",
    "parse_config",
]
