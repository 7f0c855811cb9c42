"""Fixtures of the stage tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage_bench import Stages, write_script


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "seeds"
    folder.mkdir()
    rows: dict[str, list[Any]] = {
        "ift": [{"prompt": f"how does machine {word} work today", "response": "well"} for word in "abcdefghij"],
        "heldout_prompts": [{"prompt": "name the hidden city of gold"}, {"prompt": "what is asked only at the end"}],
        "eft": [
            {"instruction": "say it", "response": f"a {word} reply", "judgement": f"Seen. Score: {score}", "score": score}
            for word, score in (("excellent", 5), ("decent", 2), ("poor", 4))
        ],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    return {
        "name": "trial",
        "run_dir": str(tmp_path / "runs"),
        "random_seed": 3,
        "engine": {"name": "scripted", "script": write_script(tmp_path / "script.json"), "chunk_size": 8},
        "seed": {"sources": [{"format": "seed-folder"}], "path": str(folder)},
        "propose": {"num_prompts": 6, "max_attempts": 60},
        "eval": {"head_to_head": "none"},
    }


@pytest.fixture
def stages(settings: dict[str, Any]) -> Iterator[Stages]:
    opened = Stages(settings)
    yield opened
    opened.close()
