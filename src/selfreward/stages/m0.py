"""The pretrained model that the run starts from: recorded by its content, not copied.

In: `model.path`. Out: model.json with its hash, so that the fingerprint of everything later depends on the weights and
not on where they lie, and with the template that is not its own: a file's hash, or that of the default one.
"""

import hashlib
from pathlib import Path

from selfreward.artifacts import Artifact, Run, Stage, hash_file
from selfreward.config import ModelConfig
from selfreward.engines.chatml import DEFAULT_TEMPLATE
from selfreward.engines.loading import OWN_TEMPLATE, has_chat_template, resolve_model_path
from selfreward.stages._roles import weights_of
from selfreward.types import Counts


def run(run: Run) -> Artifact:
    """Record M0. Raises ModelError when the folder cannot be used."""
    config = run.config.model
    path = resolve_model_path(config.path)
    sections = {
        "weights": weights_of(path, run.stop.check),
        "chat_template": _template_section(config, path),
    }

    def work(stage: Stage) -> Counts:
        stage.write_json("model", sections)
        stage.roles = {"base": path}
        stage.notes["chat_template"] = _template_name(config, path)
        if stage.notes["chat_template"] == "default":
            stage.logger.info("M0 has no chat template: it gets the default one", extra={"data": {"model": path}})
        return Counts(1, 1)

    return run.stage("m0", sections, {}, work)


def _template_name(config: ModelConfig, path: str) -> str:
    """`file`, `default` for a base model's, else `own`; a hub id not on this disk yet is taken to have one."""
    if config.chat_template not in (None, OWN_TEMPLATE):
        return "file"
    is_base = config.chat_template is None and Path(path).is_dir() and not has_chat_template(Path(path))
    return "default" if is_base else "own"


def _template_section(config: ModelConfig, path: str) -> str | None:
    name = _template_name(config, path)
    if name == "default":
        return hashlib.sha256(DEFAULT_TEMPLATE.encode("utf-8")).hexdigest()
    return hash_file(config.chat_template or "") if name == "file" else None
