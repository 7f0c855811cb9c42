"""`selfreward judge` as a new user meets it: panels, configs without a name, wrong columns, repeated prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from judge_bench import QUALITY, judge, ranked, script, write
from typer.testing import CliRunner

from selfreward.artifacts import read_json, read_rows
from selfreward.cli import app
from selfreward.config import default_config
from selfreward.errors import ConfigError, DataError, UsageError
from selfreward.judge_tool import ScoredResponse
from selfreward.judge_tool.options import ComparedPair
from selfreward.report.judge_table import render_judge


def panel_of(*seats: dict[str, Any], **judge_settings: Any) -> Any:
    return default_config("judge", [f"judge={json.dumps({'panel': list(seats), **judge_settings})}"])


def answers(path: Path, *texts: str, prompt: str = "say it") -> Path:
    return write(path, *({"instruction": prompt, "output": text} for text in texts))


# --- panels ----------------------------------------------------------------------------------------------------------


def test_a_panel_judges(tmp_path: Path) -> None:
    one, other = (
        script(tmp_path / f"{n}.json", {"superb": high, "bad": low}) for n, (high, low) in enumerate(((5, 1), (2, 0)))
    )
    config = panel_of({}, {"model": other, "rubric": "concise", "weight": 3, "num_votes": 1})
    data, out = answers(tmp_path / "d.jsonl", "superb", "bad", "  "), tmp_path / "s.parquet"
    summary = judge(data, one, config, out=out, num_votes=2)
    rows = read_rows(out, ScoredResponse)
    assert [row.score for row in rows] == [pytest.approx((5 + 3 * 2) / 4), pytest.approx(1 / 4), None]
    assert [vote.member for vote in rows[0].votes] == [f"{one} additive"] * 2 + [f"{other} concise"]
    assert [vote.index for vote in rows[0].votes] == [0, 1, 2]
    assert [fact["weight"] for fact in summary["judge"]["panel"]] == [1, 3]
    shown = " ".join(render_judge(summary, 200).split())
    assert "by additive, 2 votes, sampled, weight 1 panel" in shown
    record = read_json(Path(f"{out}.run") / "judge" / "record.json")
    assert [fact["rubric"] for fact in record["notes"]["judges"]] == ["additive", "concise"]
    assert record["counts"] == {"in": 3, "out": 2, "dropped": {"blank": 1}}
    assert not list((Path(f"{out}.run") / "judge").glob("votes-*"))
    with pytest.raises(UsageError, match=r"members\.1\.weight was 3\.0, is 1\.0"):
        judge(data, one, panel_of({}, {"model": other, "rubric": "concise", "num_votes": 1}), out=out, num_votes=2)


@pytest.mark.parametrize(
    ("seats", "options", "message"),
    [
        ([{"model": "nowhere/at/all"}], {"model": None}, r"judge\.panel\[0\]\.model='nowhere/at/all' is no folder"),
        ([{"rubric": "nowhere"}], {}, r"judge\.panel\[0\]\.rubric='nowhere'"),
        ([{}, {"rubric": "multiple_choice"}], {}, "have different scales"),
        ([{}], {"model": None}, r"judge\.panel\[0\]\.model policy is a part of a run"),
        ([{"model": "scripted:random"}], {}, "--model scripted:random would change nothing"),
        ([{"rubric": "concise"}], {"rubric": "safety"}, "--rubric safety would change nothing"),
        ([{"num_votes": 2}], {"num_votes": 3}, "--k 3 would change nothing"),
        ([{}], {"rubric": "pairwise", "agreement": True}, "needs one judge, not judge.panel"),
    ],
)  # fmt: skip
def test_a_panel_that_cannot_judge(tmp_path: Path, seats: Any, options: dict[str, Any], message: str) -> None:
    data = ranked(tmp_path / "d.jsonl", 2)
    with pytest.raises((UsageError, ConfigError), match=message):
        judge(data, **{"model": "scripted:random", "out": tmp_path / "s.parquet", "config": panel_of(*seats), **options})


# --- configs and options -----------------------------------------------------------------------------------------------


def test_a_config_needs_neither_a_name_nor_a_model_on_the_command_line(tmp_path: Path) -> None:
    data, config, out = answers(tmp_path / "d.jsonl", "yes"), tmp_path / "c.yaml", tmp_path / "s.jsonl"
    config.write_text('judge: {model: "scripted:random", num_votes: 1}\n')
    done = CliRunner().invoke(app, ["judge", str(data), "--config", str(config), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert len(json.loads(out.read_text())["votes"]) == 1


@pytest.mark.parametrize("stage", ["nonsense", "m1", "m7/evals"])
def test_seeds_of_a_stage_that_does_not_judge(tmp_path: Path, stage: str) -> None:
    with pytest.raises(UsageError, match=rf"--seeds-of '{stage}' is no stage that judges; the config's are .*m1/evals"):
        judge(answers(tmp_path / "d.jsonl", "x"), "scripted:random", out=tmp_path / "s.jsonl", stage=stage)


def test_an_empty_rubric_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rubric='' names no rubric"):
        judge(answers(tmp_path / "d.jsonl", "x"), "scripted:random", out=tmp_path / "s.jsonl", rubric="")


# --- data --------------------------------------------------------------------------------------------------------------


def test_a_wrong_column_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", {"prompt": "q", "answer": "a"}, {"prompt": "q2", "answer": "b"})
    with pytest.raises(DataError) as caught:
        judge(data, "scripted:random", out=tmp_path / "s.jsonl")
    text = str(caught.value)
    assert "no response 2; its rows have the fields prompt, answer" in text
    assert "response, output, completion" in text
    assert "{" not in text


def test_an_unknown_format_is_told_in_words_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --format, one of oasst-trees"):
        judge(write(tmp_path / "d.jsonl", {"q": "x", "a": "y"}), "scripted:random", out=tmp_path / "s.jsonl")
    folder = tmp_path / "f"
    folder.mkdir()
    answers(folder / "1.jsonl", "x")
    write(folder / "2.jsonl", {"prompt": "q", "completion": "y"})
    with pytest.raises(DataError, match="judge them one by one, or give --format"):
        judge(folder, "scripted:random", out=tmp_path / "s.jsonl")


def test_blank_responses_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no response to judge: 2 rows read as format alpaca, without: blank responses"):
        judge(answers(tmp_path / "d.jsonl", "", " "), "scripted:random", out=tmp_path / "s.jsonl")


def test_responses_to_one_prompt_count_as_one_prompt(tmp_path: Path) -> None:
    model = script(tmp_path / "j.json", QUALITY)
    texts = ("superb and long", "fine", "bad")
    rows = [{"instruction": f"q{n}", "output": text} for text in texts for n in range(4)]
    summary = judge(write(tmp_path / "d.jsonl", *rows), model, out=tmp_path / "s.jsonl")
    assert summary["counts"] == {"prompts": 4, "responses": 12, "scored": 12}
    health = summary["health"]
    assert (health["mean_score"]["value"], health["mean_score"]["n"]) == (pytest.approx(3), 4)
    assert health["mean_score"]["low"] == health["mean_score"]["high"] == pytest.approx(3), "every prompt has the same mean"
    assert health["length_within_sets"] == {
        "value": pytest.approx(1),
        "low": pytest.approx(1),
        "high": pytest.approx(1),
        "n": 4,
    }
    assert "mean score" in render_judge(summary)


def test_ranked_sets_of_one_prompt_are_one_unit_and_change_no_value(tmp_path: Path) -> None:
    model = script(tmp_path / "j.json", QUALITY | {"fine": 5})
    rows = [
        {"prompt": f"q{n % 3}", "chosen": good, "rejected": bad}
        for n, (good, bad) in enumerate([("superb", "bad"), ("fine", "superb"), ("bad", "fine")] * 2)
    ]
    same = judge(write(tmp_path / "same.jsonl", *rows), model, agreement=True)
    apart = judge(write(tmp_path / "a.jsonl", *({**r, "prompt": f"q{n}"} for n, r in enumerate(rows))), model, agreement=True)
    assert (same["counts"]["prompts"], same["counts"]["sets"], apart["counts"]["prompts"]) == (3, 6, 6)
    for name, figure in same["figures"].items():
        assert figure["value"] == pytest.approx(apart["figures"][name]["value"]), name
    assert (same["figures"]["judge_pairwise"]["n"], apart["figures"]["judge_pairwise"]["n"]) == (3, 6)


def test_few_responses_give_no_interval_of_a_correlation(tmp_path: Path) -> None:
    model = script(tmp_path / "j.json", QUALITY)
    summary = judge(
        answers(tmp_path / "d.jsonl", "superb", "fine and long", "bad and much longer"), model, out=tmp_path / "s.jsonl"
    )
    assert summary["health"]["length_overall"]["value"] == pytest.approx(-1)
    assert summary["health"]["length_overall"]["low"] is None
    assert "too few" in render_judge(summary)


# --- results -----------------------------------------------------------------------------------------------------------


def test_a_judge_that_fails_on_every_vote_is_an_error_with_a_hint(tmp_path: Path) -> None:
    data, out = answers(tmp_path / "d.jsonl", "superb"), tmp_path / "s.jsonl"
    model = script(tmp_path / "j.json", {"superb": "I like it."})
    done = CliRunner().invoke(app, ["judge", str(data), "--model", model, "--out", str(out)])
    assert done.exit_code == 1
    text = str(done.exception)
    assert "gave no score at all (no_score 1); the first reply is 'I like it.'" in text
    assert "try another --rubric" in text
    assert str(out) in text
    assert json.loads(out.read_text())["votes"][0]["text"] == "I like it.", "the evidence is kept"


def test_pairs_speak_of_better_and_worse(tmp_path: Path) -> None:
    replies = [{"match": "(?s)response_a>[^<]*superb", "reply": "Verdict: A"}, {"match": ".", "reply": "Verdict: B"}]
    model = script(tmp_path / "j.json", {}, replies=replies)
    data = write(tmp_path / "r.jsonl", {"prompt": "q?", "chosen": "superb", "rejected": "bad"})
    judge(data, model, agreement=True, rubric="pairwise", out=tmp_path / "p.parquet")
    (row,) = read_rows(tmp_path / "p.parquet", ComparedPair)
    assert (row.prompt, row.better, row.worse, row.outcome) == ("q?", "superb", "bad", "right")
    assert [(reply.shown_first, reply.choice) for reply in row.replies] == [("better", "better"), ("worse", "better")]


def test_scores_end_with_one_line_and_agreement_with_its_rules(tmp_path: Path) -> None:
    model = script(tmp_path / "j.json", QUALITY)
    scored = render_judge(judge(answers(tmp_path / "d.jsonl", "superb"), model, out=tmp_path / "s.jsonl"), 200)
    assert scored.rstrip().splitlines()[-1].endswith("All terms: docs/judging.md.")
    assert "Vote spread: the" not in scored
    assert "Vote spread: the" in " ".join(render_judge(judge(ranked(tmp_path / "r.jsonl"), model, agreement=True)).split())
