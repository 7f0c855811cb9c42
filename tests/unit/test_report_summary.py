"""summary.json of hand-written run directories: exact numbers, nulls where nothing was measured, the verdict's rule."""

import json
import subprocess
import sys

import pytest
from report_run import config_of, measures_of, write_evals, write_record, write_round, write_start

from selfreward.artifacts import read_json, write_json
from selfreward.errors import CorruptArtifactError
from selfreward.report.html import render_report
from selfreward.report.status import render_status, run_status
from selfreward.report.summary import MODEL_FIGURES, ROUND_FIGURES, build_summary, write_summary
from selfreward.report.table import render_table
from selfreward.report.verdict import RULE, find_warnings, judge_run
from selfreward.statistics import wilson
from selfreward.types import Measure

NO_VALUE = {"value": None, "low": None, "high": None, "n": 0}

ROUND_1 = {
    "p one": [("a", [5, 5]), ("b", [2, 3])],
    "p two": [("a", [4, 4]), ("b", [4, "no_score"])],
    "p three": [("a", ["truncated", "no_score"]), ("b", [1, 1])],
}
TRUTH_1 = {"r1-p0/0": 5, "r1-p0/1": 2, "r1-p1/0": 4, "r1-p1/1": 4, "r1-p2/0": 1, "r1-p2/1": 1}
TRUTH_2 = {"r2-p0/0": 4, "r2-p0/1": 4, "r2-p1/0": 3, "r2-p1/1": 4}
HELDOUT_VOTES = {"s0": [[1, 2], [3, 3]], "s1": [[4, 3], [0, 1], [1, 1]]}
ROUND_2 = {"q one": [("a", [5, 5]), ("b", [5, 4])], "q two": [("a", [5, 5]), ("b", [5, 5])]}


def true_scores(scores):
    return [Measure("candidate_oracle", unit, float(score), 1.0) for unit, score in scores.items()]


@pytest.fixture
def run_dir(tmp_path):
    """Two rounds, oracle figures by hand: M1 mean 2, M3 mean 4 on the same four prompts."""
    config = config_of(tmp_path / "tiny", num_rounds=2)
    directory = write_start(tmp_path / "tiny", config)
    sft = measures_of(oracle_mean=[1, 2, 1, 2], judge_pairwise=[(0.5, 3), (0.5, 1)])
    write_evals(directory, "sft", sft, votes={"s0": [["no_score", 2], ["truncated", "no_score"]], "s1": [[3, 4]]})
    m1 = {"oracle_mean": [2, 3, 1, 2], "oracle_exact": [0, 0, 0, 0], "mean_length": [10, 20, 30, 40]}
    write_evals(directory, "m1", measures_of(**m1, judge_pairwise=[(1, 3), (0, 1)]), votes=HELDOUT_VOTES)
    write_round(directory, 1, ROUND_1)
    contest = {"win_rate": [1, 1, 0, 0], "tie_rate_head_to_head": [0, 0, 1, 0], "lose_rate": [0, 0, 0, 1]}
    write_evals(
        directory, "m2", measures_of(oracle_mean=[3, 3, 3, 3], pairs_truly_better=[1], **contest) + true_scores(TRUTH_1)
    )
    write_round(directory, 2, ROUND_2)
    m3 = {"oracle_mean": [4, 5, 3, 4], "oracle_exact": [0, 1, 0, 0], "mean_length": [20, 20, 20, 20]}
    m3 |= {"judge_pairwise": [(0.5, 3), (0.5, 1)], "round_oracle_mean": [3, 4]}
    higher = {key: [[score + 1 for score in scores] for scores in items] for key, items in HELDOUT_VOTES.items()}
    write_evals(directory, "m3", measures_of(**m3) + true_scores(TRUTH_2), votes=higher)
    return directory


