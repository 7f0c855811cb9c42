"""The whole algorithm from the command line with judge and proposer behind an endpoint, and where its key may not be."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from endpoint_server import EndpointServer, refusal, serving
from test_pipeline_scripted import SETTINGS, write_script, write_seeds
from typer.testing import CliRunner

from selfreward.artifacts import read_json
from selfreward.cli import app
from selfreward.engines.scripted import ScriptedEngine
from selfreward.types import Message, Request, Sampling

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EndpointServer]:
    script = ScriptedEngine.open(str(write_script(tmp_path / "script.json")))

    def brain(asked: str, seed: int) -> str:
        (reply,) = script.generate([Request("x", (Message("user", asked),), Sampling(10_000), seed)])
        return reply.text

    with serving(brain) as made:
        yield made


def test_a_run_from_the_command_line_to_the_report(
    server: EndpointServer, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        **SETTINGS,
        "name": "far",
        "run_dir": str(tmp_path / "runs"),
        "num_rounds": 1,
        "model": {"path": str(tiny_model_dir)},
        "engine": {"name": "scripted", "script": str(tmp_path / "script.json"), "threads": 1, "device": "cpu"},
        "seed": {"sources": [{"format": "seed-folder"}], "path": str(write_seeds(tmp_path / "seeds"))},
        "endpoints": {"far": server.settings(api_key_env="FAR_KEY", send_seed=True)},
        "judge": {**SETTINGS["judge"], "model": "endpoint:far"},
        "propose": {**SETTINGS["propose"], "model": "endpoint:far"},
    }
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("FAR_KEY", KEY)
    command = ["run", str(tmp_path / "far.yaml")]
    root = tmp_path / "runs" / "far"

    server.faults = [refusal(403, f"{KEY} may not")]
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 1
    assert "status 403: *** may not" in str(stopped.exception)
    assert not (root / "round-1" / "prompts" / "record.json").exists()

    server.faults = [refusal(500, f"{KEY} broke me"), refusal(429, "slow down", retry_after="0.01")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert read_json(root / "round-1" / "prompts" / "record.json")["roles"]["proposer"] == "endpoint:far"
    assert read_json(root / "round-1" / "judgements" / "record.json")["roles"]["judge"] == "endpoint:far"
    assert read_json(root / "round-1" / "pairs" / "record.json")["counts"]["out"] > 0
    report = (root / "report.html").read_text()
    assert "endpoint:far" in report
    assert server.url in report

    shown = stopped.output + str(stopped.exception) + done.output + json.dumps(read_json(root / "environment.json"))
    assert KEY not in shown
    assert not [path for path in root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
