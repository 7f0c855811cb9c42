"""The embedded micro-world: tasks, an exact oracle, seed data, and a tiny pretrained model (M0).

It exists so that the whole algorithm can be run and checked with no downloads. Only the seed source and one extra
evaluation know about it.
"""

from pathlib import Path

from selfreward.errors import ModelError


def model_dir() -> Path:
    """The folder of the embedded M0.

    Raises ModelError when the package was installed without it.
    """
    path = Path(__file__).parent / "m0"
    if not (path / "model.safetensors").is_file():
        raise ModelError(f"the embedded model is missing at {path}; make it with: selfreward lab pretrain --out {path}")
    return path
