"""pyproject.toml: what the code imports is a dependency, and the presets travel with the wheel."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from source_tree import ROOT, imports, modules, place

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


EXTRAS = PROJECT["project"]["optional-dependencies"]

PARTS_OF = {"markupsafe": "jinja2"}
"""Packages that come with a dependency and are one thing with it."""


def distribution(requirement):
    return re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")


def test_every_import_is_a_dependency():
    """What an extra brings may be missing, so it is imported inside functions only: every module imports without it."""
    declared = {distribution(item) for item in PROJECT["project"]["dependencies"]}
    extras = {distribution(item) for name, items in EXTRAS.items() if name != "dev" for item in items}
    known = packages_distributions()
    wrong = []
    for module in modules():
        for item in imports(module):
            if item.target.split(".")[0] in {"selfreward", *sys.stdlib_module_names}:
                continue
            target = PARTS_OF.get(item.target, item.target)
            allowed = declared if item.at_import_time else declared | extras
            if not allowed & {distribution(name) for name in known.get(target, [target])}:
                wrong.append(f"{place(module, item.line)} imports {item.target}")
    assert not wrong, "\n".join(wrong)


def test_presets_are_in_the_wheel():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"configs": "selfreward/presets"}, "cli.preset() looks there"
    assert (ROOT / "configs" / "demo.yaml").is_file()
