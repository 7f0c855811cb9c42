"""The evaluation stage on scripted models: files, figures by hand, failures as missing data, reuse."""

import json
from dataclasses import replace

import pytest

from selfreward.artifacts import Artifact, Run, read_json, read_rows, write_rows
from selfreward.config import parse_config
from selfreward.errors import EngineError
from selfreward.evals.evaluate import evaluate
from selfreward.evals.head_to_head import Comparison
from selfreward.types import (
    Completion,
    EvalOutput,
    Judgement,
    Measure,
    Message,
    PreferencePair,
    Prompt,
    RankedSet,
)

PROMPTS = ["reverse this list : fox kiwi red", "repeat these words : saw owl plum"]
RANKED = [
    RankedSet("s0", "q zero", ("best", "middle", "worst"), (0, 1, 2)),
    RankedSet("s1", "q one", ("best", "worst"), (0, 1)),
]
JUDGE = [
    {"match": "(?s)q zero.*answer : best", "reply": "Score : 5"},
    {"match": "(?s)q zero.*answer : middle", "reply": "Score : 3"},
    {"match": "(?s)q zero.*answer : worst", "reply": "Score : 3"},
    {"match": "(?s)q one.*answer : best", "reply": "no idea"},
    {"match": "(?s)q one.*answer : worst", "reply": "Score : 9"},
]
PAIRWISE = {"match": "Two assistants", "reply": "Verdict: A"}


class Bench:
    """A run whose models are scripts."""

    def __init__(self, root):
        self.root = root
        self.seed = Artifact("seed", root / "data", "seed-1")
        write_rows(
            self.seed.path / "prompts_heldout.parquet",
            [Prompt(f"p{i}", text, "heldout") for i, text in enumerate(PROMPTS)],
        )
        write_rows(self.seed.path / "ranked_heldout.parquet", RANKED)

    def open(self, answers, context_length=1000, **evaluation):
        replies = [PAIRWISE, *JUDGE, *({"match": match, "reply": reply} for match, reply in answers.items())]
        script = self.root / f"script-{len(list(self.root.glob('script-*')))}.json"
        script.write_text(json.dumps({"replies": replies, "default": None, "context_length": context_length}))
        settings = {"oracle": True, "head_to_head": "oracle", "num_votes": 2, "bootstrap_samples": 200, **evaluation}
        config = parse_config(
            {
                "name": "run",
                "run_dir": str(self.root),
                "engine": {"name": "scripted", "script": str(script), "chunk_size": 3},
                "judge": {"rubric": "lab_additive", "max_tokens": 20},
                "sample": {"max_tokens": 20},
                "eval": settings,
            }
        )
        return Run.open(config)

    def model(self, name):
        key = name if name in ("sft", "m1") else f"round-{int(name[1:]) - 1}/model"
        return Artifact(key, self.root / "weights" / name, f"weights-of-{name}")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def _figures(artifact):
    return read_json(artifact.path / "evals.json")["figures"]


RIGHT = {"reverse": "red kiwi fox", "repeat": "saw owl plum"}
WRONG = {"reverse": "fox kiwi red", "repeat": "saw owl plum"}


def test_figures_by_hand(bench):
    with bench.open(WRONG) as run:
        artifact = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
    assert artifact.key == "m1/evals"
    figures = _figures(artifact)
    assert figures["oracle_mean"]["value"] == (3 + 5) / 2
    assert figures["oracle_exact"]["value"] == figures["greedy_oracle_exact"]["value"] == 0.5
    assert figures["oracle_mean"]["n"] == 2
    # s0: best over middle and worst, middle ties worst; s1 has no score at all.
    assert figures["judge_pairwise"] == {"value": pytest.approx(2.5 / 3), "low": None, "high": None, "n": 1}
    assert figures["judge_pairwise_strict"]["value"] == pytest.approx(2 / 3)
    assert figures["judge_scored"]["value"] == pytest.approx(3 / 5)
    assert figures["judge_exact_match"]["value"] == 0
    assert figures["judge_five_best"]["value"] == 1
    assert figures["mean_length"]["value"] == pytest.approx(12.0)
    assert figures["distinct_1"]["value"] == 1.0
    assert "win_rate" not in figures


