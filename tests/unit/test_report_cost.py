"""report/cost.py: what a run cost, from the records of its stages."""

import json

import pytest
from report_run import config_of, measures_of, write_evals, write_start

from selfreward.artifacts import RunDir, read_json, write_json
from selfreward.pipeline import plan_pipeline
from selfreward.report.cost import HEADINGS, cost_cells, cost_line, cost_notes, run_cost, stage_cost
from selfreward.report.html import write_report
from selfreward.report.status import plan_status, render_plan
from selfreward.report.summary import build_summary
from selfreward.report.table import render_table
from selfreward.spending import COUNTED, Spending

GIB = 2**30


def usage_of(**told):
    peaks = {"peak_rss_bytes": GIB, "peak_gpu_bytes": None, "peak_of": "stage"}
    return {**dict.fromkeys(COUNTED, 0), **peaks, **told}


ASKED = usage_of(
    asked_tokens=12000, read_tokens=4000, generated_tokens=900, prefill_seconds=1.25, decode_seconds=2.0, engine_seconds=3.6
)
UNTOLD = usage_of(
    asked_tokens=500, read_tokens=None, generated_tokens=60, untold_tokens=500, prefill_seconds=None, decode_seconds=None,
    engine_seconds=30.0,
)  # fmt: skip
TRAINED = usage_of(trained_tokens=10_000, training_seconds=4.0, peak_rss_bytes=2 * GIB, peak_gpu_bytes=3 * GIB)


def cost(**usages):
    return run_cost(stage_cost(key, {"seconds": 10.0, "usage": usage}) for key, usage in usages.items())


def test_a_row_says_what_its_stage_did():
    rows = {row["stage"]: cost_cells(row) for row in cost(judge=ASKED, far=UNTOLD, m1=TRAINED)["stages"]}
    assert rows["judge"] == ["10.0", "12,000", "4,000", "900", "-", "250", "1.2", "2.0", "1.00"]
    assert rows["far"] == ["10.0", "500", "-", "60", "-", "2", "-", "-", "1.00"], "nobody tells what a server read"
    assert rows["m1"] == ["10.0", "-", "-", "-", "10,000", "2,500", "-", "-", "3.00"], "the larger peak"
    assert all(len(cells) + 1 == len(HEADINGS) for cells in rows.values())


def test_the_total_adds_up_and_says_what_it_lacks():
    told = cost(judge=ASKED, far=UNTOLD, m1=TRAINED)
    total = told["total"]
    assert (total["seconds"], total["asked_tokens"], total["read_tokens"]) == (30.0, 12_500, 4000)
    assert (total["generated_tokens"], total["trained_tokens"]) == (960, 10_000)
    assert (total["peak_rss_bytes"], total["peak_gpu_bytes"], total["num_untold"]) == (2 * GIB, 3 * GIB, 1)
    assert cost_cells(total)[2] == "4,000+", "at least"
    assert cost_line(total) == ("cost: 30 s; 12k asked, 4k read, 960 out, 10k trained tokens; 2.00 GiB, GPU 3.00")
    assert any("1 stage asked an engine that does not tell" in note for note in cost_notes(told))
    assert cost_line(cost()["total"]) == "cost: 0 s"
    large = run_cost(
        stage_cost(key, {"seconds": 98765.0, "usage": {**ASKED, **TRAINED, **dict.fromkeys(COUNTED, 8.7654e9)}}) for key in "ab"
    )
    assert len(cost_line({**large["total"], "peak_gpu_bytes": None})) <= 80, "one line of a narrow terminal"


def test_records_without_usage_are_shown_as_unknown():
    told = run_cost([stage_cost("sft", {"seconds": 3.0})])
    assert cost_cells(told["stages"][0]) == ["3.0", *["-"] * 8]
    assert told["total"]["num_unknown"] == 1
    assert any("a version that did not write down" in note for note in cost_notes(told))


def test_charged_answers_that_nobody_could_read_are_told():
    told = cost(far=usage_of(asked_tokens=5, lost_tokens=1200), near=ASKED)
    assert told["total"]["lost_tokens"] == 1200
    assert any(note.startswith("1,200 tokens more were charged by servers") for note in cost_notes(told))
    assert not any("charged" in note for note in cost_notes(cost(near=ASKED)))


def test_a_record_of_a_version_that_told_less_is_read():
    earlier = {name: number for name, number in ASKED.items() if name != "lost_tokens"}
    told = cost(judge=earlier, far=usage_of(lost_tokens=7))
    assert (told["stages"][0]["lost_tokens"], told["total"]["lost_tokens"], told["total"]["num_unknown"]) == (None, 7, 0)


@pytest.fixture
def run_dir(tmp_path):
    config = config_of(tmp_path / "runs" / "costly", num_rounds=1)
    run_dir = write_start(tmp_path / "runs" / "costly", config)
    write_evals(run_dir, "sft", measures_of(oracle_mean=[1.0, 2.0], mean_length=[3.0, 4.0]))
    for folder, usage in ((run_dir.sft, TRAINED), (run_dir.evals("sft"), ASKED)):
        write_json(folder / "record.json", {**read_json(folder / "record.json"), "usage": usage})
    return RunDir(run_dir.root)


def test_summary_table_and_page_show_it(run_dir):
    summary = build_summary(run_dir)
    assert summary["cost"]["total"]["asked_tokens"] == 12_000
    assert [row["stage"] for row in summary["cost"]["stages"]][:4] == ["seed", "m0", "sft", "sft/evals"]
    json.dumps(summary, allow_nan=False)
    lines = render_table(summary).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.startswith("cost: ") and "12k asked, 4k read, 900 out, 10k trained tokens; 2.00 GiB" in line for line in lines
    )
    write_report(run_dir, summary)
    page = run_dir.report.read_text(encoding="utf-8")
    assert "What it cost" in page
    table = page[page.index("What it cost") :]
    for heading in HEADINGS:
        assert f'<th scope="col">{heading}</th>' in table
    assert "<td>12,000</td><td>4,000</td><td>900</td>" in table


def test_status_shows_the_cost_of_parts_too(run_dir, tmp_path):
    from selfreward.parts import write_part
    from selfreward.types import Prompt

    spent = Spending()
    mark = spent.mark()
    spent.add_tokens(1000, 50)
    spent.add_engine(2.0, {"asked_tokens": 1000, "read_tokens": 400, "generated_tokens": 50}, 1000, 50)
    write_part(run_dir.prompts(1) / "parts", "proposals-00000-x", [], Prompt, spent.since(mark, 2.5))
    config = config_of(run_dir.root, num_rounds=1)
    status = plan_status(plan_pipeline(config, None, run_dir))
    assert status["cost"]["asked_tokens"] == 13_000
    assert status["cost"]["read_tokens"] == 4400
    shown = render_plan(status, config.model_dump(mode="json"))
    assert any(line.startswith("cost: ") for line in shown.splitlines())
    assert max(map(len, shown.splitlines())) <= 80
