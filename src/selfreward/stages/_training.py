"""What the two training stages share: where a model starts, and what a record says about training."""

from collections import Counter
from pathlib import Path

from selfreward.artifacts import Artifact, Stage, read_json
from selfreward.config import Config
from selfreward.disk import need_space
from selfreward.engines.loading import resolve_model_path
from selfreward.errors import ModelError
from selfreward.reuse import PARTS
from selfreward.stages._roles import weights_of
from selfreward.storage import MODEL_FILES
from selfreward.training import TrainContext, TrainResult
from selfreward.types import Counts


def start_path(model: Artifact, config: Config) -> Path:
    """Folder of the weights that training starts from: M0 lies where the config says, others in their stage.

    Raises ModelError when M0 is gone or is no longer what the run recorded.
    """
    path = model.checkpoint
    if model.key == "m0":
        path = Path(resolve_model_path(config.model.path))
        if weights_of(str(path)) != read_json(model.path / "model.json")["weights"]:
            raise ModelError(
                f"the model in {str(path)!r} (model.path) changed since this run recorded it: put the old files back, or set "
                "another name to begin a run with the new ones"
            )
    return path


def need_room(stage: Stage, start: Path) -> None:
    """Raise StorageError when the run's disk has no room for another model of the start's size: better now than later."""
    size = sum(file.stat().st_size for pattern in MODEL_FILES for file in start.glob(pattern))
    need_space(stage.path, size, f"the model of stage {stage.key!r}")


def training_folder(stage: Stage, name: str) -> Path:
    """Where one of a stage's trainings keeps its state: among the parts, which outlive an interrupted attempt and go when
    the stage is finished."""
    return stage.path / PARTS / f"training-{stage.fingerprint}-{name}"


def context_of(stage: Stage, name: str) -> TrainContext:
    """The settings, seed and progress that the training `name` of a stage gets, and its folder."""
    return TrainContext(
        config=stage.config,
        seed=stage.seed("train"),
        progress=stage.training_progress,
        stop=stage.run.stop,
        keep=training_folder(stage, name),
        logger=stage.logger,
    )


def record_training(stage: Stage, result: TrainResult, num_in: int) -> Counts:
    """Store the loss curve and the dropped examples, note the figures, return the counts."""
    stage.write_json("history", list(result.history))
    stage.reject(result.dropped)
    stage.spent.earlier_seconds += result.earlier_seconds
    stage.spent.add_training(result.num_tokens, stage.training_progress.seconds + result.earlier_seconds)
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
