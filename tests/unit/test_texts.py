"""What messages show of foreign texts, and that it is written once."""

import re
from pathlib import Path

from selfreward.texts import MAX_SHOWN, one_line, shown

SOURCE = Path(__file__).parents[2] / "src" / "selfreward"


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("a\n\tb  c ")) == "a b c"


def test_a_value_is_cut() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown("x" * 100) == "'" + "x" * (MAX_SHOWN - 1) + "..."


def test_both_are_written_once() -> None:
    wanted = re.compile(r"join\(str\(\w+\)\.split\(\)\)|\[:_?MAX_SHOWN\]")
    found = {path.name for path in SOURCE.rglob("*.py") if wanted.search(path.read_text(encoding="utf-8"))}
    assert found == {"texts.py"}
