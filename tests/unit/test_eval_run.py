"""`selfreward eval RUN`: what is missing is evaluated, what is there reused; all pairs, strengths, one row a model."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from test_evals_evaluate import JUDGE, RANKED
from typer.testing import CliRunner

from selfreward.artifacts import Run, RunDir, Stage, read_json, read_rows, write_json
from selfreward.cli import app
from selfreward.config import parse_config
from selfreward.errors import DriftError, UsageError
from selfreward.eval_tools.whole_run import evaluate_run, finished_stage, run_config
from selfreward.evals.bradley_terry import Game, rank_models
from selfreward.evals.head_to_head import Comparison
from selfreward.progress import NullProgress
from selfreward.report.evaluated import evaluated_stages
from selfreward.report.html import write_report
from selfreward.report.run_table import render_run
from selfreward.types import Completion, Counts, EvalOutput, Judgement, PreferencePair, Prompt, RankedSet

LISTS = (
    "fox kiwi red",
    "saw owl plum",
    "kiwi red owl",
    "plum fox saw",
    "red plum owl",
    "owl kiwi fox",
    "saw red kiwi",
    "fox owl red",
)
PAIRWISE = {"match": "Two assistants", "reply": "Verdict: A"}


class Trial:
    """A run whose models are trained (as far as an evaluation can see) and not evaluated. Its answers differ by model, because
    a scripted reply goes by the seed and seeds by the stage."""

    def __init__(self, root: Path) -> None:
        self.root, self.script = root, root / "script.json"
        answers = [{"match": f"reverse this list : {words}", "reply": [" ".join(reversed(words.split())), words, "saw"]}
                   for words in LISTS]  # fmt: skip
        root.mkdir(parents=True, exist_ok=True)
        self.script.write_text(json.dumps({"replies": [PAIRWISE, *JUDGE, *answers], "default": None}))

    def make(self, num_rounds: int = 1, **evaluation: Any) -> Path:
        settings = {"oracle": True, "head_to_head": "oracle", "num_votes": 1, "bootstrap_samples": 200} | evaluation
        config = parse_config(
            {
                "name": "trial",
                "run_dir": str(self.root),
                "num_rounds": num_rounds,
                "engine": {"name": "scripted", "script": str(self.script)},
                "judge": {"rubric": "lab_additive", "max_tokens": 20},
                "sample": {"max_tokens": 20},
                "eval": settings,
            }
        )
        with Run.open(config) as run:
            run.stage("seed", {}, {}, _seed)
            for key in ("sft", "m1", *(f"round-{t}/model" for t in range(1, num_rounds + 1))):
                run.stage(key, {}, {}, _trained)
            for t in range(1, num_rounds + 1):
                for part in ("prompts", "samples", "judgements", "pairs"):
                    run.stage(f"round-{t}/{part}", {}, {}, _empty_round)
        return self.root / "trial"


def _seed(stage: Stage) -> Counts:
    stage.write_rows("prompts_heldout", [Prompt(f"p{n}", f"reverse this list : {words}", "h") for n, words in enumerate(LISTS)])
    stage.write_rows("ranked_heldout", RANKED, RankedSet)
    return Counts(0, 0)


def _trained(stage: Stage) -> Counts:
    stage.write_json("history", [{"step": step, "loss": 2.0 - step / 10, "lr": 1e-3, "grad_norm": 1.0} for step in (1, 2, 3)])
    return Counts(0, 0)


def _empty_round(stage: Stage) -> Counts:
    stage.write_rows("prompts", [], Prompt)
    stage.write_rows("completions", [], Completion)
    stage.write_rows("judgements", [], Judgement)
    stage.write_rows("pairs", [], PreferencePair)
    return Counts(0, 0)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def evals_of(root: Path, name: str) -> Path:
    return root / (name if name in ("sft", "m1") else f"round-{int(name[1:]) - 1}") / "evals"


def scores(root: Path, name: str) -> dict[str, float | None]:
    rows = read_rows(evals_of(root, name) / "outputs.parquet", EvalOutput)
    return {row.prompt_id: row.oracle for row in rows if row.kind == "sampled"}


def test_all_pairs_by_the_oracle(trial: Trial) -> None:
    root = trial.make()
    document = evaluate_run(root, None, NullProgress())
    assert document["stages"] == {"done": 3 + 3 + 1, "reused": 0}
    known = {name: scores(root, name) for name in ("sft", "m1", "m2")}
    games = []
    for old, new in combinations(known, 2):
        counts = document["pairs"][f"{new}-{old}"]["counts"]
        gaps = [known[new][prompt] - known[old][prompt] for prompt in known[new]]  # type: ignore[operator]
        assert counts["wins"] == sum(gap > 0 for gap in gaps)
        assert counts["ties"] == sum(gap == 0 for gap in gaps)
        games += [Game(f"p{n}", new, old, 0.5 + 0.5 * ((gap > 0) - (gap < 0))) for n, gap in enumerate(gaps)]
    rows = {row["model"]: row for row in document["models"]}
    strengths = rank_models(["sft", "m1", "m2"], games, 1, 100)
    assert rows["M2"]["strength"]["value"] == pytest.approx(strengths["m2"].value)
    assert rows["SFT"]["strength"] == {"value": 0.0, "low": None, "high": None, "n": 8}
    assert rows["M2"]["against_previous"]["wins"] == document["pairs"]["m2-m1"]["counts"]["wins"]
    assert rows["M2"]["against_sft"]["wins"] == document["pairs"]["m2-sft"]["counts"]["wins"]
    assert rows["SFT"]["against_previous"] is None
    assert rows["M1"]["judge_spearman"] is not None
    assert 0 < rows["M1"]["overlap"]["value"] < 1
    assert document["is_real"] is False


def test_nothing_is_done_twice_and_what_is_gone_is_done_again(trial: Trial) -> None:
    root = trial.make()
    first = evaluate_run(root, None, NullProgress())
    again = evaluate_run(root, None, NullProgress())
    assert again["stages"] == {"done": 0, "reused": 7}
    assert again | {"stages": None} == first | {"stages": None}
    shutil.rmtree(evals_of(root, "m2"))
    third = evaluate_run(root, None, NullProgress())
    assert third["stages"] == {"done": 1, "reused": 6}
    assert third["models"] == first["models"]


def test_a_further_round_adds_pairs_and_redoes_none(trial: Trial) -> None:
    evaluate_run(trial.make(1), None, NullProgress())
    document = evaluate_run(trial.make(2), None, NullProgress())
    assert [row["model"] for row in document["models"]] == ["SFT", "M1", "M2", "M3"]
    # New: the evaluation of M3, its three pairs, and the strengths of all.
    assert document["stages"] == {"done": 5, "reused": 3 + 3}


def test_a_policy_that_always_says_a(trial: Trial) -> None:
    """The last model judges all pairs; it decides nothing, and what its own evaluation compared is not asked again."""
    root = trial.make(head_to_head="policy", oracle=False)
    document = evaluate_run(root, None, NullProgress())
    assert document["judge"]["name"] == "m2"
    assert document["judge"]["position_biased"] is True
    for pair in document["pairs"].values():
        assert (pair["counts"]["ties"], pair["counts"]["wins"], pair["counts"]["losses"]) == (8, 0, 0)
    assert [row["strength"] for row in document["models"]] == [None] * 3, "ties alone rank nobody"
    assert "No strengths: no comparison has a winner." in render_run(document)
    records = {pair: read_json(root / "ranking" / "m2" / pair / "record.json") for pair in document["pairs"]}
    assert {pair: record["notes"]["taken_from"] for pair, record in records.items()} == {
        "m1-sft": None,
        "m2-sft": None,
        "m2-m1": "round-1/evals",
    }
    taken = read_rows(root / "ranking/m2/m2-m1/comparisons.parquet", Comparison)
    assert taken == read_rows(evals_of(root, "m2") / "comparisons.parquet", Comparison)
    assert "position-biased" in render_run(document)


def test_another_judge_has_a_place_of_its_own(trial: Trial) -> None:
    root = trial.make()
    evaluate_run(root, None, NullProgress())
    (trial.root / "j.json").write_text(json.dumps({"replies": [{"match": ".", "reply": "no opinion"}], "default": None}))
    document = evaluate_run(root, f"scripted:{trial.root / 'j.json'}", NullProgress())
    assert len(list((root / "ranking").iterdir())) == 2
    counts = document["pairs"]["m2-m1"]["counts"]
    assert counts["wins"] + counts["losses"] == 0
    assert counts["no_verdict"] > 0
    unread = sum(pair["counts"]["no_verdict"] for pair in document["pairs"].values())
    assert f"{unread} of 24 comparisons have no readable verdict" in " ".join(render_run(document).split())
    dropped = [record["counts"]["dropped"] for record in map(read_json, (root / "ranking").glob("judge-*/m2-m1/record.json"))]
    assert dropped == [{"no_verdict": counts["no_verdict"]}]


def test_nobody_compares_where_nobody_shall(trial: Trial) -> None:
    document = evaluate_run(trial.make(head_to_head="none", oracle=False), None, NullProgress())
    assert document["pairs"] == {}
    assert [row["strength"] for row in document["models"]] == [None] * 3
    assert "eval.head_to_head=none" in render_run(document)
    with pytest.raises(UsageError, match="this run has no oracle scores"):
        evaluate_run(trial.root / "trial", "oracle", NullProgress())


def test_the_table_has_a_row_a_model(trial: Trial) -> None:
    root = trial.make()
    shown = CliRunner().invoke(app, ["eval", str(root)])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.strip().split(" ")[0] in ("SFT", "M1", "M2")] == ["SFT", "M1", "M2"]
    assert lines[-1] == f"report: {root / 'report.html'}"
    assert max(map(len, lines[:-1])) <= 80
    printed = CliRunner().invoke(app, ["eval", str(root), "--json"])
    assert [row["model"] for row in json.loads(printed.stdout)["models"]] == ["SFT", "M1", "M2"]


def test_an_evaluation_of_other_settings_names_the_ways_on(trial: Trial) -> None:
    root = trial.make()
    evaluate_run(root, None, NullProgress())
    path = evals_of(root, "m1") / "record.json"
    record = read_json(path)
    record["sections"]["rubric"] = "0" * 16
    write_json(path, record | {"fingerprint": "0" * 16})
    with pytest.raises(DriftError, match=r"stage 'm1/evals' .*sections.rubric.*--accept-drift.*--from STAGE"):
        evaluate_run(root, None, NullProgress())


def test_a_wide_table_goes_on_below(trial: Trial) -> None:
    """More rounds and longer figures than fit: nothing is cut, and every block names its rows."""
    document = evaluate_run(trial.make(num_rounds=4), None, NullProgress())
    rows = document["models"]
    for number, row in enumerate(rows):
        row["tasks"] = {"arc_easy": {"value": 1.0 - number / 8, "low": 0.5, "high": 1.0, "n": 2376}}
    lines = render_run(document).splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert sum(line.startswith("± half 95 % interval") for line in lines) == 2
    [tasks] = [line for line in lines if line.startswith("task arc_easy %") and "100.0 ±25.0" in line]
    assert tasks.count("±25.0") >= 2
    assert sum(line.split()[0] == "M5" for line in lines if line) == 2, "the table of all figures and what did not fit in it"


def test_the_page_is_written_again(trial: Trial) -> None:
    """What `eval` finds out stands in the run's own report at once."""
    root = trial.make()
    evaluate_run(root, None, NullProgress())
    page = (root / "report.html").read_text()
    assert "All models against each other, by oracle" in page
    assert "ranking/oracle/up-to-m2" in page
    assert [model["model"] for model in read_json(root / "summary.json")["models"]] == ["SFT", "M1", "M2"]