def test_files_counts_and_failures(bench):
    with bench.open(RIGHT) as run:
        artifact = evaluate(run, "sft", bench.model("sft"), bench.seed, None)
    outputs = read_rows(artifact.path / "outputs.parquet", EvalOutput)
    assert [(row.prompt_id, row.kind, row.text, row.oracle) for row in outputs] == [
        ("p0", "sampled", "red kiwi fox", 5.0),
        ("p1", "sampled", "saw owl plum", 5.0),
        ("p0", "greedy", "red kiwi fox", 5.0),
        ("p1", "greedy", "saw owl plum", 5.0),
    ]
    votes = read_rows(artifact.path / "votes.parquet", Judgement)
    assert [row.completion_id for row in votes] == ["s0/0", "s0/1", "s0/2", "s1/0", "s1/1"]
    assert [row.score for row in votes] == [5.0, 3.0, 3.0, None, None]
    assert {len(row.votes) for row in votes} == {2}
    document = read_json(artifact.path / "evals.json")
    assert document["judge"]["failed_votes"] == {"no_score": 2, "out_of_range": 2}
    assert document["judge"]["unscored"] == 2
    assert "1/2" in document["rules"]["ties"]
    record = read_json(artifact.path / "record.json")
    assert record["counts"] == {"in": 9, "out": 7, "dropped": {"too_few_votes": 2}}
    assert record["roles"] == {"policy": "sft", "judge": "sft"}
    assert record["tokens"]["generated"] > 0


def test_oracle_head_to_head(bench):
    with bench.open(WRONG) as run:
        first = evaluate(run, "sft", bench.model("sft"), bench.seed, None)
    with bench.open(RIGHT) as run:
        second = evaluate(run, "m1", bench.model("m1"), bench.seed, first)
    figures = _figures(second)
    assert figures["win_rate"]["value"] == figures["tie_rate_head_to_head"]["value"] == 0.5
    assert figures["lose_rate"]["value"] == 0
    contest = read_json(second.path / "evals.json")["head_to_head"]
    assert contest["judge"] == "oracle"
    assert contest["opponent"] == "sft"
    assert (contest["wins"], contest["ties"], contest["losses"], contest["missing"]) == (1, 1, 0, 0)
    assert contest["sign_test_p"] == 1.0


def test_policy_head_to_head_of_a_judge_with_position_bias(bench):
    """A judge that always says A decides nothing: the orders disagree, so the different answers tie."""
    with bench.open(WRONG, head_to_head="policy") as run:
        first = evaluate(run, "sft", bench.model("sft"), bench.seed, None)
    with bench.open(RIGHT, head_to_head="policy") as run:
        second = evaluate(run, "m1", bench.model("m1"), bench.seed, first)
    rows = read_rows(second.path / "comparisons.parquet", Comparison)
    assert [(vote.order, vote.text, vote.choice, vote.failure) for vote in rows[0].votes] == [
        ("new_first", "Verdict: A", "new", None), ("old_first", "Verdict: A", "old", None),
    ]  # fmt: skip
    assert [replace(row, votes=()) for row in rows] == [
        Comparison("p0", "new", "old", "tie"), Comparison("p1", None, None, "tie"),
    ]  # fmt: skip
    assert rows[1].votes == (), "equal answers are not asked about"
    figures = _figures(second)
    assert figures["tie_rate_head_to_head"]["value"] == 1.0
    assert figures["first_position"]["value"] == 1.0
    contest = read_json(second.path / "evals.json")["head_to_head"]
    assert (contest["judge"], contest["orders_disagree"], contest["sign_test_p"]) == ("m1", 1, None)


def test_an_unreadable_verdict_is_missing(bench, monkeypatch):
    monkeypatch.setitem(PAIRWISE, "reply", "I like both. Verdict: maybe")
    with bench.open(WRONG, head_to_head="policy") as run:
        first = evaluate(run, "sft", bench.model("sft"), bench.seed, None)
    with bench.open(RIGHT, head_to_head="policy") as run:
        second = evaluate(run, "m1", bench.model("m1"), bench.seed, first)
    rows = read_rows(second.path / "comparisons.parquet", Comparison)
    assert replace(rows[0], votes=()) == Comparison("p0", None, None, None)
    assert rows[0].failures == ["no_verdict", "no_verdict"]
    assert read_json(second.path / "evals.json")["head_to_head"]["failed_verdicts"] == {"no_verdict": 2}
    assert read_json(second.path / "evals.json")["head_to_head"]["missing"] == 1
    assert _figures(second)["win_rate"]["n"] == 1


