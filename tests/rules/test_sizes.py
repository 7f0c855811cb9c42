"""Files of at most 400 lines, functions of at most 60, six parameters: small enough to read in one go."""

import ast
from pathlib import Path

import pytest
from source_tree import ROOT

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_PIPELINE = 400, 60, 6, 100
FILES = sorted(path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py"))


def label(path):
    return path.relative_to(ROOT).as_posix()


def functions(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_command(node):
    """A command's parameters are the options that people give it: no code calls it."""
    calls = [item.func for item in node.decorator_list if isinstance(item, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr == "command" for call in calls)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_sizes(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{label(path)} has {lines} lines"
    for node in functions(path):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        assert length <= MAX_FUNCTION, f"{label(path)}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", [path for path in FILES if (ROOT / "src") in path.parents], ids=label)
def test_parameters(path):
    for node in functions(path):
        if is_command(node):
            continue
        parameters = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        own = [name for name in parameters if name not in ("self", "cls")]
        assert len(own) <= MAX_PARAMETERS, f"{label(path)}:{node.lineno} {node.name} takes {len(own)} parameters"


def test_the_algorithm_fits_on_two_screens():
    lines = (ROOT / "src/selfreward/pipeline.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < MAX_PIPELINE