def test_models_and_exact_values(run_dir):
    summary = build_summary(run_dir)
    models = {row["model"]: row for row in summary["models"]}
    assert list(models) == ["SFT", "M1", "M2", "M3"]
    assert models["M1"]["oracle_mean"]["value"] == 2.0
    assert models["M1"]["oracle_mean"]["n"] == 4
    assert models["M1"]["judge_pairwise"]["value"] == 0.75
    assert models["M3"]["oracle_exact"] == {"value": 0.25, "low": wilson(1, 4).low, "high": wilson(1, 4).high, "n": 4}
    assert models["M2"]["win_rate"]["value"] == 0.5
    assert models["M1"]["win_rate"] is None
    for row in models.values():
        assert {*MODEL_FIGURES, *ROUND_FIGURES} <= row.keys()
        for prefix in ("", "round_"):
            assert {f"{prefix}parse_failures", f"{prefix}score_histogram"} <= row.keys()


def test_every_models_votes_on_the_held_out_responses(run_dir):
    models = {row["model"]: row for row in build_summary(run_dir)["models"]}
    assert models["SFT"]["judge_mean"]["value"] == pytest.approx((2 + 3.5) / 2)
    assert models["SFT"]["judge_mean"]["n"] == 2
    # Three of six votes failed, all in one of the two sets: the set is the unit.
    assert (models["SFT"]["parse_failure_rate"]["value"], models["SFT"]["parse_failure_rate"]["n"]) == (0.5, 2)
    assert models["SFT"]["parse_failures"] == {"no_score": 2, "truncated": 1}
    assert models["SFT"]["score_histogram"] == {"2": 1, "3": 1, "4": 1}
    assert models["M1"]["judge_mean"]["value"] == pytest.approx((1.5 + 3 + 3.5 + 0.5 + 1) / 5)
    assert models["M3"]["judge_mean"]["value"] == pytest.approx((1.5 + 3 + 3.5 + 0.5 + 1) / 5 + 1)
    assert (models["M3"]["parse_failure_rate"]["value"], models["M3"]["parse_failures"]) == (0.0, {})
    assert models["M2"]["judge_mean"] == NO_VALUE
    assert models["M2"]["parse_failure_rate"] == NO_VALUE


def test_round_figures_stand_with_the_model_that_ran_the_round(run_dir):
    models = {row["model"]: row for row in build_summary(run_dir)["models"]}
    first = models["M1"]
    # Six candidates, one of them without any valid vote: 5, 2.5, 4, 4, 1.
    assert first["round_judge_mean"]["value"] == pytest.approx((5 + 2.5 + 4 + 4 + 1) / 5)
    assert first["round_judge_mean"]["n"] == 3
    assert first["round_parse_failure_rate"]["value"] == pytest.approx(3 / 12)
    assert first["round_parse_failure_rate"]["n"] == 3, "votes on one prompt's candidates are not independent"
    assert first["round_parse_failures"] == {"no_score": 2, "truncated": 1}
    assert first["round_score_histogram"] == {"1": 2, "2": 1, "3": 1, "4": 3, "5": 2}
    assert first["pair_yield"]["value"] == pytest.approx(1 / 3)
    assert first["tie_rate"]["value"] == pytest.approx(1 / 3)
    assert first["pairs_truly_better"]["value"] == 1.0
    assert models["M2"]["round_judge_mean"]["value"] == pytest.approx(4.875)
    assert models["M2"]["round_parse_failures"] == {}
    assert models["M2"]["round_oracle_mean"]["value"] == 3.5
    for name in ("SFT", "M3"):
        assert [models[name][figure] for figure in ROUND_FIGURES] == [NO_VALUE] * len(ROUND_FIGURES)
        assert models[name]["round_score_histogram"] is None


def test_rounds_beyond_the_settings_are_not_this_runs(run_dir):
    config = read_json(run_dir.config)
    write_json(run_dir.config, config | {"num_rounds": 1})
    models = {row["model"]: row for row in build_summary(run_dir)["models"]}
    assert list(models) == ["SFT", "M1", "M2"]
    assert [models["M2"][figure] for figure in ROUND_FIGURES] == [NO_VALUE] * len(ROUND_FIGURES)
    assert models["M1"]["pair_yield"]["value"] == pytest.approx(1 / 3)


