"""The lab's oracle measures and labels seed data; it never feeds training (rule 6 of the method)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "selfreward"
MAY_IMPORT_LAB = {"stages/seed.py", "evals/generations.py", "evals/oracle.py", "engines/loading.py", "cli.py"}
MAY_IMPORT_ORACLE = {"evals/generations.py", "evals/oracle.py"}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_only_named_modules_know_the_lab() -> None:
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        found = {module for module in imports(path) if module.startswith("selfreward.lab")}
        if name.startswith("lab/"):
            continue
        assert not found or name in MAY_IMPORT_LAB, f"{name} imports {found}"
        if any("oracle" in module for module in found):
            assert name in MAY_IMPORT_ORACLE, f"{name} imports the oracle"


def test_the_named_modules_exist() -> None:
    for name in MAY_IMPORT_LAB:
        assert "selfreward.lab" in "".join(sorted(imports(SOURCE / name))), f"{name} no longer imports the lab"
