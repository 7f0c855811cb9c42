"""stages/judge.py: retries, ways to sum votes up, panels, and who may be the judge."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_bench import Stages, model, record

from selfreward.artifacts import Artifact, Stage, read_rows, write_json, write_rows
from selfreward.config import Config, parse_config
from selfreward.engines import open_engine
from selfreward.errors import ConfigError, CorruptArtifactError, EngineError
from selfreward.evals.judging import judge_ranked
from selfreward.judging import aggregate, judgement_of
from selfreward.preflight import check_config
from selfreward.rubrics import load_rubric
from selfreward.stages import eft, judge, replay
from selfreward.types import Attempt, Completion, Counts, Drop, EftExample, Judgement, RankedSet, Vote

NUM = 12


def script(path: Path, *replies: str, **changes: Any) -> str:
    path.write_text(json.dumps({"replies": [{"match": ".", "reply": list(replies)}]} | changes))
    return str(path)


@pytest.fixture
def samples(tmp_path: Path) -> Artifact:
    rows = [Completion(f"p/{number}", "p", "name a river", number, f"answer {number}", 2, "stop") for number in range(NUM)]
    write_rows(tmp_path / "samples" / "completions.parquet", rows, Completion)
    return Artifact("samples", tmp_path / "samples", "f")


def judgements(artifact: Artifact) -> list[Judgement]:
    return read_rows(artifact.path / "judgements.parquet", Judgement)


# --- retries --------------------------------------------------------------------------------------------------------


def test_failed_votes_are_asked_again_and_others_stay_as_they_are(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    name = script(tmp_path / "s.json", "no idea", "Score: 3", "Score: 4", "Score: 77", "")
    once = stages.run(name="once", engine={"script": name})
    again = stages.run(name="again", engine={"script": name}, judge={"max_retries": 20})
    plain, retried = judge.run(once, 1, model(once), samples), judge.run(again, 1, model(again), samples)
    before = [vote for item in judgements(plain) for vote in item.votes]
    after = [vote for item in judgements(retried) for vote in item.votes]
    assert {vote.failure for vote in before} == {None, "no_score", "out_of_range", "empty"}
    assert {vote.failure for vote in after} == {None}
    for old, new in zip(before, after, strict=True):
        if old.failure is None:
            assert new == old, "a vote without a failure is the same with and without retries"
        else:
            assert new.attempts[0] == Attempt(old.text, old.failure, old.num_tokens, old.finish_reason)
            assert new.index == old.index
    notes, tokens = record(retried)["notes"], record(retried)["tokens"]
    attempts = [attempt for vote in after for attempt in vote.attempts]
    assert notes["num_failed_votes"] == 0
    assert notes["num_retries"] == len(attempts) == sum(notes["retried_failures"].values()) > 0
    assert tokens["generated"] == sum(item.num_tokens or 0 for item in (*after, *attempts))
    assert record(plain)["notes"]["num_retries"] == 0


def test_retries_end_and_the_vote_counts_as_failed(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    run = stages.run(engine={"script": script(tmp_path / "s.json", "no idea", "hm")}, judge={"max_retries": 2, "num_votes": 1})
    made = judge.run(run, 1, model(run), samples)
    for item in judgements(made):
        assert item.score is None
        assert [attempt.failure for attempt in item.votes[0].attempts] == ["no_score"] * 2
    assert len({attempt.text for item in judgements(made) for attempt in item.votes[0].attempts}) == 2, "seeds differ"
    assert record(made)["notes"]["failures"] == {"no_score": NUM}
    assert record(made)["notes"]["retried_failures"] == {"no_score": 2 * NUM}
    assert record(made)["counts"]["dropped"] == {"too_few_votes": NUM}


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_size_of_chunks_changes_nothing(stages: Stages, samples: Artifact, tmp_path: Path, size: int) -> None:
    name = script(tmp_path / "s.json", "no idea", "Score: 3", "Score: 5")
    whole, parts = (
        stages.run(name=f"c{chunk}", engine={"script": name, "chunk_size": chunk}, judge={"max_retries": 2})
        for chunk in (500, size)
    )
    made = [judge.run(run, 1, model(run), samples) for run in (whole, parts)]
    assert record(made[0])["outputs"] == record(made[1])["outputs"]
    assert record(made[0])["tokens"] == record(made[1])["tokens"]


def test_an_interrupted_stage_goes_on_with_the_same_retries(
    stages: Stages, samples: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = script(tmp_path / "s.json", "no idea", "Score: 3", "Score: 5")
    settings: dict[str, Any] = {"engine": {"script": name, "chunk_size": 6}, "judge": {"max_retries": 2}}
    whole = stages.run(name="whole", **settings)
    expected = judge.run(whole, 1, model(whole), samples)
    run, calls = stages.run(name="cut", **settings), [0]
    ask = judge.sampled_votes

    def power_cut(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise EngineError("power cut")
        return ask(*arguments)

    monkeypatch.setattr(judge, "sampled_votes", power_cut)
    with pytest.raises(EngineError, match="power cut"):
        judge.run(run, 1, model(run), samples)
    made = judge.run(run, 1, model(run), samples)
    assert record(made)["outputs"] == record(expected)["outputs"]
    assert record(made)["tokens"] == record(expected)["tokens"]
    assert calls[0] == 4 + 3, "three chunks were done, three were left"


def test_eft_replay_and_evaluation_ask_again_too(stages: Stages, tmp_path: Path) -> None:
    name = script(tmp_path / "s.json", "no idea", "hm", "Score: 1", "Score: 5", "Score: 5")
    settings = {"max_retries": 50, "aggregate": "median", "num_votes": 5}
    run = stages.run(engine={"script": name}, judge=settings, eval={"num_votes": 5}, replay={"num_votes": 5})
    rubric = load_rubric("additive", "pointwise")
    sets = [RankedSet("r", "name a river", ("the Rhine", "the Moon"), (0, 1))]
    item = EftExample("e", "name a river", "the Rhine", "Score: 5", 5.0)
    made: dict[str, list[Judgement]] = {}

    def work(stage: Stage) -> Counts:
        with open_engine("m1", run.config) as engine:
            made["eft"] = eft.judge_sets(stage, engine, rubric, sets)
            made["replay"] = replay.judge_items(stage, engine, rubric, [item])
            made["evals"] = judge_ranked(stage, engine, rubric, sets)
        return Counts(0, 0)

    run.stage("trial", {}, {}, work)
    votes = {name: [vote for judgement in rows for vote in judgement.votes] for name, rows in made.items()}
    assert {name: len(items) for name, items in votes.items()} == {"eft": 6, "replay": 5, "evals": 10}
    for items in votes.values():
        assert all(vote.score is not None for vote in items)
        assert any(vote.attempts for vote in items)
    assert [row.score for row in made["evals"]] == [median(vote.score or 0.0 for vote in row.votes) for row in made["evals"]]
    assert made["evals"][0].score in (1.0, 5.0)


# --- one score from several -----------------------------------------------------------------------------------------


def vote(score: float | None, index: int = 0, member: str = "") -> Vote:
    return Vote(index, "", score, None if score is not None else "no_score", 1, "stop", member)


@pytest.mark.parametrize(
    ("how", "scores", "expected"),
    [
        ("mean", [0, 4, 5], 3.0),
        ("median", [0, 4, 5], 4.0),
        ("median", [0, 4, 5, 5], 4.5),
        ("median", [2], 2.0),
        ("trimmed-mean", [0, 4, 5], 4.0),
        ("trimmed-mean", [5, 0, 3, 4], 3.5),
        ("trimmed-mean", [5, 5, 1, 0, 0], 2.0),
        ("trimmed-mean", [1, 4], 2.5),
        ("trimmed-mean", [3], 3.0),
    ],
)
def test_ways_to_sum_votes_up(how: Any, scores: list[float], expected: float) -> None:
    assert aggregate(scores, how) == expected
    assert aggregate(scores[::-1], how) == expected
    assert judgement_of("c", [vote(None), *(vote(score) for score in scores)], 1, how).score == expected


@given(
    st.lists(st.sampled_from([0.0, 1.5, 3.0, 5.0]), min_size=1, max_size=9), st.sampled_from(["mean", "median", "trimmed-mean"])
)
def test_a_sum_lies_between_the_votes(scores: list[float], how: Any) -> None:
    assert min(scores) <= aggregate(scores, how) <= max(scores)


def test_the_stage_sums_up_as_told(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    name = script(tmp_path / "s.json", "Score: 0", "Score: 5", "Score: 4")
    for how in ("mean", "median", "trimmed-mean"):
        run = stages.run(name=how, engine={"script": name}, judge={"aggregate": how, "num_votes": 5})
        for item in judgements(judge.run(run, 1, model(run), samples)):
            assert item.score == aggregate([score for vote in item.votes if (score := vote.score) is not None], how)  # type: ignore[arg-type]


# --- panels ---------------------------------------------------------------------------------------------------------


def test_a_panel_is_the_weighted_mean_of_its_members() -> None:
    votes = [vote(4, 0, "a"), vote(2, 1, "a"), vote(None, 2, "a"), vote(0, 3, "b")]
    assert judgement_of("c", votes, 1, "mean", {"a": 1.0, "b": 1.0}).score == 1.5
    assert judgement_of("c", votes, 1, "mean", {"a": 3.0, "b": 1.0}).score == 2.25
    assert judgement_of("c", votes, 2, "mean", {"a": 3.0, "b": 1.0}).score is None, "b has one vote"
    assert judgement_of("c", votes[:3], 1, "mean", {"a": 1.0, "b": 1.0}).score is None, "nobody stands in for b"
    with pytest.raises(AssertionError, match="strangers"):
        judgement_of("c", votes, 1, "mean", {"a": 1.0})


def test_a_panel_votes_and_its_record_names_everyone(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    own = script(tmp_path / "own.json", "Score: 4", "Score: 2")
    other = f"scripted:{script(tmp_path / 'other.json', 'Score: 1', 'no idea')}"
    panel = [{}, {"rubric": "concise", "weight": 0.5, "num_votes": 1}, {"model": other, "num_votes": 4, "weight": 2}]
    run = stages.run(engine={"script": own}, judge={"panel": panel})
    made = judge.run(run, 1, model(run), samples)
    names = ["m1 additive", "m1 concise", f"{other} additive"]
    for item in judgements(made):
        assert [vote.index for vote in item.votes] == list(range(8))
        assert [vote.member for vote in item.votes] == [names[0]] * 3 + [names[1]] + [names[2]] * 4
        parts = [aggregate([v.score for v in item.votes if v.member == name and v.score is not None], "mean") for name in names]
        assert item.score == pytest.approx((parts[0] + 0.5 * parts[1] + 2 * parts[2]) / 3.5)
    assert record(made)["roles"] == {"policy": "m1", "judge": " + ".join(names)}
    facts = record(made)["notes"]["judges"]
    assert [(fact["member"], fact["weight"], fact["num_votes"]) for fact in facts] == [
        (names[0], 1.0, 3), (names[1], 0.5, 1), (names[2], 2.0, 4),
    ]  # fmt: skip
    assert len({fact["rubric_hash"] for fact in facts}) == 2
    assert set(record(made)["inputs"]) == {"samples", "model"}


def test_who_is_added_to_a_panel_changes_no_vote_of_the_others(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    name = script(tmp_path / "s.json", *(f"Take {number}. Score: {number % 6}" for number in range(50)))
    alone, both = (
        stages.run(name=f"n{len(panel)}", engine={"script": name}, judge={"panel": panel})
        for panel in ([], [{}, {"rubric": "safety"}])
    )
    one, two = (judgements(judge.run(run, 1, model(run), samples)) for run in (alone, both))
    assert [item.votes for item in one] == [item.votes[:3] for item in two]
    assert all({v.text for v in item.votes[3:]} != {v.text for v in item.votes[:3]} for item in two), "seeds differ"


def test_a_member_without_votes_takes_the_response_with_it(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    mute = f"scripted:{script(tmp_path / 'mute.json', 'no idea')}"
    run = stages.run(engine={"script": script(tmp_path / "s.json", "Score: 5")}, judge={"panel": [{}, {"model": mute}]})
    made = judge.run(run, 1, model(run), samples)
    assert record(made)["counts"] == {"in": NUM, "out": 0, "dropped": {"too_few_votes": NUM}}
    assert len(read_rows(made.path / "rejects.parquet", Drop)) == NUM


@pytest.mark.parametrize(
    ("judge_section", "message"),
    [
        ({"panel": [{}, {}]}, "sits there twice"),
        ({"panel": [{"num_votes": 1}], "min_votes": 2}, r"judge.min_votes=2 is above judge.panel\[0\].num_votes=1"),
        ({"panel": [{"weight": 0}]}, r"judge.panel\[0\].weight"),
        ({"panel": [{"modle": "x"}]}, r"unknown setting 'judge.panel\[0\].modle'; did you mean 'model'"),
        ({"max_retries": 1, "temperature": 0}, "judge.max_retries=1 asks again, but with judge.temperature=0"),
        ({"max_retries": -1}, "max_retries"),
        ({"aggregate": "mode"}, "aggregate"),
    ],
)
def test_wrong_settings_are_named(judge_section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "judge": judge_section})


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ([{}, {"rubric": "multiple_choice"}], r"'additive' \(0 to 5\) and 'multiple_choice' \(1 to 5\) have different scales"),
        ([{}, {"rubric": "pairwise"}], r"judge.panel\[1\].rubric='pairwise' is of kind pairwise, but pointwise is needed"),
        ([{}, {"rubric": "saftey"}], r"judge.panel\[1\].rubric='saftey': did you mean 'safety'"),
        ([{"model": "./nowhere"}], r"judge.panel\[0\].model='./nowhere' is no folder here"),
        ([{"model": "scripted:nothing"}], r"judge.panel\[0\].model: there is no script 'nothing'"),
    ],
)
def test_a_panel_is_checked_before_a_model_loads(make_config: Callable[..., Config], panel: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(make_config(judge={"panel": panel}))


def test_a_good_panel_passes_and_is_shown(make_config: Callable[..., Config], tiny_model_dir: Path) -> None:
    panel = [{}, {"model": str(tiny_model_dir), "rubric": "safety"}, {"model": "m1"}]
    lines = check_config(make_config(judge={"panel": panel}))
    assert f"judge.panel[1].model: {tiny_model_dir} (llama)" in lines
    assert any(line.startswith("judge.panel[1].rubric: safety (") for line in lines)


def test_two_rubrics_of_one_name_are_refused(stages: Stages, samples: Artifact, tmp_path: Path) -> None:
    text = "---\nname: additive\nkind: pointwise\nscale: [0, 5]\nexample: 'Score: 3'\n---\n{{ instruction }} {{ response }}\n"
    (tmp_path / "mine.md").write_text(text)
    run = stages.run(judge={"panel": [{}, {"rubric": str(tmp_path / "mine.md")}]})
    with pytest.raises(ConfigError, match=r"two members 'm1 additive'; give their rubrics different names"):
        judge.run(run, 1, model(run), samples)


# --- who judges -----------------------------------------------------------------------------------------------------


def test_a_frozen_m1_judges_every_round(stages: Stages, samples: Artifact) -> None:
    run = stages.run(judge={"model": "m1"})
    with pytest.raises(CorruptArtifactError, match=r"m1.record.json"):
        judge.run(run, 2, model(run, "round-1/model"), samples)
    first = model(run, "m1")
    write_json(first.path / "record.json", {"fingerprint": first.fingerprint, "outputs": {}})
    made = judge.run(run, 2, model(run, "round-1/model"), samples)
    assert record(made)["roles"] == {"policy": "m2", "judge": "m1"}
    assert record(made)["inputs"] == {"samples": "f", "m1": first.fingerprint}
    assert {vote.member for item in judgements(made) for vote in item.votes} == {"m1 additive"}


def test_the_policy_judges_by_default(stages: Stages, samples: Artifact) -> None:
    run = stages.run()
    made = judge.run(run, 2, model(run, "round-1/model"), samples)
    assert record(made)["roles"] == {"policy": "m2", "judge": "m2"}
    assert {vote.member for item in judgements(made) for vote in item.votes} == {"m2 additive"}