def test_a_round_without_a_single_prompt(tmp_path):
    """pair.min_pairs=0 lets a round pass its model on although it made nothing."""
    directory = write_start(tmp_path / "empty", config_of(tmp_path / "empty", num_rounds=1))
    for name in ("sft", "m1", "m2"):
        write_evals(directory, name, measures_of(oracle_mean=[1, 2]))
    write_round(directory, 1, {})
    summary = build_summary(directory)
    row = summary["models"][1]
    assert [row[figure] for figure in ROUND_FIGURES] == [NO_VALUE] * len(ROUND_FIGURES)
    assert (row["round_parse_failures"], row["round_score_histogram"]) == ({}, {})
    assert summary["verdict"]["word"] == "no change"
    assert summary["verdict"]["warnings"] == []
    assert "M2 - M1" in render_table(summary)
    page = render_report(directory, summary)
    assert "round of M1" in page
    assert "Every vote has a score." in page


def test_differences_are_paired(run_dir):
    summary = build_summary(run_dir)
    assert summary["difference_of"] == ["M3", "M1"]
    # Every prompt gained exactly 2: paired, there is no spread at all.
    assert summary["differences"]["oracle_mean"] == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 4}
    assert summary["differences"]["judge_pairwise"]["value"] == pytest.approx(-0.25)
    assert summary["differences"]["mean_length"]["value"] == -5
    assert summary["differences"]["judge_kendall"] is None
    assert summary["differences"]["judge_mean"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0, "n": 2})


def test_changes_from_the_first_round_to_the_last(run_dir):
    summary = build_summary(run_dir)
    change = summary["round_judge_mean_change"]
    assert change["value"] == pytest.approx(4.875 - 3.3)
    assert change["rounds"] == [1, 2]
    assert summary["self_judged"] is True
    # Beyond the true scores, over candidates that have both: 0, 0.5, 0, 0, 0 and 1, 0.5, 2, 1.
    excess = summary["round_excess_change"]
    assert excess["value"] == pytest.approx(4.5 / 4 - 0.5 / 5)
    assert (excess["n"], excess["rounds"]) == (5, [1, 2])


def test_rounds_name_roles_counts_and_fingerprints(run_dir):
    first = build_summary(run_dir)["rounds"][0]
    assert (first["round"], first["model"], first["makes"]) == (1, "M1", "M2")
    assert first["roles"] == {"proposer": "m1", "policy": "m1", "judge": "m1", "reference": "m1", "trained": "m2"}
    assert first["counts"]["pairs"] == {"in": 3, "out": 1, "dropped": {"tie": 1, "too_few_candidates": 1}}
    assert set(first["fingerprints"]) == {"prompts", "samples", "judgements", "pairs", "model"}


def test_written_file_is_plain_json_and_repeats(run_dir):
    first = write_summary(run_dir)
    assert read_json(run_dir.summary) == first == json.loads(json.dumps(first))
    assert build_summary(run_dir) == first
    assert first["finished"] is True
    assert first["verdict"]["word"] == "improving"
    assert first["verdict"]["rule"] == RULE


def test_an_unfinished_run_shows_what_is_there(tmp_path):
    directory = write_start(tmp_path / "half", config_of(tmp_path / "half", num_rounds=1))
    write_evals(directory, "sft", measures_of(oracle_mean=[1, 2]))
    summary = build_summary(directory)
    assert [row["model"] for row in summary["models"]] == ["SFT"]
    assert summary["finished"] is False
    assert summary["differences"] == {}
    assert summary["verdict"]["word"] == "not measured"
    write_evals(directory, "m1", measures_of(oracle_mean=[1, 2]))
    write_round(directory, 1, ROUND_1)
    summary = build_summary(directory)
    assert summary["models"][1]["round_judge_mean"]["value"] == pytest.approx(3.3)
    assert summary["models"][1]["pairs_truly_better"] == NO_VALUE
    assert summary["round_excess_change"] is None
    assert render_table(summary)


