"""Every module imports; every package carries its files."""

import importlib
import subprocess
import sys

import pytest
from source_tree import SRC, modules


@pytest.mark.parametrize("module", modules())
def test_module_imports(module):
    assert importlib.import_module(module).__name__ == module


def test_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "selfreward.cli", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in (SRC / "selfreward").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]
