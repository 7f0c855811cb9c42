"""Every command of `selfreward eval` that may ask a server, against a real one: what is sent, what comes back, what fails."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, refusal, serving
from test_eval_run import Trial
from typer.testing import CliRunner, Result

from selfreward.artifacts import read_json
from selfreward.cli import app
from selfreward.errors import EngineError, UsageError

KEY = "sk-very-secret-0123456789"
FRUITS = ("plum", "kiwi", "fig", "pear")


def brain(asked: str, seed: int) -> str:
    """As judge: prefers what is written in capitals, gives it 9 points and everything else 4, and has no opinion on figs. As
    model: answers in capitals."""
    if "<response_a>" in asked:
        first, second = (re.search(rf"<response_{side}>\s*(.*?)\s*</response_{side}>", asked, re.DOTALL) for side in "ab")
        assert first is not None
        assert second is not None
        if "fig" in first[1].lower():
            return "Who can say."
        return f"Verdict: {'A' if first[1].isupper() else 'B' if second[1].isupper() else 'tie'}"
    if "<response>" in asked:
        found = re.search(r"<response>\s*(.*?)\s*</response>", asked, re.DOTALL)
        assert found is not None
        return "No grade." if "FIG" in found[1] else f"Score: {9 if found[1].isupper() else 4}"
    return asked.upper()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("FAR_KEY", KEY)
    with serving(brain) as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, server: EndpointServer) -> str:
    tree = {"name": "ask", "model": {"path": "lab"}, "seed": {"sources": [{"format": "lab"}]},
            "judge": {"max_tokens": 20},
            "endpoints": {"far": server.settings(api_key_env="FAR_KEY", max_retries=3)}}  # fmt: skip
    path = tmp_path / "ask.yaml"
    path.write_text(json.dumps(tree))
    return str(path)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["eval", *words])


def json_of(*words: str) -> dict[str, Any]:
    done = run(*words, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def rows(path: Path, answer: str, **own: str) -> str:
    outputs = {fruit: own.get(fruit, answer.format(fruit)) for fruit in FRUITS}
    path.write_text(json.dumps([{"instruction": f"name a {fruit}", "output": text} for fruit, text in outputs.items()]))
    return str(path)


def prompts(path: Path) -> str:
    path.write_text("".join(json.dumps({"prompt": f"name a {fruit}"}) + "\n" for fruit in FRUITS))
    return str(path)


def holds_key(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_server_judges_two_files(tmp_path: Path, server: EndpointServer, config: str) -> None:
    a, b = rows(tmp_path / "a.json", "a {}", plum="A PLUM"), rows(tmp_path / "b.json", "{}")
    server.faults = [refusal(429, "slow down", retry_after="0"), None, refusal(500, "oops")]
    out = tmp_path / "c.jsonl"
    summary = json_of("compare", a, b, "--judge", "endpoint:far", "--config", config, "--out", str(out))
    counts = summary["counts"]
    # Only plums are in capitals throughout, figs have no verdict, the rest ties.
    assert (counts["wins"], counts["ties"], counts["losses"], counts["no_verdict"]) == (1, 2, 0, 1)
    assert summary["failed_verdicts"] == {"no_verdict": 2}
    assert (summary["judge"], summary["figures"]["first_position"]["value"]) == ("endpoint:far", 0.5)
    assert len(server.calls) == 2 * 4 + 2, "both orders of four contests, and two requests again"
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert {call.body["temperature"] for call in server.calls} == {0}
    record = read_json(Path(f"{out}.run") / "comparisons" / "record.json")
    assert record["tokens"]["prompt"] > 100
    assert record["roles"] == {"judge": "endpoint:far"}
    assert holds_key(tmp_path) == []
    num = len(server.calls)
    assert json_of("compare", a, b, "--judge", "endpoint:far", "--config", config, "--out", str(out)) == summary
    assert len(server.calls) == num, "nothing is asked twice"


def test_a_server_answers_and_another_model_is_its_baseline(tmp_path: Path, server: EndpointServer, config: str) -> None:
    server.faults_of["name a kiwi"] = [refusal(400, "too long", code="context_length_exceeded")]
    out = tmp_path / "out.json"
    arguments = ["alpaca", "--model", "endpoint:far", "--config", config, "--prompts", prompts(tmp_path / "p.jsonl")]
    summary = json_of(
        *arguments, "--outputs", str(out), "--judge", "endpoint:far", "--baseline", rows(tmp_path / "b.json", "{}")
    )
    assert (summary["generator"], summary["written"], summary["dropped"]) == ("tiny", 3, {"too_long": 1})
    assert [row["output"] for row in json.loads(out.read_text())] == ["NAME A PLUM", "NAME A FIG", "NAME A PEAR"]
    assert (summary["alpaca"]["win_rate"], summary["alpaca"]["n"], summary["alpaca"]["no_verdict"]) == (100, 2, 1)
    assert summary["alpaca"]["length_controlled_low"] < 70, "two wins of two are no certainty"
    sent = [call.body for call in server.calls if call.asked == "name a plum"]
    assert [(body["model"], body["temperature"], body["top_p"]) for body in sent] == [("tiny", 0.7, 0.9)]


def test_a_server_takes_both_turns_and_grades(tmp_path: Path, server: EndpointServer, config: str) -> None:
    categories = ("writing", "math", "stem", "math")
    questions = [
        {"question_id": number, "category": category, "turns": [f"name a {fruit}", "and another"]}
        for number, (fruit, category) in enumerate(zip(FRUITS, categories, strict=True), 1)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    arguments = ["mt-bench", "--model", "endpoint:far", "--judge", "endpoint:far", "--config", config, "--questions", str(path)]
    settings = ["judge.temperature=0", "eval.num_votes=1"]
    summary = json_of(arguments[0], *settings, *arguments[1:], "--out", str(tmp_path / "mt"))
    talks = [call.body for call in server.calls if len(call.body["messages"]) == 3]
    assert [[message["role"] for message in body["messages"]] for body in talks] == [["user", "assistant", "user"]] * 4
    assert {body["messages"][1]["content"] for body in talks} == {f"NAME A {fruit.upper()}" for fruit in FRUITS}
    asked = {call.asked: call.body["temperature"] for call in server.calls if call.asked.startswith("name a ")}
    assert asked == {"name a plum": 0.7, "name a kiwi": 0, "name a fig": 0.1, "name a pear": 0}
    table = {row["category"]: row for row in summary["categories"]}
    assert (table["math"]["both"]["value"], table["stem"]["first"]["value"]) == (9, None)
    assert (table["stem"]["second"]["value"], table["stem"]["missing"]) == (9, 1)
    grades = (tmp_path / "mt" / "model_judgment" / "tiny_single.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in grades].count(-1) == 1
    assert holds_key(tmp_path) == []


def test_a_server_compares_all_models_of_a_run(tmp_path: Path, server: EndpointServer, config: str) -> None:
    root = Trial(tmp_path / "trial").make()
    with pytest.raises(UsageError, match="names no endpoint; endpoints knows: none"):
        raise run(str(root), "--judge", "endpoint:far").exception or AssertionError
    with pytest.raises(UsageError, match="--judge endpoint:NAME"):
        raise run(str(root), "--config", config).exception or AssertionError
    assert server.calls == []
    document = json_of(str(root), "--judge", "endpoint:far", "--config", config)
    assert document["judge"]["name"] == "endpoint:far"
    pairs = document["pairs"].values()
    assert [(pair["counts"]["ties"], pair["counts"]["orders_disagree"]) for pair in pairs] == [(8, 0)] * 3, (
        "none is in capitals"
    )
    assert 0 < len(server.calls) <= 2 * 3 * 8, "both orders, but for equal texts"
    num = len(server.calls)
    assert json_of(str(root), "--judge", "endpoint:far")["judge"]["name"] == "endpoint:far", "the run's settings know it now"
    assert len(server.calls) == num
    assert holds_key(root) == []
    assert "by endpoint:far" in (root / "report.html").read_text()


def test_a_server_that_refuses_is_one_line(tmp_path: Path, server: EndpointServer, config: str) -> None:
    server.faults = [refusal(401, "bad key", code="invalid_api_key")] * 20
    a, b = rows(tmp_path / "a.json", "A {}"), rows(tmp_path / "b.json", "{}")
    done = run("compare", a, b, "--judge", "endpoint:far", "--config", config)
    assert isinstance(done.exception, EngineError)
    assert "\n" not in str(done.exception)
    assert "401" in str(done.exception)
    assert KEY not in str(done.exception)
