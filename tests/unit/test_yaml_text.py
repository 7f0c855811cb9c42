"""config/yaml_text.py and overrides.py: what a text means, where its settings stand, and what is laid over it."""

from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward.config.overrides import apply, parse_override
from selfreward.config.rules import RULES
from selfreward.config.secrets import names_secret, secret_in
from selfreward.config.tree import Config
from selfreward.config.yaml_text import parse_yaml
from selfreward.errors import ConfigError

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | TEXTS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, TREES, max_size=5))
def test_what_is_written_as_yaml_is_read_again(tree: dict[str, Any]) -> None:
    assert parse_yaml(yaml.safe_dump(tree, allow_unicode=True, default_style='"')).value == tree


def problem_of(text: str) -> str:
    """Why a text cannot be read; '' for one that can."""
    try:
        parse_yaml(text)
    except ConfigError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert "\n" not in problem_of(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("y", "y"), ("true", True), ("False", False), ("~", None), ("null", None),
        ("", None), ("1e-4", 1e-4), ("1.5E+3", 1500.0), (".5", 0.5), ("-2", -2), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"), ("0x1F", "0x1F"), ("0o10", "0o10"), ("'010'", "010"), ("0", 0), ("0.5", 0.5), ("<<", "<<"),
        (".inf", float("inf")), ("nan", "nan"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_values_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    read = parse_yaml(f"[{text}]").value[0] if text else parse_yaml("a: ").value["a"]
    assert (read, type(read)) == (value, type(value))


def test_every_setting_has_its_line() -> None:
    parsed = parse_yaml("a: 1\nb:\n  c: 2\n  d:\n    - x\n    - {e: 3}\n")
    places = {(): None, ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", 1): 6, ("b", "d", 1, "e"): 6}
    assert {path: parsed.line_of(path) for path in places} == places
    assert parsed.line_of(("b", "zzz", "deeper")) == 2, "the nearest that is there"


def test_what_is_merged_in_keeps_its_line_and_gives_way() -> None:
    parsed = parse_yaml("base: &b {x: 1, y: {z: 2}}\nfar: &f {x: 3, w: 4}\nown:\n  <<: [*b, *f]\n  x: 5\n")
    assert parsed.value["own"] == {"x": 5, "y": {"z": 2}, "w": 4}
    assert (parsed.line_of(("own", "x")), parsed.line_of(("own", "y", "z")), parsed.line_of(("own", "w"))) == (5, 1, 2)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_aliases_are_bounded_whatever_their_shape(width: int, depth: int) -> None:
    names = [f"n{level}" for level in range(depth + 1)]
    lines = ["n0: &n0 [x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * width)}]" for old, new in pairwise(names)]
    written_out = sum(width**level for level in range(depth + 1))
    problem = problem_of("\n".join(lines))
    assert problem == "" or "aliases spell more than 20,000 values" in problem
    if written_out > 20_000:
        assert problem
    if written_out * (depth + 2) * 2 <= 20_000:
        assert not problem


# --- the command line ---------------------------------------------------------------------------------------------------


def laid(tree: dict[str, Any], *words: str) -> dict[str, Any]:
    for word in words:
        apply(tree, parse_override(word))
    return tree


def test_mappings_are_laid_over_mappings_and_all_else_replaces() -> None:
    assert laid({"a": {"b": 1, "c": 2}}, "a={b: 3}", "a.d=4") == {"a": {"b": 3, "c": 2, "d": 4}}
    assert laid({"a": [1, 2]}, "a=[3]") == {"a": [3]}
    assert laid({"a": None}, "a.b=1") == {"a": {"b": 1}}, "an empty section"
    assert laid({}, "a.b.c=x=y") == {"a": {"b": {"c": "x=y"}}}, "only the first = parts"
    assert laid({"s": [{"p": 1}, {"p": 2}]}, "s[1].p=3") == {"s": [{"p": 1}, {"p": 3}]}
    assert laid({"s": [1, 2]}, "s[0]=3") == {"s": [3, 2]}
    assert laid({}, "a=") == {"a": None}


def test_what_came_from_the_command_line_is_known() -> None:
    tree: dict[str, Any] = {"a": {"b": 1}}
    assert apply(tree, parse_override("a={b: 2, c: {d: 3}}")) == {("a", "b"), ("a", "c")}
    assert apply(tree, parse_override("a.c={d: 4}")) == {("a", "c", "d")}


@pytest.mark.parametrize(
    "word", ["endpoints.far.x=[hunter2", "openai_api_key=[hunter2", "a=[sk-hunter2abcdefghijkl", "a.token={hunter2"]
)
def test_a_secret_is_not_repeated(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_override(word)
    assert "hunter2" not in str(caught.value)


# --- names and tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "OPENAI_API_KEY", "secret", "client_secret", "password", "hf_token", "token", "key"]
)
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)


def test_no_setting_of_ours_is_named_like_a_secret_and_no_name_looks_like_one() -> None:
    def names(section: Any) -> set[str]:
        inner = [field.annotation for field in section.model_fields.values() if hasattr(field.annotation, "model_fields")]
        return set(section.model_fields).union(*map(names, inner))

    assert not [name for name in names(Config) if names_secret(name)]
    harmless = ["./models/sk-learn-baseline-model", "endpoint:far", "task-42", "hf_models", "http://host:8000/v1", "a@b.c"]
    assert not [text for text in harmless if secret_in(text)]


def test_rules_read_settings_that_there_are() -> None:
    for rule in RULES:
        for setting in rule.reads:
            section: Any = Config
            for part in setting.split("."):
                assert part in section.model_fields, f"{rule.name} reads {setting}"
                section = section.model_fields[part].annotation
    assert len({rule.name for rule in RULES}) == len(RULES)
