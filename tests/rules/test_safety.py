"""What no line of the source may do: unpickle, run code of strings, trust a model folder by default, decide by wall time."""

import ast

import pytest
from source_tree import modules, place, tree

from selfreward.config import ModelConfig

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "_pickle"}
LOADERS = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("yaml", "load_all")}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
WALL_CLOCK = {
    ("selfreward.artifacts", "when a stage was begun, for people"),
    ("selfreward.environment", "the time of a line of the log"),
    ("selfreward.locking", "since when a process holds a run, for people"),
    ("selfreward.planning", "the name of a folder for superseded stages, and when drift was accepted, for people"),
    ("selfreward.engines._openai_answers", "a server may name the end of a wait by a date; longer waits than max_wait_s stop"),
}
"""The only modules that look at the time of day, and why."""


def nodes(kind):
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, kind):
                yield module, node


def called(node):
    """(`torch`, `load`) of `torch.load(...)`; ('', name) of a plain name."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", ""), node.func.attr)
    return ("", node.func.id) if isinstance(node.func, ast.Name) else ("", "")


def test_nothing_is_unpickled():
    wrong = []
    for module, node in nodes((ast.Import, ast.ImportFrom)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        wrong += [place(module, node.lineno) for name in names if name.split(".")[0] in UNPICKLERS]
    for module, node in nodes(ast.Call):
        loads = called(node) in LOADERS or called(node)[1] in ("read_pickle", "unpickle")
        allowed = any(word.arg == "allow_pickle" for word in node.keywords)
        if loads or allowed:
            wrong.append(place(module, node.lineno))
    assert not wrong, wrong


def test_no_text_is_run_as_code():
    assert not [place(module, node.lineno) for module, node in nodes(ast.Call) if called(node) in {("", b) for b in BUILT_IN}]


def test_processes_are_started_without_a_shell():
    wrong = [
        place(module, node.lineno)
        for module, node in nodes(ast.Call)
        if called(node)[1] in ("system", "popen") or any(word.arg == "shell" for word in node.keywords)
    ]
    assert not wrong, wrong


def test_code_in_a_model_folder_is_trusted_by_the_config_alone():
    assert ModelConfig().trust_remote_code is False
    values = [word.value for _, node in nodes(ast.Call) for word in node.keywords if word.arg == "trust_remote_code"]
    for _, node in nodes(ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        values += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "trust_remote_code"]
    assert {ast.unparse(value) for value in values} == {"config.model.trust_remote_code"}


def test_every_load_of_weights_wants_safetensors():
    loads = [(m, n) for m, n in nodes(ast.Call) if called(n)[1] == "from_pretrained" and "Model" in called(n)[0]]
    assert loads
    for module, node in loads:
        given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        assert given.get("use_safetensors") == "True", place(module, node.lineno)


@pytest.mark.parametrize(("owner", "name"), [("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")])
def test_only_these_modules_look_at_the_time_of_day(owner, name):
    allowed = {module for module, _ in WALL_CLOCK}
    wrong = [place(m, n.lineno) for m, n in nodes(ast.Call) if called(n) == (owner, name) and m not in allowed]
    assert not wrong, f"{wrong}: use time.perf_counter or time.monotonic, which no one can set back"
