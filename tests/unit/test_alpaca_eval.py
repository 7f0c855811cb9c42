"""AlpacaEval 2: the definitions on hand-computed tables, and the published figures of three real models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from selfreward.cli import app
from selfreward.errors import DataError, UsageError
from selfreward.evals.alpaca_eval import (
    Annotation,
    Weights,
    evaluate_alpaca,
    fit_weights,
    length_terms,
    read_annotations,
    read_difficulty,
    read_weights,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval"
MODELS = ["humpback-llama2-70b", "gpt-3.5-turbo-1106", "vicuna-7b-v1.5"]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data/alpaca_eval beside the repository")


ROW = {"instruction": "x", "output_1": "a", "output_2": "b", "preference": 1}


def rows(*preferences: float | None) -> list[Annotation]:
    return [Annotation(f"i{n}", "x" * 10, "y" * (5 + n), value) for n, value in enumerate(preferences)]


def test_win_rate_and_error_by_hand():
    result = evaluate_alpaca(rows(1.0, 2.0, None, 1.25))
    assert result.win_rate == pytest.approx(100 * (0 + 1 + 0.5 + 0.25) / 4)
    wins = [0, 1, 0.5, 0.25]
    mean = sum(wins) / 4
    assert result.standard_error == pytest.approx(100 * math.sqrt(sum((win - mean) ** 2 for win in wins) / 3 / 4))
    assert (result.n, result.draws) == (4, 1)
    assert (result.baseline_mean_length, result.mean_length) == (10, 6.5)


def test_given_weights_predict_at_equal_length():
    weights = Weights(length=-2.0, difficulty=0.5, model=-1.0)
    result = evaluate_alpaca(rows(1.0, 2.0), {"i0": 2.0, "i1": -4.0}, weights)
    assert result.length_controlled_win_rate == pytest.approx(100 * (1 / (1 + math.e**0) + 1 / (1 + math.e**3)) / 2)
    assert not result.fitted


def test_the_fit_finds_the_weights_that_made_the_wins():
    rng = np.random.default_rng(5)
    terms, hard = np.tanh(rng.normal(size=4000)), rng.normal(size=4000) * 2
    chance = 1 / (1 + np.exp(-(-1.5 * terms + 0.8 * hard - 0.7)))
    found = fit_weights(chance, terms, hard)
    assert (found.length, found.difficulty, found.model) == pytest.approx((-1.5, 0.8, -0.7), abs=0.02)


def test_length_terms_by_hand_and_without_any_difference():
    terms = length_terms(np.array([[10.0, 4.0], [10.0, 10.0], [4.0, 10.0]]))
    assert terms == pytest.approx(np.tanh([1.0, 0.0, -1.0]))
    assert not length_terms(np.array([[3.0, 1.0], [5.0, 3.0]])).any()


def test_a_model_that_always_wins_has_a_finite_rate():
    result = evaluate_alpaca(rows(*[2.0] * 30))
    assert 97 < result.length_controlled_win_rate <= 100
    assert result.win_rate == 100


@pytest.mark.parametrize(("preference", "wins"), [(2.0, 12), (1.0, 0), (None, 6)])
def test_preferences_that_are_all_equal_do_not_make_a_rate_certain(preference, wins):
    result = evaluate_alpaca(rows(*[preference] * 12))
    oracle = stats.binomtest(wins, 12).proportion_ci(method="wilson")
    ends = (result.length_controlled_low, result.length_controlled_high)
    assert ends == pytest.approx((100 * oracle.low, 100 * oracle.high))
    kept = evaluate_alpaca(rows(*[preference] * 12), None, Weights(-1.0, 0.0, 0.3))
    assert kept.length_controlled_low == kept.length_controlled_high, "given weights say all there is to say"


def test_the_weights_of_a_model_that_nobody_named(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"m": {"glm": {}}}))
    with pytest.raises(DataError, match=r"has weights of 'm', and the annotations name no model \(generator_2\)"):
        read_weights(file, "")
    for missing, message in (("nowhere.json", "is no file here; give a JSON file"), ("", "is a folder, not a file")):
        with pytest.raises(DataError, match=message):
            read_weights(tmp_path / missing, "m")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--limit", "3"], "--limit 3"),
        (["--rubric", "pairwise", "--name", "x"], "--name x, --rubric pairwise"),
        (["--judge", "lab"], "--judge lab"),
        (["sample.max_tokens=3"], "section.key=value sample.max_tokens=3"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, extra, named):
    (tmp_path / "a.json").write_text(json.dumps([ROW, ROW]))
    positional = [word for word in extra if "=" in word]
    options = [word for word in extra if "=" not in word]
    done = CliRunner().invoke(app, ["eval", "alpaca", *positional, "--annotations", str(tmp_path / "a.json"), *options])
    assert isinstance(done.exception, UsageError)
    assert f"leave {named} out" in str(done.exception)


@needs_data
@pytest.mark.parametrize("model", MODELS)
def test_published_figures(model):
    published = json.loads((DATA / "published.json").read_text())[model]
    annotations, difficulty = read_annotations(DATA / f"{model}.json"), read_difficulty(DATA / "instruction_difficulty.json")
    known = evaluate_alpaca(annotations, difficulty, read_weights(DATA / "published.json", model))
    assert known.win_rate == pytest.approx(published["win_rate"], abs=0.01)
    assert known.standard_error == pytest.approx(published["standard_error"], abs=0.001)
    assert known.length_controlled_win_rate == pytest.approx(published["length_controlled_winrate"], abs=0.05)
    for result in (evaluate_alpaca(annotations, difficulty), evaluate_alpaca(annotations)):
        assert result.length_controlled_win_rate == pytest.approx(published["length_controlled_winrate"], abs=4)
        assert result.length_controlled_low < result.length_controlled_win_rate < result.length_controlled_high
    assert round(known.mean_length) == pytest.approx(published["avg_length"], abs=1)


@needs_data
def test_the_command_prints_the_figures():
    file = DATA / "vicuna-7b-v1.5.json"
    args = ["eval", "alpaca", "--annotations", str(file), "--glm", str(DATA / "published.json")]
    shown = CliRunner().invoke(app, [*args, "--difficulty", str(DATA / "instruction_difficulty.json"), "--json"])
    figures = json.loads(shown.stdout)
    assert figures["win_rate"] == pytest.approx(4.7975, abs=0.001)
    assert figures["length_controlled_win_rate"] == pytest.approx(7.617, abs=0.05)
    assert figures["n"] == 805
    assert "standard_error" in figures
    text = CliRunner().invoke(app, ["eval", "alpaca", "--annotations", str(file)]).stdout
    assert "without difficulties" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "JSON list"),
        ("[1", "cannot be read as JSON"),
        ("[[]]", "annotation 1: must be an object, got \\[\\]"),
        ('[{"instruction": "x", "output_1": "a"}]', "annotation 1: output_2 must be a text, got None"),
        ('[{"instruction": "x", "output_1": "a", "output_2": "b", "preference": 3}]', "preference must be a number from 1"),
        ('[{"instruction": "x", "output_1": "a", "output_2": "b", "preference": true}]', "preference must be a number"),
        ("[]", "a.json holds 0 annotations; a rate with an error needs 2 or more"),
        ('[{"instruction": "x", "output_1": "a", "output_2": "b", "preference": 1}]', "a.json holds 1 annotation; "),
        ('[{"instruction": "x", "output_1": "a", "output_2": "b"}]', "annotation 1: preference is missing; .* null for a draw"),
        (json.dumps([{**ROW, "generator_2": "one"}, {**ROW, "generator_2": "two"}]), "several models \\('one', 'two'\\)"),
    ],
)
def test_bad_annotations_are_refused_with_their_place(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        evaluate_alpaca(read_annotations(tmp_path / "a.json"))


def test_difficulties_must_be_complete():
    with pytest.raises(DataError, match="no difficulty is given for the instruction 'i1'"):
        evaluate_alpaca(rows(1.0, 2.0), {"i0": 1.0})
    with pytest.raises(DataError, match="give the difficulties too"):
        evaluate_alpaca(rows(1.0, 2.0), None, Weights(1.0, 1.0, 1.0))


@pytest.mark.parametrize("shape", [lambda w: w, lambda w: {"glm": w}, lambda w: {"m": {"glm": w}}, lambda w: {"m": w}])
def test_weights_are_read_in_every_shape(tmp_path, shape):
    weights = {"tanh_std_delta_len": -1.0, "instruction_difficulty": 0.5, "model": 2}
    (tmp_path / "w.json").write_text(json.dumps(shape(weights)))
    assert read_weights(tmp_path / "w.json", "m") == Weights(-1.0, 0.5, 2.0)


def test_weights_that_lack_something_are_refused(tmp_path):
    (tmp_path / "w.json").write_text('{"glm": {"model": 1.0}}')
    with pytest.raises(DataError, match="lacks the weights tanh_std_delta_len, instruction_difficulty"):
        read_weights(tmp_path / "w.json", "m")
    (tmp_path / "t.json").write_text('{"other": {}}')
    with pytest.raises(DataError, match="no weights of 'm'; it has those of 'other'"):
        read_weights(tmp_path / "t.json", "m")
