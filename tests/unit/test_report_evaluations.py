"""The page's part on evaluations: rankings that are there, the paper's table for real runs alone, the capability tax."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_run import config_of, measures_of, write_evals, write_record, write_start
from test_eval_run import Trial

from selfreward.artifacts import RunDir, write_json
from selfreward.eval_tools.whole_run import evaluate_run
from selfreward.progress import NullProgress
from selfreward.report.html import render_report
from selfreward.report.paper import PAPER, paper_rows
from selfreward.report.summary import build_summary


def page_of(root: Path, **settings: Any) -> tuple[str, RunDir]:
    config = config_of(root, **settings)
    run_dir = write_start(root, config)
    for name in ("sft", "m1"):
        write_evals(run_dir, name, measures_of(judge_pairwise=[1, 0.5, 0.5, 1], judge_spearman=[0.5, 0, 0.25, 0.25]))
    return render_report(run_dir), run_dir


REAL = {"seed": {"sources": [{"path": "trees.jsonl"}]}, "eval": {"head_to_head": "none"}}


def test_a_real_runs_judging_stands_beside_the_papers(tmp_path: Path) -> None:
    page, run_dir = page_of(tmp_path / "run", **REAL)
    assert "Judging beside the paper" in page
    rows = {row["figure"]: row for row in paper_rows(build_summary(run_dir)["models"])}
    assert list(rows) == list(PAPER)
    assert [(cell["model"], cell["ours"], cell["paper"]) for cell in rows["judge_pairwise"]["cells"]] == [
        ("SFT", "75.0 %", "65.1 %"),
        ("M1", "75.0 %", "78.7 %"),
    ]
    assert rows["judge_spearman"]["cells"][1]["paper"] == "0.279"
    assert rows["judge_kendall"]["cells"][0]["ours"] == "-", "what was not measured is no number"


def test_the_micro_world_has_nothing_to_do_with_the_paper(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path / "run")
    assert "Judging beside the paper" not in page
    assert 'id="evaluations"' not in page


def test_tasks_of_two_models_are_a_tax(tmp_path: Path) -> None:
    _, run_dir = page_of(tmp_path / "run", num_rounds=1)
    write_evals(run_dir, "m2", measures_of(judge_pairwise=[1, 1]))
    for model, value in (("m1", 0.781), ("m2", 0.724)):
        folder = run_dir.root / "tasks" / model / "arc-easy"
        result = {"task": "arc_easy", "metric": "acc", "value": value, "stderr": 0.01, "low": 0.7, "high": 0.8, "n": 500}
        write_json(folder / "tasks.json", {"task": "arc_easy", "results": [result]})
        write_record(folder)
    page = render_report(run_dir)
    assert "Capability tax" in page
    assert "-5.7" in page
    [table] = re.findall(r'aria-label="Standard tasks">.*?</table>', page, re.DOTALL)
    cells = re.sub(r"<[^>]+>", " ", table).split()
    assert cells[-7:] == ["arc_easy", "acc", "78.1", "±5.0", "72.4", "±5.0", "500"]
    (run_dir.root / "tasks" / "m2" / "arc-easy" / "record.json").unlink()
    assert "Capability tax" not in render_report(run_dir), "an unfinished stage says nothing"


@pytest.mark.parametrize("head_to_head", ["oracle", "policy"])
def test_rankings_of_a_run_stand_on_its_page(tmp_path: Path, head_to_head: str) -> None:
    root = Trial(tmp_path / "trial").make(head_to_head=head_to_head, oracle=head_to_head == "oracle")
    evaluate_run(root, None, NullProgress())
    page = (root / "report.html").read_text()
    assert "All models against each other" in page
    assert ("position-biased" in page) == (head_to_head == "policy")
    ranking = json.loads(next(root.glob("ranking/*/up-to-m2/ranking.json")).read_text())
    counts = ranking["pairs"]["m2-sft"]["counts"]
    assert f"{counts['wins']} / {counts['ties']} / {counts['losses']}" in page
