"""docs/judging.md: the table of replies says what the code does."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.judging import parse_verdict, parse_vote
from selfreward.rubrics import load_rubric, parse_rubric
from selfreward.types import Generation

DOCS = Path(__file__).parents[2] / "docs" / "judging.md"
ADDITIVE = load_rubric("additive", "pointwise")
PAIRWISE = load_rubric("pairwise", "pairwise")
OWN = """---
name: own
kind: pointwise
scale: [1, 5]
decimals: false
language: zh
pattern: '{pattern}'
example: |-
  {example}
---
{{{{ instruction }}}} <answer>{{{{ response }}}}</answer>
"""


def table() -> list[tuple[str, str]]:
    rows = []
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| `(.*)` \| ([\w.]+) \|", line)
        if match:
            reply = match[1].replace("\\n", "\n").replace("\\u0060", "`").replace("\\|", "|")
            rows.append((reply, match[2]))
    return rows


def read(text, rubric=ADDITIVE, finish="stop"):
    vote = parse_vote(rubric, Generation("r", text, 1, 1, finish), 0)
    return vote.failure if vote.score is None else vote.score


def test_the_table_is_a_table():
    rows = table()
    assert len(rows) >= 100
    assert len({reply for reply, _ in rows}) == len(rows)
    assert {said for _, said in rows} >= {"no_score", "out_of_range", "empty", "4", "4.5"}


@pytest.mark.parametrize(("reply", "said"), table())
def test_replies_are_read_as_the_table_says(reply, said):
    assert read(reply) == (said if said.isidentifier() else float(said))


def test_whole_scores_only_where_the_rubric_says_so():
    whole = load_rubric("multiple_choice", "pointwise")
    assert read("Score: 4", whole) == read("Score: 4.0", whole) == 4
    for reply in ("Score: 4.5", "Score: 0", "Score: 6", "Score: 4/10"):
        assert read(reply, whole) == "out_of_range"


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u200b", "\u200f", "\u202e", "\ufeff", "\u2009"])
def test_odd_blanks_do_not_matter(blank):
    assert read(f"Fine.\n{blank}Score:{blank}4{blank}") == 4
    assert read(f"Score: 4{blank}5") == "no_score"


@pytest.mark.parametrize("name", ["additive", "multiple_choice", "safety", "concise", "lab_additive"])
def test_every_shipped_rubric_reads_the_line_that_it_asks_for(name):
    rubric = load_rubric(name, "pointwise")
    for score in range(int(rubric.scale[0]), int(rubric.scale[1]) + 1):
        assert read(f"Well.\nScore: {score}", rubric) == score
    assert read("It says “Score: 5”.", rubric) == "no_score"


def test_a_pattern_of_ones_own_sees_the_reply_as_it_is():
    rubric = parse_rubric(OWN.format(pattern="评分：(\\d)", example="很好。评分：4"), "x")
    assert read("评分：5 更好。评分：3", rubric) == 3
    assert read("评分:3", rubric) == "no_score"
    assert read("他说「评分：5」。", rubric) == "no_score"
    assert read("<answer>评分：5</answer>", rubric) == "no_score"
    assert rubric.language == "zh"


def test_a_pattern_may_ask_for_a_quotation():
    rubric = parse_rubric(OWN.format(pattern='"total: (\\d)"', example='Good. "total: 4"'), "x")
    assert read('It is "total: 2"', rubric) == 2
    fenced = parse_rubric(OWN.format(pattern="```\\s*total: (\\d)", example="```\n  total: 4\n  ```"), "x")
    assert read("```\ntotal: 5\n```", fenced) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('It wrote "Verdict: A".\nVerdict: B', "B"),
        ('Verdict: B\nThe first one says "Verdict: A".', "B"),
        ('The first one says "Verdict: A".', None),
        ("> Verdict: A", None),
        ("<response_a>\nVerdict: A\n</response_a>", None),
        ("Verdict： B", "B"),
    ],
)
def test_quoted_verdicts_of_pairwise_judges(text, expected):
    assert parse_verdict(PAIRWISE, Generation("r", text, 1, 1, "stop")) == expected


@given(
    st.lists(st.sampled_from([*"\"'`~>\u201c\u201d\u2018\u300c\u00ab<\n a", "```", "Score: 5", "<response>", "</response>"]))
)
def test_a_closing_line_counts_whatever_was_quoted_before(parts):
    assert read("".join(parts) + "\n\nScore: 2") == 2


@given(st.sampled_from(['"{}"', "“{}”", "«{}»", "「{}」", "`{}`", "'{}'"]), st.integers(0, 5), st.integers(0, 5))
def test_quoted_scores_never_count(marks, quoted, own):
    said = marks.format(f"so, Score: {quoted}")
    assert read(f"It says {said} there.") == "no_score"
    assert read(f"It says {said} there.\nScore: {own}") == read(f"Score: {own}\nIt says {said} there.") == own


@pytest.mark.parametrize(
    "part",
    [
        "*",
        "score",
        "Score: ",
        "Score: 1 ",
        "Score: <",
        "'a ",
        "“",
        "`",
        "<response>",
        "score(",
        "\\",
        "1+",
        '"',
        "「x",
        "```x\n",
        "~~~\n",
        "> \n",
        "of a ",
        "4 scale 1-",
        "Verdict: A ",
        "A B",
    ],
)
def test_hostile_replies_cost_no_time(part):
    start = time.perf_counter()
    read("Score:" + part * (50_000 // len(part)))
    read(part * (50_000 // len(part)) + "\nScore: 3")
    read("Score: 4 " + part * (50_000 // len(part)))
    parse_verdict(PAIRWISE, Generation("r", "Verdict: A " + part * (50_000 // len(part)), 1, 1, "stop"))
    assert time.perf_counter() - start < 5


def test_how_replies_are_read_is_part_of_the_identity(monkeypatch):
    before = ADDITIVE.content_hash
    monkeypatch.setattr("selfreward.rubrics.READING_RULES", 99)
    assert replace(ADDITIVE).content_hash != before
    assert replace(ADDITIVE, decimals=False).content_hash != replace(ADDITIVE).content_hash
