"""judge.mode=expected: the mean of weighed scores and its mass, in judging, evaluations and preflight; files from before."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_bench import Stages, model, record, write_script
from test_engine_choices import by_hand
from test_evals_evaluate import Bench
from test_stage_runs import one_round

from selfreward.artifacts import Artifact, Run, read_json, read_rows, write_rows
from selfreward.config import Config, JudgeConfig, parse_config
from selfreward.engines import SCORES_CHOICES, open_engine
from selfreward.errors import ConfigError, CorruptArtifactError, DriftError, EngineError
from selfreward.evals.evaluate import evaluate
from selfreward.judging import (
    check_judge_mode,
    expected_vote,
    judge_messages,
    judge_settings,
    legal_scores,
    mean_mass,
    rubric_identity,
)
from selfreward.preflight import check_config
from selfreward.rubrics import load_rubric, parse_rubric
from selfreward.stages import judge
from selfreward.types import Completion, Generation, Judgement, Request, Sampling, Vote

ADDITIVE = load_rubric("additive", "pointwise")
AT_ONCE = {"mode": "expected", "justify": False, "num_votes": 1}


def weighed(*weights: float) -> Generation:
    logprobs = tuple(math.log(weight) if weight else -math.inf for weight in weights)
    return Generation("r", "", 10, 0, "stop", choice_logprobs=logprobs)


def rubric_text(scale: str, prefix: str = "'Score: '") -> str:
    return (
        f"---\nname: x\nkind: pointwise\nscale: {scale}\nexample: 'Score: 1'\nverdict_prefix: {prefix}\n---\n"
        "{{ instruction }} {{ response }}"
    )


# --- pure -----------------------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_the_legal_scores() -> None:
    vote = expected_vote(ADDITIVE, weighed(0.1, 0, 0, 0.2, 0.5, 0), None, 0.5)
    assert vote.score == pytest.approx((3 * 0.2 + 4 * 0.5) / 0.8)
    assert vote.mass == pytest.approx(0.8)
    assert vote.distribution == pytest.approx((0.125, 0, 0, 0.25, 0.625, 0))
    assert (vote.failure, vote.text, vote.num_tokens, vote.histogram_score) == (None, "", 0, 3.0)


def test_a_judge_that_wants_to_say_something_else_has_no_score() -> None:
    vote = expected_vote(ADDITIVE, weighed(0, 0, 0, 0, 0.2, 0.2), None, 0.5)
    assert (vote.score, vote.failure) == (None, "off_scale")
    assert vote.mass == pytest.approx(0.4)
    assert vote.distribution == pytest.approx((0, 0, 0, 0, 0.5, 0.5))
    assert expected_vote(ADDITIVE, weighed(0, 0, 0, 0, 0.2, 0.2), None, 0.3).score == pytest.approx(4.5)
    nothing = expected_vote(ADDITIVE, weighed(0, 0, 0, 0, 0, 0), None, 0.0)
    assert (nothing.failure, nothing.mass, nothing.distribution) == ("off_scale", 0.0, None)


def test_the_sampled_justification_stays_with_the_vote() -> None:
    said = Vote(2, "Good. Score: 4", 4.0, None, 7, "length")
    vote = expected_vote(ADDITIVE, weighed(0, 0, 0, 0, 0.5, 0.5), said, 0.5)
    assert dataclasses.replace(vote, mass=None, distribution=None) == dataclasses.replace(said, score=4.5)


def test_engine_failures() -> None:
    too_long = Generation("r", "", 9, 0, "error", "too_long")
    assert expected_vote(ADDITIVE, too_long, None, 0.5).failure == "too_long"
    with pytest.raises(EngineError, match="did not weigh the 6 scores of request 'r'"):
        expected_vote(ADDITIVE, Generation("r", "Score: 4", 9, 3, "stop"), None, 0.5)
    with pytest.raises(EngineError, match="connection lost"):
        expected_vote(ADDITIVE, Generation("r", "", 9, 0, "error", "connection lost"), None, 0.5)


def test_legal_scores_are_the_whole_numbers_of_the_scale() -> None:
    assert legal_scores(parse_rubric(rubric_text("[1, 10]"), "x")) == tuple(range(1, 11))
    assert legal_scores(parse_rubric(rubric_text("[-1, 1]"), "x")) == (-1, 0, 1)


def test_the_mean_mass_leaves_sampled_votes_out() -> None:
    votes = [Vote(0, "", 4.0, None, 1, "stop"), Vote(0, "", 4.0, None, 1, "stop", mass=0.5, distribution=(1.0,))]
    assert mean_mass(votes) == 0.5
    assert mean_mass(votes[:1]) is None


@pytest.mark.parametrize("name", ["additive", "lab_additive"])
def test_shipped_rubrics_say_what_stands_before_a_score(name: str) -> None:
    rubric = load_rubric(name, "pointwise")
    assert rubric.verdict_prefix in f"\n{rubric.example}"
    found = rubric.find_verdict(rubric.example)
    assert found is not None
    assert rubric.example[: found.start].endswith(rubric.verdict_prefix)


def test_a_verdict_prefix_is_checked() -> None:
    with pytest.raises(ConfigError, match="does not read 0 behind verdict_prefix 'Grade: '"):
        parse_rubric(rubric_text("[0, 5]", "'Grade: '"), "x")
    pairwise = "---\nname: x\nkind: pairwise\nexample: 'Verdict: A'\nverdict_prefix: 'Verdict: '\n---\n"
    with pytest.raises(ConfigError, match="verdict_prefix belongs to pointwise rubrics"):
        parse_rubric(pairwise + "{{ instruction }} {{ response_a }} {{ response_b }}", "x")
    without = parse_rubric(rubric_text("[0, 5]", "''"), "x")
    assert without.content_hash == parse_rubric(rubric_text("[0, 5]"), "x").content_hash, "prompts and reading are the same"


def test_where_a_verdict_prefix_is_asked_behind_it_decides_the_votes() -> None:
    """Votes behind another prefix are other votes: a finished stage with them must not be taken for this one."""
    one, other = (parse_rubric(rubric_text("[0, 5]", prefix), "x") for prefix in ("'Score: '", "'In short. Score: '"))
    assert rubric_identity(one, JudgeConfig(**AT_ONCE)) != rubric_identity(other, JudgeConfig(**AT_ONCE))
    for judge_config in (JudgeConfig(), JudgeConfig(mode="expected")):
        assert rubric_identity(one, judge_config) == rubric_identity(other, judge_config) == one.content_hash


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("Fine.\nScore: 4", "Fine.\nScore: "),
        ("**Score:** 4/5", "**Score:** "),
        ("Score: 1 and then Score: [3]", "Score: 1 and then Score: ["),
        ("Score: 1 + 1 + 1 = 3", "Score: 1 + 1 + 1 = "),
    ],
)
def test_the_place_of_the_score_is_found(text: str, prefix: str) -> None:
    found = ADDITIVE.find_verdict(text)
    assert found is not None
    assert text[: found.start] == prefix


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_of_the_default_mode_hold_nothing_of_the_other() -> None:
    """A sampled vote's fingerprint does not move with what only expected scores use."""
    unused = {"mode", "justify", "min_mass"}
    assert not unused & judge_settings(JudgeConfig()).keys()
    assert unused <= judge_settings(JudgeConfig(mode="expected")).keys()
    assert not {"model", "panel"} & judge_settings(JudgeConfig(mode="expected")).keys(), "who votes stands elsewhere"


