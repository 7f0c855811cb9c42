"""Files to judge and scripted judges for them."""

import json
from pathlib import Path
from typing import Any

from selfreward.config import default_config
from selfreward.judge_tool import Options, judge_data
from selfreward.progress import NullProgress

QUALITY = {"superb": 5, "fine": 3, "bad": 1}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def script(path: Path, scores: dict[str, Any], **changes: Any) -> str:
    """A judge that says of a response with the word what the table says."""
    replies = [
        {"match": f"(?s)<response>.*{word}.*</response>", "reply": f"Score: {score}" if isinstance(score, int) else score}
        for word, score in scores.items()
    ]
    path.write_text(json.dumps({"replies": replies, "default": None} | changes))
    return f"scripted:{path}"


def ranked(path: Path, number: int = 12) -> Path:
    rows = [
        {"id": f"q{n}", "prompt": f"question {n}?", "responses": [{"text": f"{word} answer {n}", "rank": rank}
         for rank, word in enumerate(QUALITY)]}
        for n in range(number)
    ]  # fmt: skip
    return write(path, *rows)


def judge(data: Path, model: str, config: Any = None, **options: Any) -> dict[str, Any]:
    return judge_data(Options(data, model, **options), config or default_config("judge"), NullProgress())
