"""The page: self-contained, data stays text, everything a reader needs is there, also for runs that are not finished."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from report_run import config_of, measures_of, write_evals, write_round, write_start

from selfreward.artifacts import write_json
from selfreward.report.examples import pick_examples
from selfreward.report.html import render_report, write_report
from selfreward.report.page import duration
from selfreward.report.reading import read_config
from selfreward.report.summary import build_summary
from selfreward.types import Measure

HOSTILE = '</pre></script><script>alert(1)</script><img src=x onerror="alert(2)"> {{ 7 * 7 }} <!-- \'"'
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Elements, attributes and balance of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self.open, self.scripts, self.words = text, [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    @property
    def shown(self):
        return " ".join(" ".join(self.words).split())

    def count(self, kind):
        return sum(kind in (attrs.get("class") or "").split() for _, attrs in self.elements)


ROUNDS = [
    {f"prompt {t}-{i}": [("good", [5, 5]), ("bad", [1, 2]), ("so so", [3, "no_score"])] for i in range(6)}
    | {f"tied {t}-{i}": [("a", [4, 4]), ("b", [4, 4])] for i in range(3)}
    for t in (1, 2)
]


def _run(root, rounds=ROUNDS, **settings):
    config = config_of(root, num_rounds=len(rounds), random_seed=3, **settings)
    directory = write_start(root, config)
    contest = {"judge": "oracle", "opponent": "sft", "wins": 2}
    figures = {"oracle_mean": [1, 2, 3, 2], "judge_pairwise": [(1, 3), (0, 1), (0.5, 2)], "mean_length": [10, 20, 30, 20]}
    rates = {"win_rate": [1, 1, 0, 0], "tie_rate_head_to_head": [0, 0, 1, 0], "lose_rate": [0, 0, 0, 1]}
    write_evals(directory, "sft", measures_of(**figures, judge_scored=[(1, 3)]), votes={"s0": [["no_score", 4], ["no_score"]]})
    write_evals(directory, "m1", measures_of(**figures, **rates), head_to_head=contest)
    for t, prompts in enumerate(rounds, start=1):
        write_round(directory, t, prompts, prompt_drops={"rouge_l": 4})
        better = {key: [value + 1 if key == "oracle_mean" else value for value in values] for key, values in figures.items()}
        write_evals(directory, f"m{t + 1}", measures_of(**better, pairs_truly_better=[1, 0], round_oracle_mean=[2, 4]))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("html") / "page")


@pytest.fixture(scope="module")
def page(directory):
    return Page(render_report(directory))


def test_markup_is_balanced(page):
    assert page.open == []


def test_self_contained(page):
    assert not re.search(r"(?i)https?:|//[a-z]|@import|url\(", page.text)
    for tag, attrs in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "img", "form", "base"}
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
    assert not [tag for tag, attrs in page.elements if tag == "script" and attrs]
    first = page.text.encode("utf-8")[:1024]
    assert b'<meta charset="utf-8">' in first, "browsers look for the encoding in the first 1024 bytes only"


def test_only_the_pages_own_script_may_run(page):
    policy = next(attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]


def test_hostile_text_stays_text(tmp_path):
    prompts = {HOSTILE + str(i): [(HOSTILE, [5, 5]), (HOSTILE + "b", [1, "no_score"])] for i in range(5)}
    directory = _run(tmp_path / "evil", [prompts], judge={"model": "scripted:" + HOSTILE}, model={"path": HOSTILE})
    write_json(directory.environment, {"cpu": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    page = Page(render_report(directory))
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert page.open == []
    assert HOSTILE in "".join(page.words)
    assert "{{ 7 * 7 }}" in page.shown


def test_all_parts_are_there(page):
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {"result", "curves", "figures", "votes", "rounds", "examples", "training", "provenance", "settings"} <= ids
    links = {attrs["href"][1:] for tag, attrs in page.elements if tag == "a"}
    assert links <= ids
    for title in (
        "Answers",
        "Judge",
        "Head-to-head",
        "Length",
        "Supervised loss",
        "DPO loss",
        "Given and true scores",
        "Pairs",
    ):
        assert title in page.shown
    assert "How this word is chosen" in page.shown
    assert "improving" in page.shown


def test_figures_drops_failures_and_provenance(page):
    for text in ("rouge_l 4", "tie 3", "duplicate 2", "no score in the reply", "A tie counts 1/2.", "+1.00"):
        assert text in page.shown
    assert len(re.findall(r"<code>[0-9a-f]{16}</code>", page.text)) >= 15
    assert "the policy itself" in page.shown


def test_five_examples_with_votes_and_pairs(page):
    assert page.count("example") == 5
    assert page.count("chosen") == page.count("rejected") == 4
    assert "no pair, all candidates have the same score" in page.shown
    assert "votes: 3, no score" in page.shown
    assert "Reasons. Score: 5" in page.shown
    assert "prompt 2-" in page.shown
    assert "prompt 1-" not in page.shown


def test_examples_follow_the_seed_and_nothing_else(directory):
    def picks(seed):
        config = read_config(directory).model_copy(update={"random_seed": seed})
        return [example["id"] for example in pick_examples(directory, config, 2)]

    assert picks(3) == picks(3)
    assert len({tuple(picks(seed)) for seed in range(8)}) > 1
    assert render_report(directory) == render_report(directory)


def test_examples_show_the_candidates_true_scores(tmp_path):
    directory = _run(tmp_path / "true", [ROUNDS[0]])
    truth = [Measure("candidate_oracle", f"r1-p{index}/{place}", 2.5, 1.0) for index in range(9) for place in range(3)]
    write_evals(directory, "m2", truth)
    examples = pick_examples(directory, read_config(directory), 1)
    assert {candidate["oracle"] for example in examples for candidate in example["candidates"]} == {2.5}


def test_a_summary_at_hand_is_not_built_again(directory):
    summary = build_summary(directory)
    assert render_report(directory, summary) == render_report(directory)
    write_report(directory, summary | {"name": "the one at hand"})
    assert "<h1>the one at hand</h1>" in directory.report.read_text(encoding="utf-8")


def test_held_out_failures_show_without_any_round(tmp_path):
    directory = write_start(tmp_path / "none", config_of(tmp_path / "none", num_rounds=0))
    for name in ("sft", "m1"):
        write_evals(directory, name, measures_of(oracle_mean=[1, 2]), votes={"s0": [[4, "truncated"]]})
    page = Page(render_report(directory))
    assert page.open == []
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert "rounds" not in ids
    assert "votes" in ids
    assert "cut by the token limit" in page.shown
    assert "1 vote with a score" in page.shown


def test_file_is_written_whole(directory):
    write_report(directory)
    text = directory.report.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")


def test_endpoints_are_shown_among_the_settings(tmp_path):
    endpoints = {"far": {"base_url": "http://models.example/v1", "model": "big", "api_key_env": "FAR_KEY"}}
    config = config_of(tmp_path / "far", num_rounds=0, endpoints=endpoints, judge={"model": "endpoint:far"})
    text = render_report(write_start(tmp_path / "far", config))
    for shown in ("endpoints.far.base_url", "http://models.example/v1", "FAR_KEY", "endpoint:far"):
        assert shown in text


def test_changed_settings_are_marked(page):
    changed = re.findall(r'class="changed"><dt>([^<]+)</dt>', page.text)
    assert "eval.oracle" in changed
    assert "random_seed" in changed
    assert "judge.num_votes" not in changed


def test_without_an_oracle(tmp_path):
    settings = {"eval": {"oracle": False, "head_to_head": "policy"}, "seed": {"sources": [{"format": "auto"}], "path": "x"}}
    config = config_of(tmp_path / "real", num_rounds=1, **settings)
    directory = write_start(tmp_path / "real", config)
    for name in ("sft", "m1", "m2"):
        write_evals(directory, name, measures_of(judge_pairwise=[0.5, 1.0], mean_length=[5, 9]))
    write_round(directory, 1, ROUNDS[0])
    page = Page(render_report(directory))
    assert "not measured" in page.shown
    assert "Own scores" in page.shown
    assert "oracle score of" not in page.shown
    assert page.open == []


@pytest.mark.parametrize("progress", ["nothing", "sft", "prompts", "judged"])
def test_unfinished_runs_render(tmp_path, progress):
    directory = write_start(tmp_path / "part", config_of(tmp_path / "part", num_rounds=1))
    if progress != "nothing":
        write_evals(directory, "sft", measures_of(oracle_mean=[1, 2]))
    if progress in ("prompts", "judged"):
        write_evals(directory, "m1", measures_of(oracle_mean=[1, 2]))
        write_round(directory, 1, ROUNDS[0])
        if progress == "prompts":
            for folder in (directory.judgements(1), directory.pairs(1), directory.model(1)):
                (folder / "record.json").unlink()
    page = Page(render_report(directory))
    assert page.open == []
    assert "run not finished" in page.shown
    assert "not done" in page.shown
    assert (page.count("example") == 5) == (progress == "judged")


def test_text_that_utf8_cannot_hold_is_still_written(tmp_path):
    directory = _run(tmp_path / "odd", [ROUNDS[0]])
    write_json(directory.environment, {"cpu": "\ud800"})
    write_report(directory)
    assert "\\ud800" in directory.report.read_text(encoding="utf-8")


def test_duration():
    assert [duration(s) for s in (0.04, 59.94, 65, 3599.9, 3600, 7500)] == [
        "0.0 s", "59.9 s", "1 min 05 s", "1 h 00 min", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
