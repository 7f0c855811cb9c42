"""`selfreward judge`: every row accounted for, judges of known quality, a run's own figures again, going on, clear errors."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judge_bench import QUALITY, judge, ranked, script, write
from test_evals_evaluate import RIGHT, Bench
from typer.testing import CliRunner

from selfreward.artifacts import read_json, read_rows
from selfreward.cli import app
from selfreward.config import parse_config
from selfreward.errors import DataError, SelfRewardError, UsageError
from selfreward.evals.evaluate import evaluate
from selfreward.judge_tool import ScoredResponse
from selfreward.judge_tool.options import ComparedPair
from selfreward.report.judge_table import render_judge

OASST = Path(__file__).parents[3] / "shared" / "data" / "oasst_en_trees.jsonl"


def values(summary: dict[str, Any]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in summary["figures"].items()}


# --- scoring -------------------------------------------------------------------------------------------------------


def test_every_row_is_scored_or_named(tmp_path: Path) -> None:
    data = write(
        tmp_path / "pairs.jsonl",
        {"id": "a", "instruction": "say it", "output": "a superb reply"},
        {"id": "b", "instruction": "say it", "output": "a bad reply"},
        {"id": "c", "instruction": "say it", "output": "mumble"},
        {"id": "d", "instruction": "say it", "output": "   "},
    )
    model = script(tmp_path / "judge.json", {**QUALITY, "mumble": "I cannot say."})
    summary = judge(data, model, out=tmp_path / "scored.parquet")
    rows = read_rows(tmp_path / "scored.parquet", ScoredResponse)
    assert [(row.id, row.response, row.score, row.rank) for row in rows] == [
        ("a/0", "a superb reply", 5.0, None), ("b/0", "a bad reply", 1.0, None), ("c/0", "mumble", None, None),
        ("d/0", "   ", None, None),
    ]  # fmt: skip
    assert [vote.failure for vote in rows[2].votes] == ["no_score"] * 3
    assert summary["data"]["rows"] == 4
    assert rows[3].votes == (), "nobody is asked about nothing"
    assert (summary["data"]["dropped"], summary["data"]["replies_dropped"]) == ({}, {})
    assert summary["counts"] == {"prompts": 1, "responses": 4, "scored": 2}
    assert summary["unscored"] == {"no_score": 1, "blank": 1}
    assert summary["votes"]["failures"] == {"no_score": 3}
    assert summary["votes"]["score_histogram"] == {"1": 3, "5": 3}
    assert summary["health"]["failed_votes"]["value"] == pytest.approx(1 / 3)
    assert "figures" not in summary
    record = read_json(tmp_path / "scored.parquet.run" / "judge" / "record.json")
    assert record["counts"] == {"in": 4, "out": 2, "dropped": {"blank": 1, "too_few_votes": 1}}
    shown = render_judge(summary)
    assert "blank response, not shown to the judge 1" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80 or str(tmp_path) in shown


def test_other_shapes_and_json_lines(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["say it", "say it"], "response": ["fine", "bad"]}), tmp_path / "t.parquet")
    model = script(tmp_path / "judge.json", QUALITY)
    judge(tmp_path / "t.parquet", model, out=tmp_path / "scored.jsonl", num_votes=1)
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [(row["response"], row["score"], len(row["votes"])) for row in rows] == [("fine", 3.0, 1), ("bad", 1.0, 1)]
    judge(ranked(tmp_path / "r.jsonl", 2), model, out=tmp_path / "ranked.parquet")
    assert [(row.rank, row.score) for row in read_rows(tmp_path / "ranked.parquet", ScoredResponse)] == [
        (0, 5),
        (1, 3),
        (2, 1),
    ] * 2


def test_prompts_alone_are_named(tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", {"prompt": "one question"}, {"prompt": "another question"})
    with pytest.raises(
        DataError,
        match=r"no response to judge: 2 rows read as format prompts.*no response 2; its rows have the fields prompt\.",
    ):
        judge(data, "scripted:random", out=tmp_path / "s.parquet")


def test_expected_scores(tmp_path: Path) -> None:
    entry = {"match": "(?s)<response>", "reply": "Fine.\nScore: 4", "choices": {"2": 0.25, "4": 0.5}}
    (tmp_path / "unsure.json").write_text(json.dumps({"replies": [entry], "default": None}))
    summary = judge(
        ranked(tmp_path / "r.jsonl", 1), f"scripted:{tmp_path / 'unsure.json'}", mode="expected", out=tmp_path / "s.parquet"
    )
    score = (2 * 0.25 + 4 * 0.5) / 0.75
    assert [row.score for row in read_rows(tmp_path / "s.parquet", ScoredResponse)] == [pytest.approx(score)] * 3
    assert summary["votes"]["mean_mass"] == pytest.approx(0.75)


# --- agreement: judges of known quality ------------------------------------------------------------------------------


def test_a_perfect_judge(tmp_path: Path) -> None:
    summary = judge(ranked(tmp_path / "r.jsonl"), script(tmp_path / "j.json", QUALITY), agreement=True)
    found = values(summary)
    for figure in ("pairwise", "pairwise_strict", "five_best", "exact_match", "spearman", "kendall", "scored"):
        assert found[f"judge_{figure}"] == pytest.approx(1), figure
    assert found["judge_tied"] == 0
    assert summary["counts"] == {"prompts": 12, "sets": 12, "responses": 36, "scored": 36}
    assert summary["out"] is None
    shown = render_judge(summary)
    assert "Kendall tau-b" in shown
    assert "A pair with equal judge scores counts 1/2" in " ".join(shown.split())


def test_an_inverted_judge(tmp_path: Path) -> None:
    upside_down = {word: 6 - score for word, score in QUALITY.items()}
    found = values(judge(ranked(tmp_path / "r.jsonl"), script(tmp_path / "j.json", upside_down), agreement=True))
    assert found["judge_pairwise"] == found["judge_exact_match"] == found["judge_five_best"] == 0
    assert found["judge_spearman"] == pytest.approx(-1)
    assert found["judge_kendall"] == pytest.approx(-1)


def test_a_constant_judge(tmp_path: Path) -> None:
    summary = judge(ranked(tmp_path / "r.jsonl"), script(tmp_path / "j.json", dict.fromkeys(QUALITY, 5)), agreement=True)
    found = values(summary)
    assert (found["judge_pairwise"], found["judge_pairwise_strict"], found["judge_tied"]) == (0.5, 0, 1)
    assert found["judge_spearman"] == found["judge_kendall"] == found["judge_exact_match"] == 0
    assert found["judge_five_best"] == pytest.approx(1 / 3), "one of three that it calls best is"
    assert summary["health"]["vote_spread"]["value"] == 0


def test_a_random_judge(tmp_path: Path) -> None:
    summary = judge(ranked(tmp_path / "r.jsonl", 600), "scripted:random", agreement=True, num_votes=1)
    found = values(summary)
    assert found["judge_pairwise"] == pytest.approx(0.5, abs=0.03)
    assert found["judge_tied"] == pytest.approx(1 / 6, abs=0.03)
    assert found["judge_spearman"] == pytest.approx(0, abs=0.06)
    assert found["judge_five_best"] == pytest.approx(1 / 3, abs=0.08)
    histogram = summary["votes"]["score_histogram"]
    assert set(histogram) == set("012345")
    assert all(abs(number - 300) < 75 for number in histogram.values())


def test_a_pairwise_judge(tmp_path: Path) -> None:
    first = {"match": ".", "reply": "Verdict: A"}
    right = [
        {"match": "(?s)answer_a>[^<]*superb", "reply": "Verdict: A"},
        {"match": "(?s)answer_b>[^<]*superb", "reply": "Verdict: B"},
    ]
    rubric = tmp_path / "duel.md"
    rubric.write_text(
        "---\nname: duel\nkind: pairwise\nexample: 'Verdict: A'\n---\n{{ instruction }}\n"
        "<answer_a>{{ response_a }}</answer_a><answer_b>{{ response_b }}</answer_b>\n"
    )
    data = ranked(tmp_path / "r.jsonl", 4)
    for name, replies in (("first", [first]), ("right", [*right, first])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"replies": replies, "default": None}))
    biased = judge(data, f"scripted:{tmp_path / 'first.json'}", agreement=True, rubric=str(rubric))
    assert (values(biased)["judge_pairwise"], values(biased)["first_position"]) == (0.5, 1)
    assert biased["counts"] == {
        "prompts": 4, "sets": 4, "pairs": 12, "decided": 12, "missing": 0, "equal_texts": 0, "orders_disagree": 12,
    }  # fmt: skip
    better = judge(data, f"scripted:{tmp_path / 'right.json'}", agreement=True, rubric=str(rubric), out=tmp_path / "d.parquet")
    # Both pairs of each set with the superb answer are right, the third one goes to who stands first.
    assert values(better)["judge_pairwise"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert "prefers the first shown" in render_judge(better)
    assert (tmp_path / "d.parquet").is_file()


def test_missing_verdicts_are_named(tmp_path: Path) -> None:
    """The superb answer first: no verdict; second: cut; without it: nothing said, and once too long."""
    replies = [
        {"match": "(?s)response_a>[^<]*superb", "reply": "I like both."},
        {"match": "(?s)response_b>[^<]*superb", "reply": "word " * 600},
        {"match": ".", "reply": ""},
    ]
    model = script(tmp_path / "j.json", {}, replies=replies, context_length=5000)
    rows = [
        {"prompt": f"question {n}?", "responses": [{"text": f"{word} answer", "rank": rank}
         for rank, word in enumerate(("superb", "fine", "bad " * (6000 if n == 3 else 1)))]}
        for n in range(4)
    ]  # fmt: skip
    out = tmp_path / "pairs.parquet"
    summary = judge(write(tmp_path / "r.jsonl", *rows), model, agreement=True, rubric="pairwise", out=out)
    assert (summary["counts"]["pairs"], summary["counts"]["decided"], summary["counts"]["missing"]) == (12, 0, 12)
    assert summary["verdicts"] == {
        "num_verdicts": 24, "failures": {"no_verdict": 7, "truncated": 7, "empty": 6, "too_long": 4},
    }  # fmt: skip
    kept = read_json(Path(f"{out}.run") / "judge" / "record.json")["counts"]
    assert kept == {"in": 12, "out": 0, "dropped": {"empty": 3, "no_verdict": 7, "too_long": 2}}
    shown = render_judge(summary)
    assert "no clear verdict in the reply: 7 of 24 verdicts (29.2%)" in shown
    assert "prompt too long for the context: 4 of 24" in shown
    row = read_rows(out, ComparedPair)[0]
    assert (row.id, row.prompt, row.better, row.worse) == ("1/0-1", "question 0?", "superb answer", "fine answer")
    assert [(vote.shown_first, vote.failure) for vote in row.replies] == [("better", "no_verdict"), ("worse", "truncated")]
    assert row.replies[0].text == "I like both."
    assert "no figures: not one pair was decided" in shown
    assert "gave no verdict at all" in summary["problem"]


def test_what_is_not_scored_is_the_first_thing_said(tmp_path: Path) -> None:
    model = script(tmp_path / "j.json", {"superb": 5, "fine": "I cannot say."}, default="Hm.", context_length=900)
    rows = [
        {"prompt": f"question {n}?", "responses": [{"text": text, "rank": rank} for rank, text in
         enumerate(("superb", "fine", "bad " * 2000))]}
        for n in range(3)
    ]  # fmt: skip
    summary = judge(write(tmp_path / "r.jsonl", *rows), model, agreement=True)
    assert summary["unscored"] == {"no_score": 3, "too_long": 3}
    assert summary["health"]["scored"]["value"] == pytest.approx(1 / 3)
    shown = render_judge(summary)
    head = " ".join(shown[: shown.index("95 % interval")].split())
    assert (
        "scored 3 of 9 responses (33.3%); the others are in no figure of scores: no score in the reply 3, "
        "prompt too long for the context 3"
    ) in head


# --- the same votes as a run -----------------------------------------------------------------------------------------


def test_a_runs_figures_come_out_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.open(RIGHT) as run:
        made = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
        config = parse_config(run.config.model_dump(mode="json"))
    known = read_json(made.path / "evals.json")
    model = f"scripted:{config.engine.script}"
    table = bench.seed.path / "ranked_heldout.parquet"
    summary = judge(table, model, config, agreement=True, stage="m1/evals")
    assert summary["figures"] == {name: figure for name, figure in known["figures"].items() if name.startswith("judge_")}
    assert summary["votes"]["failures"] == {"no_score": 2, "out_of_range": 2}
    assert summary["data"]["format"] == "a run's ranked sets"


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "policy"}, "--model policy is a part of a run; name a model folder"),
        ({"model": "nowhere/at/all"}, r"--model='nowhere/at/all' is no folder here"),
        ({"model": "endpoint:far"}, r"names no endpoint"),
        ({"rubric": "nowhere"}, r"--rubric='nowhere'.*shipped: additive"),
        ({"rubric": "pairwise"}, "is of kind pairwise; this needs a pointwise one"),
        ({"rubric": "self_instruct", "agreement": True}, "is of kind propose; this needs a pointwise or pairwise one"),
        ({"rubric": "pairwise", "agreement": True, "mode": "expected"}, "has none; leave it out"),
        ({"rubric": "pairwise", "agreement": True, "num_votes": 3}, "--k 3 is for scores"),
        ({"mode": "guessed"}, r"judge\.mode='guessed' must be one of sampled, expected"),
        ({"format": "novel"}, r"--format 'novel' is unknown; known are auto, oasst-trees"),
        ({"out": None}, "give --out scored.parquet"),
        ({"out": Path("s.csv")}, r"must end with \.parquet or \.jsonl"),
        ({"data": Path("nowhere.jsonl")}, "'nowhere.jsonl' is no file or folder here"),
        (
            {"agreement": True},
            "--agreement needs responses that people ranked.*has format alpaca.*with ranks: oasst-trees",
        ),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    data = write(tmp_path / "d.jsonl", {"instruction": "say it", "output": "yes"})
    with pytest.raises(SelfRewardError, match=message):
        judge(**{"data": data, "model": "scripted:random", "out": tmp_path / "s.parquet", **options})


def test_the_command(tmp_path: Path) -> None:
    data, model = str(ranked(tmp_path / "r.jsonl", 3)), script(tmp_path / "j.json", QUALITY)
    done = CliRunner().invoke(app, ["judge", "--agreement", data, "--model", model, "--json", "--k", "2", "--limit", "2"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["judge"]["num_votes"], summary["counts"]["sets"]) == (2, 2)
    config = tmp_path / "c.yaml"
    config.write_text("name: x\njudge: {temperature: 0.0, num_votes: 1}\n")
    out = tmp_path / "s.jsonl"
    done = CliRunner().invoke(
        app, ["judge", data, "judge.max_tokens=9", "--model", model, "--config", str(config), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "votes of 5" in done.stdout
    kept = read_json(Path(f"{out}.run") / "config.json")["judge"]
    assert (kept["temperature"], kept["num_votes"], kept["max_tokens"]) == (0.0, 1, 9)
    nobody = CliRunner().invoke(app, ["judge", data, "--out", str(out)])
    assert isinstance(nobody.exception, UsageError), "--model is needed"
    assert "--model says who judges" in str(nobody.exception)


@pytest.mark.skipif(not OASST.is_file(), reason=f"the Open Assistant sample {OASST.name} is not beside this repository")
def test_open_assistant_trees(tmp_path: Path) -> None:
    summary = judge(OASST, "scripted:random", agreement=True, num_votes=1)
    data = summary["data"]
    assert data["format"] == "oasst-trees"
    assert data["rows"] == summary["counts"]["sets"] + sum(data["dropped"].values()) == 70
    assert data["replies"] == summary["counts"]["responses"] + sum(data["replies_dropped"].values())
    assert summary["figures"]["judge_pairwise"]["low"] < 0.5 < summary["figures"]["judge_pairwise"]["high"]
