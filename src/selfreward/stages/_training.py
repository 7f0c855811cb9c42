"""What the two training stages share: where a model starts, and what a record says about training."""

from collections import Counter
from pathlib import Path

from selfreward.artifacts import Artifact, Stage
from selfreward.config import Config
from selfreward.engines.loading import resolve_model_path
from selfreward.training import TrainContext, TrainResult
from selfreward.types import Counts


def start_path(model: Artifact, config: Config) -> Path:
    """Folder of the weights that training starts from: M0 lies where the config says, others in their stage."""
    return Path(resolve_model_path(config.model.path)) if model.key == "m0" else model.checkpoint


def context_of(stage: Stage) -> TrainContext:
    """The settings, seed and progress that training gets."""
    return TrainContext(config=stage.config, seed=stage.seed("train"), progress=stage.run.progress, stop=stage.run.stop)


def record_training(stage: Stage, result: TrainResult, num_in: int) -> Counts:
    """Store the loss curve and the dropped examples, note the figures, return the counts."""
    stage.write_json("history", list(result.history))
    stage.reject(result.dropped)
    stage.notes |= {
        "trained": True,
        "num_examples": result.num_examples,
        "num_steps": result.num_steps,
        "num_tokens": result.num_tokens,
        "first_loss": result.first_loss,
        "final_loss": result.final_loss,
        "chat": result.chat,
    }
    if result.chat.get("template") == "default":
        stage.logger.info("the start model has no chat template: the default one was added", extra={"data": result.chat})
    if result.chat.get("system_merged"):
        stage.logger.info("the chat template shows no system turn: merged into the user's", extra={"data": result.chat})
    return Counts(num_in, result.num_examples, Counter(drop.reason for drop in result.dropped))