def test_evaluations_of_models_that_were_replaced_are_stale(trial: Trial) -> None:
    root = trial.make()
    first = evaluate_run(root, None, NullProgress())
    with Run.open(run_config(root)) as run:
        for model in ("m1", "m2"):
            folder = "m1" if model == "m1" else "round-1/model"
            made = finished_stage(run, folder)
            assert made is not None
            run.stage(f"tasks/{model}/arc", {}, {"model": made}, _task)
    shutil.rmtree(root / "round-1" / "model")
    shutil.rmtree(root / "round-1" / "evals")
    with Run.open(run_config(root)) as run:
        run.stage("round-1/model", {"other": True}, {}, _trained)
    states = {stage.key: stage.state for stage in evaluated_stages(RunDir(root))}
    assert states == {
        "ranking/oracle/m1-sft": "done", "ranking/oracle/m2-m1": "stale", "ranking/oracle/m2-sft": "stale",
        "ranking/oracle/up-to-m2": "stale", "tasks/m1/arc": "done", "tasks/m2/arc": "stale",
    }  # fmt: skip
    write_report(RunDir(root))
    page = (root / "report.html").read_text()
    assert "All models against each other" not in page, "figures of a model that is gone are no figures of this run"
    shown = CliRunner().invoke(app, ["status", str(root)]).stdout
    assert [line.split()[:5] for line in shown.splitlines() if line.strip().startswith(("ranking", "tasks"))] == [
        ["ranking/oracle", "1", "done,", "3", "stale"],
        ["tasks/m1", "done", "1", "0.0", "-"],
        ["tasks/m2", "stale", "1", "0.0", "-"],
    ]  # fmt: skip
    assert "stale: of models that were replaced since" in shown
    second = evaluate_run(root, None, NullProgress())
    assert second["stages"] == {"done": 1 + 2 + 1, "reused": 2 + 1}, "the new model's evaluation, its two pairs, the strengths"
    assert [row["model"] for row in second["models"]] == [row["model"] for row in first["models"]]
    assert second["stale"] == ["tasks/m2/arc"]
    assert "Left out, of models that were replaced since: tasks/m2/arc." in " ".join(render_run(second).split())
    assert [list(row["tasks"]) for row in second["models"]] == [[], ["arc"], []]
    assert len(list((root / "superseded").glob("*/ranking/oracle/*/record.json"))) == 3, "nothing is lost"


def _task(stage: Stage) -> Counts:
    result = {"task": "arc", "metric": "acc", "value": 0.5, "stderr": 0.1, "low": 0.3, "high": 0.7, "n": 25}
    stage.write_json("tasks", {"task": "arc", "results": [result]})
    return Counts(25, 25)


def test_a_word_that_is_neither_a_run_nor_a_command(tmp_path: Path) -> None:
    typo = CliRunner().invoke(app, ["eval", "alpacca"])
    assert isinstance(typo.exception, UsageError)
    assert "did you mean 'alpaca'? commands: alpaca" in str(typo.exception)
    folder = CliRunner().invoke(app, ["eval", str(tmp_path)])
    assert isinstance(folder.exception, UsageError)
    assert "is not a run folder" in str(folder.exception)
