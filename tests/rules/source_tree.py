"""The source as the rule tests see it: modules, what they import, which attributes they read."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGE = "selfreward"


@dataclass(frozen=True)
class Import:
    """One import statement's target: `selfreward.x.y` for ours (the module, not the name in it), else the package's name."""

    target: str
    line: int
    at_import_time: bool
    """Not inside a function, not under `if TYPE_CHECKING`."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by dotted name; packages by their own name."""
    found = {}
    for path in sorted((SRC / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def unit(module: str) -> str:
    """The layer table's unit: the package or file directly under selfreward ('' for the package itself)."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str) -> tuple[Import, ...]:
    """All imports of a module, wherever they stand, literal `import_module(...)` calls included."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import_time: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = at_import_time and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                inner = False
            found.extend(Import(target, child.lineno, inner) for target in _targets(module, child))
            visit(child, inner)

    visit(tree(module), True)
    return tuple(found)


def _targets(module: str, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [_resolve(alias.name) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = modules()[module].name == "__init__.py"
            parts = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
            base = ".".join([*parts, *([node.module] if node.module else [])])
        # `from selfreward.stages import dpo` imports a module, `from selfreward.types import Vote` a name in one.
        names = [f"{base}.{alias.name}" for alias in node.names]
        return [_resolve(name if name in modules() else base) for name in names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [_resolve(node.args[0].value)]
    return []


def _resolve(name: str) -> str:
    """Ours: the longest prefix that is a module. Others: the top-level package."""
    if name.split(".")[0] != PACKAGE:
        return name.split(".")[0]
    parts = name.split(".")
    while ".".join(parts) not in modules():
        assert len(parts) > 1, f"unknown module {name}"
        parts.pop()
    return ".".join(parts)


def place(module: str, line: int) -> str:
    """`src/selfreward/x.py:12`, for messages."""
    return f"{modules()[module].relative_to(ROOT)}:{line}"