def test_a_run_without_any_evaluation(tmp_path):
    directory = write_start(tmp_path / "fresh", config_of(tmp_path / "fresh"))
    summary = build_summary(directory)
    assert summary["models"] == []
    assert "No model is evaluated yet" in render_table(summary)


def test_a_damaged_artifact_is_named(run_dir):
    path = run_dir.judgements(1) / "judgements.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptArtifactError, match=r"judgements\.parquet"):
        build_summary(run_dir)


def test_the_summary_never_imports_torch():
    code = (
        "import sys\n"
        "import selfreward.report.html, selfreward.report.status, selfreward.report.summary, selfreward.report.table\n"
        "heavy = {'torch', 'transformers', 'trl', 'vllm', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "ours = {n for n in sys.modules if n.startswith(('selfreward.evals', 'selfreward.stages', 'selfreward.lab'))}\n"
        "assert not ours, ours\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- verdict ---------------------------------------------------------------------------------------------------------


def _estimate(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high, "n": 50}


def _word(answers, judging, own, excess, self_judged=True):
    """`own`: the last model's scores of the held-out responses minus M1's; `excess`: of the rounds, beyond the truth."""
    row = dict.fromkeys((*MODEL_FIGURES, *ROUND_FIGURES))
    summary = {
        "models": [{**row, "model": "M1"}, {**row, "model": "M3"}],
        "difference_of": ["M3", "M1"],
        "differences": {"oracle_mean": answers, "judge_pairwise": judging, "judge_mean": own},
        "self_judged": self_judged,
        "rounds": [],
        "round_judge_mean_change": {**UP, "rounds": [1, 2]},
        "round_excess_change": None if excess is None else {**excess, "rounds": [1, 2]},
    }
    return judge_run(summary)["word"]


UP, DOWN, FLAT = _estimate(0.1, 0.3), _estimate(-0.3, -0.1), _estimate(-0.1, 0.2)


@pytest.mark.parametrize(
    ("answers", "judging", "own", "excess", "word"),
    [
        (UP, FLAT, UP, UP, "improving"),
        (UP, DOWN, UP, None, "improving"),
        (FLAT, UP, FLAT, UP, "gaming itself"),
        (DOWN, FLAT, FLAT, UP, "gaming itself"),
        (DOWN, FLAT, UP, FLAT, "getting worse"),
        # Higher scores alone prove nothing: the candidates may have been that much better.
        (FLAT, DOWN, UP, FLAT, "no change"),
        (FLAT, DOWN, UP, None, "no change"),
        (FLAT, FLAT, None, DOWN, "no change"),
        (None, DOWN, UP, None, "gaming itself"),
        (None, DOWN, FLAT, None, "not measured"),
        (None, FLAT, UP, None, "not measured"),
        (None, UP, UP, None, "not measured"),
        ({"value": 1.0, "low": None, "high": None, "n": 1}, FLAT, UP, UP, "not measured"),
    ],
)
def test_verdict_rule(answers, judging, own, excess, word):
    assert _word(answers, judging, own, excess) == word


def test_another_judges_scores_are_not_the_models_own():
    assert _word(FLAT, FLAT, UP, UP, self_judged=False) == "no change"
    assert _word(None, DOWN, UP, None, self_judged=False) == "not measured"


def test_a_judge_that_grows_kinder_than_its_answers_is_gaming_itself(run_dir):
    worse = {"oracle_mean": [2, 3, 1, 2], "judge_pairwise": [(0.5, 3), (0.5, 1)], "round_oracle_mean": [3, 4]}
    write_evals(run_dir, "m3", measures_of(**worse) + true_scores(dict.fromkeys(TRUTH_2, 1)), votes=HELDOUT_VOTES)
    verdict = build_summary(run_dir)["verdict"]
    assert verdict["word"] == "gaming itself"
    assert "own scores above the true ones, round 1 to 2: +3.7" in verdict["reason"]
    write_evals(run_dir, "m3", measures_of(**worse) + true_scores(dict.fromkeys(TRUTH_2, 5)), votes=HELDOUT_VOTES)
    assert build_summary(run_dir)["verdict"]["word"] == "no change", "the candidates were worth their scores"


def test_reason_carries_the_figures(run_dir):
    reason = build_summary(run_dir)["verdict"]["reason"]
    assert "M3 - M1: answers +2.00 [+2.00, +2.00], judge accuracy -25.0 points" in reason


def test_warnings_name_what_went_wrong(run_dir):
    summary = build_summary(run_dir)
    assert summary["verdict"]["warnings"] == [
        "50 % of SFT's votes on the held-out responses have no score.",
        "25 % of M1's votes in its round have no score.",
    ]
    models = {row["model"]: row for row in summary["models"]}
    models["M2"]["tie_rate"] = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 50}
    models["M3"]["first_position"] = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 50}
    models["M1"]["distinct_2"], models["M3"]["distinct_2"] = _estimate(0.5, 0.6), _estimate(0.3, 0.4)
    summary["differences"] |= {"judge_pairwise": DOWN, "mean_length": _estimate(4.0, 6.0)}
    summary["rounds"][1] |= {"prompts_accepted": 9, "prompts_asked": 25, "prompts_stopped_by": "pool_exhausted"}
    assert find_warnings(summary)[2:] == [
        "60 % of the prompts in M2's round ended in a tie.",
        "M3 as pairwise judge chose the answer shown first in 80 % of its verdicts.",
        "Round 2 has 9 of 25 new prompts: the prompts file has no more rows.",
        "The judge's agreement with human ranks fell from M1 to M3.",
        "Answers grew 20 % longer from M1 to M3.",
        "Answers became less diverse from M1 to M3 (distinct-2 0.550 to 0.350).",
    ]


