"""The layer table of the design: a module imports strictly lower layers, its own package, or an edge named here."""

import subprocess
import sys
from typing import get_args

import pytest
from source_tree import imports, modules, place, unit

from selfreward.config import EngineConfig
from selfreward.engines import ROLE_ENGINES

LAYERS = {
    "drift": 0, "errors": 0, "pace": 0, "redaction": 0, "texts": 0, "types": 0,
    "columns": 1, "config": 1, "disk": 1, "environment": 1, "intact": 1, "locking": 1, "parts": 1, "progress": 1, "reuse": 1,
    "rundir": 1, "spending": 1, "stopping": 1, "storage": 1,
    "artifacts": 2, "chat": 2, "filters": 2, "judging": 2, "planning": 2, "rubrics": 2, "signals": 2, "sources": 2,
    "statistics": 2,
    "engines": 3, "lab": 3, "training": 3,
    "evals": 4, "stages": 4,
    "pipeline": 5, "preflight": 5, "report": 5,
    "cli": 6, "estimating": 6, "eval_commands": 6, "eval_tools": 6, "experiments": 6, "judge_modes": 6, "judge_tool": 6,
    "running": 6,
}  # fmt: skip

SAME_LAYER = {
    ("environment", "locking"): "who opens a run's log locks it",
    ("reuse", "storage"): "it hashes files",
    ("planning", "artifacts"): "a plan is a run that works nothing",
    ("intact", "reuse"): "both read records",
    ("intact", "storage"): "it hashes files",
    ("parts", "storage"): "parts are rows",
    ("environment", "disk"): "a log that cannot be written says why",
    ("storage", "columns"): "what a row type looks like as columns",
    ("storage", "disk"): "a file that cannot be written says why",
    ("judging", "rubrics"): "judging fills rubrics and reads replies with their patterns",
    ("sources", "filters"): "both count words; filters says what a word is",
    ("training", "engines"): "both load a model folder and meet a full memory; engines does both",
    ("engines", "lab"): "model.path=lab names the embedded model's folder",
    ("cli", "estimating"): "a command runs it",
    ("cli", "eval_commands"): "a group of commands in a file of its own",
    ("cli", "experiments"): "a command runs it",
    ("cli", "judge_modes"): "a command runs it",
    ("cli", "judge_tool"): "a command runs it",
    ("cli", "running"): "a command runs it",
    ("eval_commands", "eval_tools"): "its commands run it",
    ("judge_modes", "experiments"): "one arithmetic over seeds",
}
"""Edges inside a layer that are allowed, with the reason."""

HEAVY = {"torch", "transformers", "trl", "peft", "vllm", "ray", "openai", "numba"}
"""Appear only in these units."""
HEAVY_UNITS = {"engines", "training", "lab"}

SHARED_WITH_STAGES = "_"
"""Modules of stages/ that start with this are helpers; the others are stages."""


def ours():
    """(importing module, imported module of ours, line)."""
    for module in modules():
        for item in imports(module):
            if item.target.startswith("selfreward"):
                yield module, item.target, item.line


def test_every_module_has_a_layer():
    units = {unit(module) for module in modules()} - {""}
    assert units == LAYERS.keys()


def test_imports_point_down():
    wrong = []
    for module, target, line in ours():
        here, there = unit(module), unit(target)
        if here == there or (here, there) in SAME_LAYER:
            continue
        if here == "" or there == "" or LAYERS[there] >= LAYERS[here]:
            wrong.append(f"{place(module, line)}: {here or 'selfreward'} imports {there or 'selfreward'}")
    assert not wrong, "\n".join(wrong)


def test_no_allowed_edge_is_left_over():
    used = {(unit(module), unit(target)) for module, target, _ in ours()}
    assert SAME_LAYER.keys() <= used


def test_no_stage_imports_a_stage():
    def is_stage(module):
        parts = module.split(".")
        return unit(module) == "stages" and len(parts) == 3 and not parts[2].startswith(SHARED_WITH_STAGES)

    wrong = [
        f"{place(module, line)} imports {target}"
        for module, target, line in ours()
        if unit(module) == "stages" and is_stage(target) and module != target
    ]
    assert not wrong, "\n".join(wrong)


def test_no_engine_imports_another():
    # Two tables: engines of the policy are named by `engine.name`; those that only play roles (an endpoint has no weights
    # to train) stand in ROLE_ENGINES. The rule is one: a module a name, and none knows another.
    names = {*get_args(EngineConfig.model_fields["name"].annotation), *ROLE_ENGINES}
    engines = {f"selfreward.engines.{name}" for name in names}
    assert engines <= modules().keys(), "engine names and their modules are the same"
    wrong = [f"{place(m, line)} imports {t}" for m, t, line in ours() if {m, t} <= engines and m != t]
    assert not wrong, "\n".join(wrong)


def test_report_sees_artifacts_only():
    wrong = [
        f"{place(module, line)} imports {target}"
        for module, target, line in ours()
        if unit(module) == "report" and unit(target) != "report" and LAYERS[unit(target)] > 2
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_stay_where_models_are():
    wrong = [
        f"{place(module, item.line)} imports {item.target}"
        for module in modules()
        if unit(module) not in HEAVY_UNITS
        for item in imports(module)
        if item.target in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_level_import_cycles():
    graph = {m: {i.target for i in imports(m) if i.at_import_time and i.target in modules()} - {m} for m in modules()}
    done: set[str] = set()

    def walk(module, path):
        if module in path:
            pytest.fail("import cycle: " + " -> ".join([*path[path.index(module) :], module]))
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in graph:
        walk(module, [])


def loaded_by(code):
    """Which of the heavy libraries a fresh interpreter has after running the code."""
    libraries = sorted(HEAVY | {"accelerate", "datasets", "pyarrow", "scipy"})
    code += f"; import sys; print(*[name for name in {libraries} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_command_line_starts_light():
    assert loaded_by("import selfreward.cli") == []


def test_a_check_needs_no_model_stack():
    assert not HEAVY.intersection(loaded_by("import selfreward.preflight"))


def test_the_report_renders_without_a_model_stack():
    names = ", ".join(module for module in modules() if unit(module) == "report")
    assert not HEAVY.intersection(loaded_by(f"import {names}"))
