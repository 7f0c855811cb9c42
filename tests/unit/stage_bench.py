"""What tests of stages share: a scripted model, and runs over one settings tree."""

import json
from pathlib import Path
from typing import Any

from selfreward.artifacts import Artifact, Run, read_json
from selfreward.config import Config, parse_config

SCORES = {"excellent": 5, "decent": 3, "poor": 1}
"""What the scripted judge says about a response that holds the word."""


def write_script(path: Path, **changes: Any) -> str:
    """A scripted model: answers prompts with one of four candidates, judges by keyword, proposes numbered tasks."""
    replies = [
        {
            "match": r"(?s)Here are tasks that people gave",
            "reply": [" ".join(f"w{i}{place}" for place in "abcde") for i in range(97)],
        },
        *(
            {"match": rf"(?s)<response>.*{word}.*</response>", "reply": f"That is {word}.\nScore: {score}"}
            for word, score in SCORES.items()
        ),
        {"match": r"(?s)<response>.*</response>", "reply": "I cannot say."},
        {"match": ".", "reply": ["an excellent answer", "a decent answer", "a poor answer", "Score: 5, surely", "  "]},
    ]
    path.write_text(json.dumps({"replies": replies, "default": None} | changes), encoding="utf-8")
    return str(path)


class Stages:
    """Opens runs over one settings tree and closes them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._open: list[Run] = []

    def run(self, **changes: Any) -> Run:
        tree = json.loads(json.dumps(self.settings))
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        run = Run.open(self.config(tree))
        self._open.append(run)
        return run

    @staticmethod
    def config(tree: dict[str, Any]) -> Config:
        return parse_config(tree)

    def close(self) -> None:
        for run in self._open:
            run.close()


def model(run: Run, key: str = "m1") -> Artifact:
    """A stand-in for a trained model: the scripted engine answers for it."""
    folder = run.dir.root / key
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    return Artifact(key, folder, "0123456789abcdef")


def record(artifact: Artifact) -> dict[str, Any]:
    loaded: dict[str, Any] = read_json(artifact.path / "record.json")
    return loaded
