"""Standard tasks: the harness's results read by hand-made documents, the capability tax by hand, a local task where the
harness is installed, and one clear line where it is not."""

import json
from dataclasses import replace
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from test_eval_run import Trial
from typer.testing import CliRunner

from selfreward.artifacts import Run, write_json
from selfreward.cli import app
from selfreward.config import default_config
from selfreward.errors import EngineError, MissingExtraError, UsageError
from selfreward.eval_tools.options import TaskOptions
from selfreward.eval_tools.tasks import run_tasks
from selfreward.eval_tools.whole_run import evaluate_run, run_config
from selfreward.evals.harness import TaskResult, read_results
from selfreward.progress import NullProgress
from selfreward.report.run_table import render_run
from selfreward.report.task_rows import read_tasks, render_tax, tax_rows
from selfreward.statistics import Z
from selfreward.types import Counts

HAS_HARNESS = find_spec("lm_eval") is not None
DOCUMENT = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy", "acc,none": 0.75, "acc_stderr,none": 0.02, "acc_norm,none": 0.7, "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.01, "alias": "gsm8k"},
    },
    "n-samples": {"arc_easy": {"original": 2376, "effective": 400}},
}  # fmt: skip


def test_results_are_read_metric_by_metric() -> None:
    assert read_results(DOCUMENT, "arc_easy") == [
        TaskResult("arc_easy", "acc", 0.75, 0.02, 0.75 - Z * 0.02, 0.75 + Z * 0.02, 400),
        TaskResult("arc_easy", "acc_norm", 0.7, None, None, None, 400),
    ]
    [only] = read_results(DOCUMENT, "gsm8k")
    assert (only.metric, only.value, only.n) == ("exact_match (strict-match)", 0.1, None)


def test_a_group_has_the_questions_of_its_tasks() -> None:
    document = {
        "results": {"all": {"acc,none": 0.5, "acc_stderr,none": 0.1}},
        "group_subtasks": {"all": ["part", "other"], "part": ["one", "two"]},
        "n-samples": {"one": {"effective": 3}, "two": {"effective": 4}, "other": {"original": 5}},
    }
    assert read_results(document, "all")[0].n == 12
    assert read_results(document | {"n-samples": {"one": {"effective": 3}}}, "all")[0].n is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "gave no result of task 'arc_easy'"),
        ({"results": {"other": {}}}, r"it gave \['other'\]"),
        ({"results": {"arc_easy": {"alias": "x", "acc,none": float("nan")}}}, "gave no number for task 'arc_easy'"),
    ],
)
def test_a_document_without_the_task_is_an_error(document: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_results(document, "arc_easy")


def result(task: str, value: float, stderr: float | None) -> dict[str, Any]:
    return {"task": task, "metric": "acc", "value": value, "stderr": stderr, "low": None, "high": None, "n": 100}


def test_the_capability_tax_by_hand() -> None:
    tasks = {
        "sft": {"arc": result("arc", 0.9, 0.01)},
        "m1": {"arc": result("arc", 0.781, 0.03), "piqa": result("piqa", 0.8, 0.04), "only": result("only", 0.5, 0.1)},
        "m3": {"arc": result("arc", 0.724, 0.04), "piqa": result("piqa", 0.82, 0.03)},
    }
    rows = tax_rows(tasks, ["sft", "m1", "m2", "m3"])
    assert [row["task"] for row in rows] == ["arc", "piqa", "mean of 2 tasks"]
    assert rows[0]["change"] == pytest.approx(-0.057)
    assert rows[0]["low"] == pytest.approx(-0.057 - Z * 0.05)
    assert rows[2]["change"] == pytest.approx((-0.057 + 0.02) / 2)
    assert rows[2]["high"] == pytest.approx((-0.057 + 0.02) / 2 + Z * sqrt(0.05**2 + 0.05**2) / 2)
    assert "arc: 78.1 to 72.4, -5.7" in render_tax(rows)
    assert tax_rows(tasks, ["sft", "m1"]) == []
    assert tax_rows({"m1": tasks["m1"]}, ["sft", "m1", "m2"]) == []
    unknown = tax_rows({"m1": {"a": result("a", 0.5, None)}, "m2": {"a": result("a", 0.4, 0.1)}}, ["m1", "m2"])
    assert (unknown[0]["change"], unknown[0]["low"]) == (pytest.approx(-0.1), None)


def test_results_of_a_run_stand_in_its_table(tmp_path: Path) -> None:
    root = Trial(tmp_path).make()
    with Run.open(run_config(root)) as run:
        for model, value in (("m1", 0.75), ("m2", 0.5)):

            def work(stage: Any, value: float = value) -> Counts:
                write_json(stage.path / "tasks.json", {"task": "arc_easy", "results": [result("arc_easy", value, 0.05)]})
                return Counts(100, 100)

            run.stage(f"tasks/{model}/arc-easy", {}, {}, work)
    assert read_tasks(run.dir, ["sft", "m1", "m2"]).keys() == {"m1", "m2"}
    document = evaluate_run(root, None, NullProgress())
    assert [list(row["tasks"]) for row in document["models"]] == [[], ["arc_easy"], ["arc_easy"]]
    shown = render_run(document)
    assert "arc_easy: 75.0 to 50.0, -25.0 [-38.9, -11.1]" in shown


@pytest.mark.skipif(HAS_HARNESS, reason="lm-evaluation-harness is installed")
def test_without_the_harness_one_line_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'selfreward\[lm-eval\]'"):
        run_tasks(TaskOptions(tasks=("arc_easy",), model="lab", out=tmp_path / "out"), default_config("tasks"), NullProgress())
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, ["eval", "tasks", "--model", "lab", "--tasks", "arc_easy", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, MissingExtraError)
    assert done.exception.exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(tasks=("arc_easy",)), "give --model MODEL with --out FOLDER, or --run RUN"),
        (TaskOptions(tasks=("arc_easy",), model="lab"), "give --model MODEL with --out FOLDER"),
        (TaskOptions(tasks=(), model="lab", out=Path("out")), "--tasks names no task"),
        (TaskOptions(tasks=("a",), model="lab", out=Path("out"), include=Path("nowhere")), "--include 'nowhere' is no folder"),
    ],
)
def test_options_that_cannot_work(options: TaskOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_tasks(options, default_config("tasks"), NullProgress())


# --- with the harness itself ---------------------------------------------------------------------------------------------

needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm-evaluation-harness is not installed (extra lm-eval)")
ROWS = [
    {"question": f"How many days are in {n} weeks?", "choices": [str(7 * n), str(n), "none"], "gold": n % 3}
    for n in range(1, 13)
]


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """A folder with two tasks of the same twelve questions about days."""
    folder = tmp_path / "my_tasks"
    folder.mkdir()
    (folder / "days.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("days", "more_days"):
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'days.jsonl'}}}}}\n"
            "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: gold\n"
            "doc_to_choice: choices\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        )
    return folder


