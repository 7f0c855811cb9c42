"""Rubrics in other languages: header words keep the default reader, and a pattern of a file's own reads every verdict."""

import re
from pathlib import Path
from typing import Any

import pytest

from selfreward.errors import ConfigError
from selfreward.judging import parse_verdict, parse_vote
from selfreward.rubrics import Rubric, parse_rubric, read_rubric
from selfreward.types import Generation


def pointwise(**header: Any) -> Rubric:
    lines = {"score_word": "Punkte", "of_word": "von", "example": "'Punkte: 4'", "scale": "[0, 10]"} | header
    words = "".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None)
    body = "{{ instruction }} <antwort>{{ response }}</antwort>"
    return parse_rubric(f"---\nname: noten\nkind: pointwise\nlanguage: de\n{words}---\n{body}\n", "noten.md")


def pairwise(**header: Any) -> Rubric:
    words = "".join(f"{name}: {value}\n" for name, value in header.items())
    body = "{{ instruction }} <eins>{{ response_a }}</eins> <zwei>{{ response_b }}</zwei>"
    return parse_rubric(f"---\nname: duell\nkind: pairwise\nlanguage: de\n{words}---\n{body}\n", "duell.md")


def read(rubric: Rubric, reply: str) -> float | str | None:
    vote = parse_vote(rubric, Generation("r", reply, 1, 1, "stop"), 0)
    return vote.failure if vote.score is None else vote.score


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Gut erklärt.\nPunkte: 7", 7), ("**Punkte:** 7", 7), ("punkte: 7,5", 7.5), ("Punkte: 7.5 von 10", 7.5),
        ("Punkte: 7 von 10", 7), ("Punkte: 7 Punkte von 10", 7), ("Punkte: 4/5", "out_of_range"),
        ("Punkte: 4 von 5", "out_of_range"), ("Punkte: 7-8", "no_score"), ("Punkte: 7 bis 8", "no_score"),
        ("Punkte: 7 oder 8", "no_score"), ("Punkte: 7, vielleicht auch 8", "no_score"), ("Punkte: sieben", "no_score"),
        ("Gesamtpunkte: 3", "no_score"), ("Score: 3", "no_score"), ('Da steht "Punkte: 9".', "no_score"),
        ("Punkte: 11", "out_of_range"), ("Punkte：８", 8), ("Punkte: 6. Es fehlen 2 Belege.", 6),
    ],
)  # fmt: skip
def test_a_score_word_keeps_the_safe_reader(reply: str, said: float | str) -> None:
    assert read(pointwise(), reply) == said


def test_scripts_without_blanks() -> None:
    rubric = pointwise(score_word="评分", of_word="满分", example="'评分: 4'", language=None)
    found = [read(rubric, reply) for reply in ("总评分：4", "评分：4分", "评分：4到5", "评分：4分，满分10", "评分：4分，满分5")]
    assert found == [4, 4, "no_score", 4, "out_of_range"]


def test_no_word_of_another_number_is_taken_for_a_range_without_an_of_word() -> None:
    assert read(pointwise(of_word=None), "Punkte: 7 von 10") == "no_score"


def test_long_replies_are_read_at_once() -> None:
    rubric = pointwise()
    assert read(rubric, "Punkte: 7 " + "x" * 200_000) == 7
    assert read(rubric, "Punkte: 7 " * 20_000) == 7


def test_words_are_part_of_the_identity_and_change_no_other_rubric() -> None:
    assert pointwise().content_hash != pointwise(score_word="Note", example="'Note: 4'").content_hash
    assert pairwise(example="'Verdict: A'").content_hash != pairwise(example="'Verdict: A'", tie_word="remis").content_hash
    assert read_rubric("additive", "judge.rubric").is_read_safely


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Urteil: A", "A"), ("**Urteil:** B", "B"), ("Urteil: unentschieden", "tie"), ("Urteil: Unentschieden.", "tie"),
        ("Urteil: tie", None), ("Verdict: A", None), ("Urteil: A oder B", None), ('Er schreibt "Urteil: A".', None),
    ],
)  # fmt: skip
def test_a_verdict_word_and_a_tie_word(reply: str, said: str | None) -> None:
    rubric = pairwise(verdict_word="Urteil", tie_word="unentschieden", example="'Urteil: unentschieden'")
    assert parse_verdict(rubric, Generation("r", reply, 1, 1, "stop")) == said


def test_a_pattern_of_its_own_with_a_tie_word() -> None:
    own = r"'Urteil: (?P<verdict>A|B|unentschieden)'"
    rubric = pairwise(pattern=own, tie_word="unentschieden", example="'Urteil: A'")
    assert parse_verdict(rubric, Generation("r", "Urteil: unentschieden", 1, 1, "stop")) == "tie"
    with pytest.raises(ConfigError, match=r"reads the verdict 'A' in the example, but not 'tie' in its place.*tie_word"):
        pairwise(pattern=own, example="'Urteil: A'")
    with pytest.raises(ConfigError, match=r"example's verdict 'unentschieden' is not A, B or tie.*tie_word"):
        pairwise(pattern=own, example="'Urteil: unentschieden'")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"score_word": "'Punkte:'"}, r"score_word: 'Punkte:' is no word"),
        ({"score_word": "4"}, r"score_word"),
        ({"pattern": r"'Punkte: (\d)'"}, r"score_word is for the default pattern; remove it, or pattern"),
        ({"tie_word": "remis"}, "tie_word belongs to pairwise rubrics"),
        ({"score_word": None, "example": "'Score: 4'"}, "of_word belongs to a rubric with score_word"),
        (
            {"scale": "1-10"},
            r"scale: '1-10' is no scale; give two finite numbers, the lowest and the highest score, like \[1, 10\]",
        ),
        ({"scale": "[1, 2, 3]"}, "is no scale"),
        ({"scale": "[10, 1]"}, "the low end 10 must be below the high end 1$"),
    ],
)
def test_wrong_headers(header: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pointwise(**header)


@pytest.mark.parametrize(
    ("name", "message"), [("", "names no rubric; give a rubric file"), (".", "is a folder; give a rubric")]
)
def test_what_is_no_file(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rubric(name, "--rubric")


def test_the_examples_of_the_docs_are_rubrics() -> None:
    page = (Path(__file__).parents[2] / "docs" / "judging.md").read_text(encoding="utf-8")
    found = [parse_rubric(text, "docs") for text in re.findall(r"```\n(---\n.*?)```", page, flags=re.DOTALL)]
    assert [(rubric.name, rubric.kind) for rubric in found] == [("hilfreich", "pointwise"), ("duell", "pairwise")]
    assert read(found[0], "Gut.\nPunkte: 7.5 von 10") == 7.5
