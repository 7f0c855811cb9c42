"""`selfreward eval compare`: figures by hand, a judge with position bias, models and files as sides, going on, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_eval_outputs import script, write
from typer.testing import CliRunner

from selfreward.artifacts import read_json, read_rows
from selfreward.cli import app
from selfreward.config import default_config
from selfreward.errors import RunError, SelfRewardError, UsageError
from selfreward.eval_tools.compare import compare
from selfreward.eval_tools.options import CompareOptions
from selfreward.evals.contest import Outcome, contest_counts, contest_figures, position_sentence
from selfreward.evals.head_to_head import Comparison, Contest
from selfreward.progress import NullProgress
from selfreward.report.contest_table import render_contest
from selfreward.statistics import NOTHING, wilson
from selfreward.types import Estimate


def outputs(path: Path, generator: str, texts: dict[str, str]) -> str:
    rows = [{"instruction": prompt, "output": text, "generator": generator} for prompt, text in texts.items()]
    return str(write(path, rows))


def run(a: str, b: str, judge: str, **options: Any) -> dict[str, Any]:
    return compare(CompareOptions(a=a, b=b, judge=judge, **options), default_config("compare"), NullProgress())


ALWAYS_A = {".": "Both have merits.\nVerdict: A"}
RIGHT = {r"(?s)<response_a>[^<]*good": "Verdict: A", r"(?s)<response_b>[^<]*good": "Verdict: B", ".": "Verdict: tie"}


def table(number: int, word: str) -> dict[str, str]:
    return {f"question {n}": f"{word} answer {n}" for n in range(number)}


# --- figures by hand ---------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    contests = [
        Contest("a", "p", "x" * 10, "x" * 4),  # won by the longer one
        Contest("b", "p", "x" * 2, "x" * 8),  # lost to the longer one
        Contest("c", "p", "x" * 6, "x" * 3),  # the longer one loses
        Contest("d", "p", "x" * 5, "y" * 5),  # orders disagree
        Contest("e", "p", "x" * 7, "x" * 1),  # unreadable
    ]
    rows = [
        Comparison("a", "new", "new", "win"),
        Comparison("b", "old", "old", "lose"),
        Comparison("c", "old", "old", "lose"),
        Comparison("d", "new", "old", "tie"),
        Comparison("e", None, "old", None),
    ]
    found = contest_figures(contests, rows, lambda name: 1, 500)
    assert (found["win_rate"], found["tie_rate"], found["lose_rate"]) == (wilson(1, 4), wilson(1, 4), wilson(2, 4))
    assert found["score"].value == pytest.approx((1 + 0.5) / 4)
    assert found["net"].value == pytest.approx((1 - 2) / 4)
    assert found["net"].low < found["net"].value < found["net"].high
    assert found["net"].low >= -1
    assert (found["length"].value, found["opponent_length"].value) == (6, 21 / 5)
    assert found["length_difference"].value == pytest.approx(6 - 21 / 5)
    assert found["longer_won"] == wilson(2, 3)
    assert found["win_rate_longer"] == wilson(1, 2)
    assert found["win_rate_shorter"] == wilson(0, 1)
    # First shown: a 1 of 2, b 1 of 2, c 1 of 2, d 2 of 2, e 1 of 1 (the old one was first).
    assert found["first_position"].value == pytest.approx(6 / 9)
    assert contest_counts(rows) == {
        "contests": 5, "wins": 1, "ties": 1, "losses": 2, "no_verdict": 1, "orders_disagree": 1, "sign_test_p": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "biased", "words"),
    [
        (Estimate(0.8, 0.7, 0.9, 50), True, "prefers the response shown first (80 % [70, 90]"),
        (Estimate(0.2, 0.1, 0.3, 50), True, "prefers the response shown second"),
        (Estimate(0.55, 0.45, 0.65, 50), False, "No position bias found: 55 % [45, 65]"),
        (Estimate(1.0, None, None, 1), None, "cannot be told from one prompt"),
        (NOTHING, None, "no verdict prefers a response"),
    ],
)
def test_position_bias_is_said_in_words(first: Estimate, biased: bool | None, words: str) -> None:
    said = position_sentence(first)
    assert said[0] is biased
    assert words in said[1]


# --- judges ------------------------------------------------------------------------------------------------------------


def test_a_judge_that_always_says_a_is_biased_and_decides_nothing(tmp_path: Path) -> None:
    a = outputs(tmp_path / "a.json", "good one", table(12, "good"))
    b = outputs(tmp_path / "b.json", "bad one", table(12, "poor"))
    summary = run(a, b, script(tmp_path / "j.json", ALWAYS_A))
    assert summary["counts"] == {
        "contests": 12, "wins": 0, "ties": 12, "losses": 0, "no_verdict": 0, "orders_disagree": 12, "sign_test_p": None,
        "only_a": 0, "only_b": 0, "beyond_limit": 0,
    }  # fmt: skip
    assert summary["figures"]["tie_rate"]["value"] == 1
    net = summary["figures"]["net"]
    assert (net["value"], net["low"] < -0.2, net["high"] > 0.2) == (0, True, True), "twelve ties do not make two models equal"
    assert summary["problem"] is None
    assert summary["figures"]["first_position"]["value"] == 1
    assert summary["position_biased"] is True
    shown = render_contest(summary)
    assert "The judge is position-biased: it prefers the response shown first" in " ".join(shown.split())
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_a_judge_that_knows_is_not_biased(tmp_path: Path) -> None:
    a, b = outputs(tmp_path / "a.json", "x", table(12, "good")), outputs(tmp_path / "b.json", "y", table(12, "poor"))
    judge = script(tmp_path / "j.json", RIGHT)
    summary = run(a, b, judge)
    assert (summary["counts"]["wins"], summary["counts"]["losses"]) == (12, 0)
    assert summary["counts"]["sign_test_p"] == pytest.approx(2 / 2**12)
    assert summary["figures"]["win_rate"]["low"] == pytest.approx(wilson(12, 12).low)
    assert (summary["position_biased"], summary["figures"]["first_position"]["value"]) == (False, 0.5)
    turned = run(b, a, judge)
    assert (turned["counts"]["wins"], turned["counts"]["losses"]) == (0, 12)


def test_an_unreadable_verdict_is_missing_and_counted(tmp_path: Path) -> None:
    a, b = outputs(tmp_path / "a.json", "x", table(5, "good")), outputs(tmp_path / "b.json", "y", table(5, "poor"))
    judge = script(tmp_path / "j.json", {"question 3": "I would rather not say.", **RIGHT})
    summary = run(a, b, judge, out=tmp_path / "c.parquet")
    assert (summary["counts"]["wins"], summary["counts"]["no_verdict"]) == (4, 1)
    assert summary["figures"]["win_rate"] == {"value": 1.0, "low": wilson(4, 4).low, "high": 1.0, "n": 4}
    rows = read_rows(tmp_path / "c.parquet", Outcome)
    assert [row.outcome for row in rows] == ["win", "win", "win", None, "win"]
    assert (rows[0].first_shown_first, rows[0].first_shown_second, rows[0].first_length) == ("A", "A", 13)
    record = read_json(tmp_path / "c.parquet.run" / "comparisons" / "record.json")
    assert record["counts"] == {"in": 5, "out": 4, "dropped": {"no_verdict": 1}}


def test_the_oracle_judges_the_micro_world(tmp_path: Path) -> None:
    right = {"reverse this list : fox kiwi red": "red kiwi fox", "repeat these words : saw owl plum": "saw owl plum"}
    wrong = {"reverse this list : fox kiwi red": "fox kiwi red", "repeat these words : saw owl plum": "saw owl plum"}
    a, b = outputs(tmp_path / "a.json", "x", right), outputs(tmp_path / "b.json", "y", wrong)
    summary = run(a, b, "oracle")
    assert (summary["counts"]["wins"], summary["counts"]["ties"]) == (1, 1)
    assert summary["position_biased"] is None
    assert "knows no positions" in render_contest(summary)
    with pytest.raises(UsageError, match="none of these instructions is one"):
        run(outputs(tmp_path / "c.json", "x", table(2, "u")), outputs(tmp_path / "d.json", "y", table(2, "v")), "oracle")


# --- sides -------------------------------------------------------------------------------------------------------------


def test_models_answer_the_prompts_first(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("question 1\nquestion 2\nquestion 3\n")
    a, b = script(tmp_path / "good.json", {".": "a good answer"}), script(tmp_path / "poor.json", {".": "an answer"})
    judge = script(tmp_path / "j.json", RIGHT)
    options = {"prompts": tmp_path / "p.txt", "out": tmp_path / "c.jsonl"}
    summary = run(a, b, judge, **options)
    assert (summary["a"], summary["b"], summary["counts"]["wins"]) == ("good", "poor", 3)
    records = sorted((tmp_path / "c.jsonl.run").rglob("record.json"))
    assert [path.parent.name for path in records] == ["a", "b", "comparisons"]
    stamps = [path.stat().st_mtime_ns for path in records]
    assert run(a, b, judge, **options) == summary
    assert [path.stat().st_mtime_ns for path in records] == stamps, "nothing is done again"
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["win"] * 3


def test_only_common_instructions_are_compared_and_the_rest_is_counted(tmp_path: Path) -> None:
    a, b = outputs(tmp_path / "a.json", "x", table(5, "good")), outputs(tmp_path / "b.json", "y", table(3, "poor"))
    summary = run(a, b, script(tmp_path / "j.json", RIGHT))
    assert (summary["counts"]["contests"], summary["counts"]["only_a"], summary["counts"]["only_b"]) == (3, 2, 0)
    some = run(a, b, script(tmp_path / "j.json", RIGHT), limit=2)
    assert {key: some["counts"][key] for key in ("contests", "only_a", "only_b", "beyond_limit")} == {
        "contests": 2, "only_a": 2, "only_b": 0, "beyond_limit": 1,
    }  # fmt: skip
    assert "instructions not compared: 2 that only x answers, 1 beyond --limit" in render_contest(some)
    with pytest.raises(UsageError, match="have no instruction in common"):
        run(a, outputs(tmp_path / "z.json", "z", {"another": "one"}), "scripted:random")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": "nowhere"}, "B 'nowhere' is neither a file of outputs, nor a folder here"),
        ({"b": "scripted:echo"}, "a model needs instructions to answer: give --prompts FILE"),
        ({"judge": "policy"}, "--judge policy is a part of a run"),
        ({"judge": "endpoint:far"}, "names no endpoint"),
        ({"rubric": "additive"}, "is of kind pointwise, but pairwise is needed"),
        ({"judge": "oracle", "rubric": "pairwise"}, "reads no rubric; leave it out"),
        ({"out": Path("c.csv")}, r"must end with \.parquet or \.jsonl"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    a, b = outputs(tmp_path / "a.json", "x", table(2, "good")), outputs(tmp_path / "b.json", "y", table(2, "poor"))
    arguments = {"a": a, "b": b, "judge": "scripted:random"} | changes
    with pytest.raises(SelfRewardError, match=message):
        run(**arguments)


def test_the_command(tmp_path: Path) -> None:
    a, b = outputs(tmp_path / "a.json", "x", table(6, "good")), outputs(tmp_path / "b.json", "y", table(6, "poor"))
    judge = script(tmp_path / "j.json", RIGHT)
    done = CliRunner().invoke(app, ["eval", "compare", a, b, "--judge", judge, "--json", "--limit", "4"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"]["wins"] == 4
    shown = CliRunner().invoke(app, ["eval", "compare", a, b, "judge.max_tokens=1", "--judge", judge])
    assert "6 without a verdict" in shown.stdout
    assert "replies without a verdict: cut by the token limit 12" in shown.stdout
    assert isinstance(shown.exception, RunError), "a table without one verdict is no result"
    assert "no verdict in both orders at all (cut by the token limit 12); a reply is" in str(shown.exception)
    assert "larger judge.max_tokens" in str(shown.exception)