def share_right(folder: Path) -> float:
    """The share of questions whose right choice the model finds the most probable, computed without the harness."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()

    def log_probability(question: str, choice: str) -> float:
        start = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        ids_1T = torch.tensor([tokenizer(f"{question} {choice}", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logps_TV = model(ids_1T).logits[0, :-1].log_softmax(-1)
        logps_T = logps_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
        return float(logps_T[start - 1 :].sum())

    best = [max(range(3), key=lambda i: log_probability(row["question"], row["choices"][i])) for row in ROWS]
    return sum(choice == row["gold"] for choice, row in zip(best, ROWS, strict=True)) / len(ROWS)


@needs_harness
def test_a_local_task(tmp_path: Path, tiny_model_dir: Path, days: Path) -> None:
    """The harness's figure is what the model's probabilities say; it is reused, and a second task stands beside it."""
    options = TaskOptions(tasks=("days",), model=str(tiny_model_dir), out=tmp_path / "out", include=days)
    first = run_tasks(options, default_config("tasks"), NullProgress())
    [found] = [results["days"] for results in first["models"].values()]
    assert (found["metric"], found["n"]) == ("acc", 12)
    assert found["value"] == pytest.approx(share_right(tiny_model_dir))
    share = found["value"]
    assert found["stderr"] == pytest.approx(sqrt(share * (1 - share) / 11))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("record.json")}
    both = run_tasks(replace(options, tasks=("days", "more_days")), default_config("tasks"), NullProgress())
    [results] = both["models"].values()
    assert results["days"] == found
    assert results["more_days"]["value"] == found["value"]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "the first task is not done again"


@needs_harness
def test_all_models_of_a_run(tmp_path: Path, tiny_model_dir: Path, days: Path) -> None:
    root = Trial(tmp_path / "trial").make()
    for stage in ("sft", "m1", "round-1/model"):
        (root / stage / "checkpoint").symlink_to(tiny_model_dir)
    arguments = ["eval", "tasks", "--tasks", "days,more_days", "--include", str(days), "--run", str(root)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    document = json.loads(done.stdout[done.stdout.index("{") :])
    assert list(document["models"]) == ["sft", "m1", "m2"]
    share = share_right(tiny_model_dir)
    values = [result["value"] for results in document["models"].values() for result in results.values()]
    assert values == [pytest.approx(share)] * 6
    assert [(row["task"], row["change"]) for row in document["tax"]] == [("days", 0), ("more_days", 0), ("mean of 2 tasks", 0)]
    evaluate_run(root, None, NullProgress())
    page = (root / "report.html").read_text()
    assert "Capability tax" in page
    assert f"{100 * share:.1f}" in page
    again = CliRunner().invoke(app, arguments)
    assert "Capability tax, M1 to M2, points:" in again.stdout
    with pytest.raises(UsageError, match=r"num_fewshot was null, is 1.*or delete .*days to do it again"):
        raise CliRunner().invoke(app, [*arguments, "--num-fewshot", "1"]).exception or AssertionError


@needs_harness
def test_an_unknown_task_is_named(tmp_path: Path, tiny_model_dir: Path, days: Path) -> None:
    options = TaskOptions(tasks=("dayz",), model=str(tiny_model_dir), out=tmp_path / "out", include=days)
    with pytest.raises(UsageError, match=r"has no task 'dayz'; similar: .*days") as caught:
        run_tasks(options, default_config("tasks"), NullProgress())
    assert "\n" not in str(caught.value)


@needs_harness
def test_data_that_cannot_be_had_says_what_to_do(tmp_path: Path, tiny_model_dir: Path, days: Path) -> None:
    text = (
        (days / "days.yaml").read_text().replace("task: days", "task: far").replace("path: json", "path: nobody/no-such-data")
    )
    (days / "far.yaml").write_text("\n".join(line for line in text.splitlines() if "dataset_kwargs" not in line))
    options = TaskOptions(tasks=("far",), model=str(tiny_model_dir), out=tmp_path / "out", include=days)
    with pytest.raises(EngineError, match=r"task 'far': .*no-such-data.*or name a task over local files") as caught:
        run_tasks(options, default_config("tasks"), NullProgress())
    assert "\n" not in str(caught.value)