@pytest.mark.parametrize(
    ("sections", "scale", "message"),
    [
        ({"judge": {"justify": False}}, "[0, 5]", "judge.justify=false needs judge.mode=expected"),
        ({"judge": {"mode": "expected"}}, "[0, 4.5]", "scale of rubric 'x' is 0 to 4.5"),
        ({"judge": {"mode": "expected", "justify": False}}, "[0, 5]", "judge.num_votes=3, but.*set judge.num_votes=1"),
        ({"judge": AT_ONCE}, "[0, 5]", "eval.num_votes=3, but.*set eval.num_votes=1"),
        ({"judge": AT_ONCE, "eval": {"num_votes": 1}}, "[0, 5]", None),
        (
            {"judge": {**AT_ONCE, "panel": [{}, {"model": "m1", "num_votes": 2}]}, "eval": {"num_votes": 1}},
            "[0, 5]",
            r"judge\.panel\[1\]\.num_votes=2, but",
        ),
        ({"judge": {**AT_ONCE, "max_retries": 1}, "eval": {"num_votes": 1}}, "[0, 5]", "judge.max_retries=1, but"),
        ({"judge": {"mode": "expected"}}, "[0, 5]", None),
        ({"judge": {"mode": "expected"}}, "[0, 1.0e+300]", "weighs each whole score, at most 1000, but"),
    ],
)
def test_settings_that_do_not_go_together(sections: dict[str, Any], scale: str, message: str | None) -> None:
    rubric = parse_rubric(rubric_text(scale, "''" if "." in scale else "'Score: '"), "x")
    if message is None:
        check_judge_mode(rubric, parse_config({"name": "x", **sections}))
    else:
        with pytest.raises(ConfigError, match=message):
            check_judge_mode(rubric, parse_config({"name": "x", **sections}))