# --- table and status ------------------------------------------------------------------------------------------------


def test_table_fits_80_columns_and_shows_figures(run_dir):
    text = render_table(build_summary(run_dir), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "tiny: improving" in text
    assert "M3 - M1" in text
    assert "+2.00" in text
    assert "50/25" in text
    assert "\x1b" not in text


def test_table_does_not_read_markup(tmp_path):
    directory = write_start(tmp_path / "x", config_of(tmp_path / "x"))
    write_evals(directory, "sft", measures_of(mean_length=[1, 2]))
    summary = build_summary(directory) | {"name": "[bold]x[/bold]"}
    assert "[bold]x[/bold]" in render_table(summary)


def test_status_lists_every_stage(run_dir):
    rows = run_status(run_dir.root)
    keys = [row["stage"] for row in rows]
    assert keys[:7] == ["seed", "m0", "sft", "sft/evals", "eft", "m1", "m1/evals"]
    assert keys[-1] == "round-2/evals"
    assert {row["state"] for row in rows} == {"done"}
    text = render_status(rows, 80)
    assert f"{len(rows)} of {len(rows)} stages done" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_status_knows_started_and_waiting(tmp_path):
    directory = write_start(tmp_path / "s", config_of(tmp_path / "s", num_rounds=1))
    directory.prompts(1).mkdir(parents=True)
    (directory.prompts(1) / "parts").mkdir()
    (directory.m1 / "record.json").unlink()
    (directory.m1 / "history.json").unlink()
    (directory.m1 / "rejects.parquet").unlink()
    write_record(directory.evals("m1"))
    states = {row["stage"]: row["state"] for row in run_status(directory.root)}
    assert states["round-1/prompts"] == "started"
    assert states["round-1/samples"] == "waiting"
    assert states["m1"] == "waiting"


def test_stage_order_is_the_pipelines(tmp_path):
    from selfreward import pipeline  # needs torch; the rest of this file does not

    for settings in ({}, {"mode": "no-eft"}, {"replay": {"num_items": 5}, "num_rounds": 3}):
        config = config_of(tmp_path / "o", **settings)
        directory = write_start(tmp_path / "o", config)
        assert [row["stage"] for row in run_status(directory.root)] == pipeline.stage_keys(config)