def test_the_round_that_made_a_model_is_measured(bench):
    prompt = PROMPTS[0]
    completions = [
        Completion(f"x/{index}", "x", prompt, index, text, 3, "stop")
        for index, text in enumerate(("red kiwi fox", "fox kiwi red", "saw"))
    ]
    completions.append(Completion("y/0", "y", prompt, 0, "red kiwi fox", 3, "stop"))
    completions.append(Completion("n/0", "n", "what is love", 0, "a", 1, "stop"))
    pairs = [
        PreferencePair("x", (Message("user", prompt),), "red kiwi fox", "saw", 5, 1, "x/0", "x/2"),
        PreferencePair("y", (Message("user", prompt),), "saw", "fox kiwi red", 5, 1, "y/0", "y/1"),
        PreferencePair("z", (Message("user", prompt),), "saw", "saw saw", 5, 1, "z/0", "z/1"),
        PreferencePair("j", (Message("user", prompt),), "Score : 1", "Score : 2", 1, 2, "j/0", "j/1", "judgement"),
        PreferencePair("n", (Message("user", "what is love"),), "a", "b", 2, 1, "n/0", "n/1"),
    ]
    with bench.open(RIGHT) as run:
        write_rows(run.dir.samples(1) / "completions.parquet", completions)
        write_rows(run.dir.pairs(1) / "pairs.parquet", pairs)
        artifact = evaluate(run, "m2", bench.model("m2"), bench.seed, None)
    assert artifact.key == "round-1/evals"
    figures = _figures(artifact)
    # The candidates of one prompt are one draw: two prompts, weighted by their candidates.
    assert figures["round_oracle_mean"]["value"] == pytest.approx((5 + 3 + 0 + 5) / 4)
    assert figures["round_oracle_mean"]["n"] == 2
    assert (figures["pairs_truly_better"]["value"], figures["pairs_truly_better"]["n"]) == (pytest.approx(1 / 3), 3)
    assert figures["pairs_truly_worse"]["value"] == pytest.approx(1 / 3)
    measures = read_rows(artifact.path / "measures.parquet", Measure)
    single = {row.unit: row.value for row in measures if row.figure == "candidate_oracle"}
    assert single == {"x/0": 5, "x/1": 3, "x/2": 0, "y/0": 5}
    assert "candidate_oracle" not in figures
    assert {(row.unit, row.value) for row in measures if row.figure == "pairs_truly_better"} == {("x", 1), ("y", 0), ("z", 0)}


def test_without_an_oracle_there_are_no_oracle_figures(bench):
    with bench.open(RIGHT, oracle=False, head_to_head="none") as run:
        first = evaluate(run, "sft", bench.model("sft"), bench.seed, None)
        second = evaluate(run, "m1", bench.model("m1"), bench.seed, first)
    assert not [figure for figure in _figures(second) if "oracle" in figure or "rate_head" in figure]
    assert {row.oracle for row in read_rows(second.path / "outputs.parquet", EvalOutput)} == {None}


def test_truncated_answers_stay_and_are_counted(bench):
    with bench.open({"reverse": "red kiwi fox " * 10, "repeat": "saw owl plum"}) as run:
        artifact = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
    assert _figures(artifact)["truncated_rate"]["value"] == 0.5
    assert len(read_rows(artifact.path / "outputs.parquet", EvalOutput)) == 4


def test_a_prompt_that_does_not_fit_leaves_with_a_reason(bench):
    with bench.open(RIGHT, context_length=7) as run:  # both prompts have seven words, the judge prompts more
        artifact = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
    record = read_json(artifact.path / "record.json")
    assert record["counts"] == {"in": 9, "out": 0, "dropped": {"too_few_votes": 5, "too_long": 4}}
    # Every failure has a name, none is a zero.
    assert read_json(artifact.path / "evals.json")["judge"]["failed_votes"] == {"too_long": 10}
    assert _figures(artifact).keys() == {"judge_scored", "distinct_1", "distinct_2"}
    assert _figures(artifact)["distinct_1"] == {"value": None, "low": None, "high": None, "n": 0}


def test_reuse_and_repeat(bench, tmp_path):
    with bench.open(RIGHT) as run:
        first = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
        before = {file.name: file.read_bytes() for file in first.path.glob("*.parquet")}
        stamp = (first.path / "record.json").stat().st_mtime_ns
        evaluate(run, "m1", bench.model("m1"), bench.seed, None)
        assert (first.path / "record.json").stat().st_mtime_ns == stamp
        (first.path / "record.json").unlink()
        again = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
    assert {file.name: file.read_bytes() for file in again.path.glob("*.parquet")} == before


def test_a_missing_reply_is_an_error_not_a_gap(bench):
    with bench.open({"reverse": "red"}) as run, pytest.raises(EngineError):
        evaluate(run, "m1", bench.model("m1"), bench.seed, None)