def test_a_rubric_without_a_prefix_needs_a_justification() -> None:
    config = parse_config({"name": "x", "judge": AT_ONCE, "eval": {"num_votes": 1}})
    with pytest.raises(ConfigError, match="rubric 'x' does not say what stands before a score; add verdict_prefix"):
        check_judge_mode(parse_rubric(rubric_text("[0, 5]", "''"), "x"), config)


def test_preflight_names_what_cannot_be(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(judge={"mode": "expected"})
    check_config(config)
    monkeypatch.setattr("selfreward.preflight.roles.SCORES_CHOICES", SCORES_CHOICES - {"hf"})
    with pytest.raises(ConfigError, match=r"judge\.mode=expected needs an engine.*engine\.name=hf cannot"):
        check_config(config)
    with pytest.raises(ConfigError, match=r"judge\.num_votes=3"):
        check_config(make_config(judge={"mode": "expected", "justify": False}))


@pytest.mark.parametrize(
    ("judge", "setting"),
    [
        ({"model": "endpoint:far"}, r"judge\.model=endpoint:far"),
        ({"panel": [{"model": "policy"}, {"model": "endpoint:far"}]}, r"judge\.panel\[1\]\.model=endpoint:far"),
    ],
)
def test_an_endpoint_has_no_expected_scores(make_config: Callable[..., Config], judge: dict[str, Any], setting: str) -> None:
    far = {"far": {"base_url": "http://localhost:1/v1", "model": "m"}}
    with pytest.raises(ConfigError, match=rf"judge\.mode=expected needs an engine.*{setting} cannot"):
        check_config(make_config(judge={"mode": "expected", **judge}, endpoints=far))


# --- stages and evaluations -----------------------------------------------------------------------------------------


def test_a_round_with_expected_scores(stages: Stages, tmp_path: Path) -> None:
    """The scripted judge says 5, 3 and 1; its table weighs `decent` responses otherwise."""
    script = json.loads(Path(write_script(tmp_path / "weighed.json")).read_text())
    decent = next(entry for entry in script["replies"] if "decent" in entry["match"])
    decent["choices"] = {"3": 0.5, "4": 0.3}
    poor = next(entry for entry in script["replies"] if "poor" in entry["match"])
    poor["choices"] = {"1": 0.1}
    (tmp_path / "weighed.json").write_text(json.dumps(script))
    engine = {"name": "scripted", "script": str(tmp_path / "weighed.json")}
    made = one_round(stages.run(engine=engine, judge={"mode": "expected"}))
    texts = {item.id: item.text for item in read_rows(made["samples"].path / "completions.parquet", Completion)}
    judgements = read_rows(made["judgements"].path / "judgements.parquet", Judgement)
    seen = {}
    for item in judgements:
        seen[texts[item.completion_id]] = item
        assert len(item.votes) == 3
    assert seen["an excellent answer"].score == pytest.approx(5)
    assert seen["a decent answer"].score == pytest.approx((3 * 0.5 + 4 * 0.3) / 0.8)
    assert seen["a decent answer"].votes[0].text == "That is decent.\nScore: 3", "the justification and its own score stay"
    assert {vote.failure for vote in seen["a poor answer"].votes} == {"off_scale"}
    assert {vote.failure for vote in seen["Score: 5, surely"].votes} == {"no_score"}, "failures of a sampled reply keep names"
    notes = record(made["judgements"])["notes"]
    assert set(notes["failures"]) == {"off_scale", "no_score"}
    assert 0.1 < notes["mean_mass"] < 1
    assert set(notes["score_histogram"]) == {"3", "5"}, "counted at the nearest whole score"


def test_a_panel_weighs_behind_replies_that_were_asked_for_again(stages: Stages, tmp_path: Path) -> None:
    """The second member hesitates by the seed; its failed replies stay beside the weighed vote."""
    entry = {"match": "(?s)<response>", "reply": ["Hm.", "Fine.\nScore: 4"], "choices": {"2": 0.5, "4": 0.5}}
    (tmp_path / "unsure.json").write_text(json.dumps({"replies": [entry], "default": None}))
    unsure = f"scripted:{tmp_path / 'unsure.json'}"
    panel = [{"model": "policy"}, {"model": unsure, "num_votes": 4, "weight": 3}]
    made = one_round(stages.run(judge={"mode": "expected", "max_retries": 20, "panel": panel}))
    texts = {item.id: item.text for item in read_rows(made["samples"].path / "completions.parquet", Completion)}
    judgements = read_rows(made["judgements"].path / "judgements.parquet", Judgement)
    seen = {texts[item.completion_id]: item for item in judgements}
    assert seen["an excellent answer"].score == pytest.approx((5 + 3 * 3) / 4), "the members' means, weighted"
    assert seen["Score: 5, surely"].score is None, "the first member has no score for it"
    votes = [vote for item in judgements for vote in item.votes if vote.member.startswith(unsure)]
    assert {(vote.text, vote.score, vote.mass) for vote in votes} == {("Fine.\nScore: 4", 3.0, 1.0)}
    assert {attempt.text for vote in votes for attempt in vote.attempts} == {"Hm."}
    assert {vote.index for vote in votes} == {3, 4, 5, 6}


def test_a_stage_behind_another_prefix_is_another_stage(stages: Stages, tmp_path: Path) -> None:
    def judged(prefix: str) -> Any:
        (tmp_path / "x.md").write_text(rubric_text("[0, 5]", prefix))
        section = {**AT_ONCE, "rubric": str(tmp_path / "x.md"), "model": "scripted:random"}
        return one_round(stages.run(judge=section, eval={"head_to_head": "none", "num_votes": 1}))

    judged("'Score: '")
    judged("'Score: '")
    with pytest.raises(DriftError, match=r"members\.0\.rubric was"):
        judged("'Well. Score: '")


def test_without_a_justification_nothing_is_sampled(stages: Stages) -> None:
    made = one_round(stages.run(judge=AT_ONCE, eval={"head_to_head": "none", "num_votes": 1}))
    judgements = read_rows(made["judgements"].path / "judgements.parquet", Judgement)
    assert {item.score for item in judgements} == {5.0, 3.0, 1.0, None}
    assert {vote.text for item in judgements for vote in item.votes} == {""}
    assert record(made["judgements"])["tokens"]["generated"] == 0


def test_the_random_judge_stays_random(stages: Stages) -> None:
    run = stages.run(judge={"mode": "expected", "model": "scripted:random", "num_votes": 1})
    made = one_round(run)
    scores = {item.score for item in read_rows(made["judgements"].path / "judgements.parquet", Judgement)}
    assert scores <= set(range(6))
    assert len(scores) > 2


def test_other_modes_are_other_stages(stages: Stages) -> None:
    one = record(one_round(stages.run())["judgements"])
    assert not {"mode", "justify", "min_mass"} & one["sections"]["judge"].keys()
    other = record(one_round(stages.run(name="other", judge={"mode": "expected"}))["judgements"])
    assert one["fingerprint"] != other["fingerprint"]


def test_evaluations_use_the_judge_mode_of_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.open({".": "fox"}, num_votes=1) as opened:
        tree = opened.config.model_dump(mode="json")
    tree |= {"name": "expected", "judge": {**tree["judge"], **AT_ONCE}}
    with Run.open(parse_config(tree)) as run:
        made = evaluate(run, "m1", bench.model("m1"), bench.seed, None)
    document = read_json(made.path / "evals.json")
    votes = read_rows(made.path / "votes.parquet", Judgement)
    assert [item.score for item in votes] == [5.0, 3.0, 3.0, None, None]
    assert document["judge"]["failed_votes"] == {"off_scale": 2}
    assert document["judge"]["mean_mass"] == pytest.approx(3 / 5)


def test_a_model_judges_as_by_hand(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """The whole stage with a Hugging Face model: score and mass against one pass a score over whole sequences."""
    config = make_config(judge={**AT_ONCE, "min_mass": 0.0}, eval={"num_votes": 1})
    completions = [Completion(f"p/{i}", "p", "say it", i, text, 2, "stop") for i, text in enumerate(["a sea", "seven", ""])]
    samples = Artifact("round-1/samples", tmp_path / "samples", "x")
    write_rows(samples.path / "completions.parquet", completions)
    config = config.model_copy(update={"judge": config.judge.model_copy(update={"model": config.model.path})})
    with Run.open(config) as run:
        made = judge.run(run, 1, model(run), samples)
    judgements = read_rows(made.path / "judgements.parquet", Judgement)
    with open_engine(config.model.path, config) as engine:
        for item, judgement in zip(completions, judgements, strict=True):
            prompt = judge_messages(ADDITIVE, item.prompt, item.text)
            request = Request("r", prompt, Sampling(1), 0, "Score:", tuple(f" {score}" for score in range(6)))
            weights = [math.exp(value) for value in by_hand(engine, request)]  # type: ignore[arg-type]
            assert judgement.votes[0].mass == pytest.approx(sum(weights), rel=1e-4)
            assert judgement.score == pytest.approx(sum(k * w for k, w in enumerate(weights)) / sum(weights), abs=1e-4)


# --- files from before ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OldVote:
    """A vote as it was stored before it could carry a distribution."""

    index: int
    text: str
    score: float | None
    failure: str | None
    num_tokens: int
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class OldJudgement:
    """A judgement with such votes."""

    completion_id: str
    votes: tuple[OldVote, ...]
    score: float | None


@dataclasses.dataclass(frozen=True)
class Scored:
    """A row whose score is always there."""

    score: float


@dataclasses.dataclass(frozen=True)
class MaybeScored:
    """The same once it may be missing."""

    score: float | None


def test_judgements_from_before_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "old.parquet", [OldJudgement("c", (OldVote(0, "Score: 4", 4.0, None, 3, "stop"),), 4.0)])
    read = read_rows(tmp_path / "old.parquet", Judgement)
    assert read == [Judgement("c", (Vote(0, "Score: 4", 4.0, None, 3, "stop"),), 4.0)]
    vote = Vote(0, "", 4.5, None, 0, "stop", mass=0.9, distribution=(0.5, 0.5))
    write_rows(tmp_path / "new.parquet", [Judgement("c", (vote,), 4.5)])
    assert read_rows(tmp_path / "new.parquet", Judgement)[0].votes[0].distribution == (0.5, 0.5)
    with pytest.raises(CorruptArtifactError):
        read_rows(tmp_path / "new.parquet", OldJudgement)


def test_a_file_that_lacks_a_field_without_default_is_refused(tmp_path: Path) -> None:
    for drop in ("index", "failure"):
        fields = [field for field in pa.schema(pq.read_schema(_stored(tmp_path))) if field.name != drop]
        pq.write_table(pa.Table.from_pylist([], schema=pa.schema(fields)), tmp_path / "cut.parquet")
        with pytest.raises(CorruptArtifactError, match="does not hold Vote rows"):
            read_rows(tmp_path / "cut.parquet", Vote)


def _stored(folder: Path) -> Path:
    write_rows(folder / "votes.parquet", [], Vote)
    return folder / "votes.parquet"


def test_a_field_may_become_optional_but_not_required(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", [Scored(4.0)])
    assert read_rows(tmp_path / "a.parquet", MaybeScored) == [MaybeScored(4.0)]
    write_rows(tmp_path / "b.parquet", [MaybeScored(4.0)])
    with pytest.raises(CorruptArtifactError, match="with other types"):
        read_rows(tmp_path / "b.parquet", Scored)
