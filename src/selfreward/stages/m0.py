"""The pretrained model that the run starts from: recorded by its content, not copied.

In: `model.path`. Out: model.json with its hash, so that the fingerprint of everything later depends on the weights and
not on where they lie.
"""

from selfreward.artifacts import Artifact, Run, Stage, hash_file
from selfreward.engines.loading import resolve_model_path
from selfreward.stages._roles import weights_of
from selfreward.types import Counts


def run(run: Run) -> Artifact:
    """Record M0. Raises ModelError when the folder cannot be used."""
    config = run.config.model
    path = resolve_model_path(config.path)
    sections = {
        "weights": weights_of(path),
        "chat_template": hash_file(config.chat_template) if config.chat_template else None,
    }

    def work(stage: Stage) -> Counts:
        stage.write_json("model", sections)
        stage.roles = {"base": path}
        return Counts(1, 1)

    return run.stage("m0", sections, {}, work)
