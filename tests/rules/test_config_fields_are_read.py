"""Every config field is read by some code: no knob without a wire.

A field counts as read where a module loads an attribute of its name and also names the field's section: loads the
section's attribute (`config.judge`) or mentions its class (`JudgeConfig`, or a class that it inherits from).
"""

import ast
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel
from source_tree import modules, tree, unit

from selfreward.config import Config, Section


def fields():
    """(dotted name, section's attribute or None, the section's class names, field's name)."""
    for name, field in Config.model_fields.items():
        section = field.annotation
        if get_origin(section) is dict:  # sections by a name of the user's: endpoints
            section = get_args(section)[1]
        if isinstance(section, type) and issubclass(section, BaseModel):
            classes = frozenset(c.__name__ for c in section.__mro__ if issubclass(c, Section) and c is not Section)
            for inner, inner_field in section.model_fields.items():
                yield f"{name}.{inner}", name, classes, inner
                part = inner_field.annotation
                if isinstance(part, type) and issubclass(part, Section):  # A section in a section: engine.vllm
                    yield from ((f"{name}.{inner}.{key}", inner, frozenset({part.__name__}), key) for key in part.model_fields)
                for item in get_args(inner_field.annotation):
                    if isinstance(item, type) and issubclass(item, Section):  # A tuple of sections: read by their class.
                        yield from (
                            (f"{name}.{inner}.{key}", inner, frozenset({item.__name__}), key) for key in item.model_fields
                        )
        else:
            yield name, None, frozenset(), name


def loads():
    """Per module: (attributes that it loads, names that it mentions)."""
    for module in modules():
        if unit(module) == "config":
            continue
        nodes = list(ast.walk(tree(module)))
        attributes = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
        names = {n.id for n in nodes if isinstance(n, ast.Name)}
        yield attributes, names | {alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}


LOADS = list(loads())


@pytest.mark.parametrize("field", [pytest.param(field, id=field[0]) for field in fields()])
def test_field_is_read(field):
    dotted, section, classes, name = field
    for attributes, names in LOADS:
        if name in attributes and (section is None or section in attributes or classes & names):
            return
    pytest.fail(f"no code reads {dotted}")
