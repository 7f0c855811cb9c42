"""Seed sources: which rows count as written in the wanted language."""

from pathlib import Path

import pytest
from source_files import lines, read

from selfreward.config import SourceConfig
from selfreward.errors import ConfigError
from selfreward.sources import read_source

SHORT = [
    "Explain recursion", "Define entropy", "Sort: 3 1 2", "Translate: bonjour", "Tell a joke", "Hi", "Summarize Hamlet",
    "Name five fruits", "What is DNA?", "print(1)",
]  # fmt: skip


def test_a_short_prompt_that_may_be_english_is_english(tmp_path: Path) -> None:
    foreign = "Bitte sag mir doch, wie das Wetter morgen in den Bergen wird"
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": text} for text in [*SHORT, foreign]]))
    _, records, drops = read(tmp_path / "a.jsonl", lang="en")
    assert [record.prompt for record in records] == SHORT
    assert [(drop.id, drop.reason) for drop in drops] == [("s-11", "lang")]


@pytest.mark.parametrize("lang", ["en", "EN", "en-GB"])
def test_a_language_is_the_same_whatever_its_region_and_case(tmp_path: Path, lang: str) -> None:
    marks = ["en-US", "EN", "en_gb", "en", "de", "eng"]
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": f"p{mark}", "lang": mark} for mark in marks]))
    _, records, drops = read(tmp_path / "a.jsonl", lang=lang)
    assert [record.lang for record in records] == ["en-US", "EN", "en_gb", "en"]
    assert {drop.reason for drop in drops} == {"lang"}
    tree = {"prompt": {"text": "why?", "lang": "en", "replies": [{"text": "so", "rank": 0, "lang": "en-US"}]}}
    (tmp_path / "trees.jsonl").write_bytes(lines([tree]))
    _, records, _ = read(tmp_path / "trees.jsonl", lang=lang)
    assert [record.response for record in records] == ["so"]


@pytest.mark.parametrize("lang", ["eng", "xx"])
def test_a_language_that_nobody_knows_is_refused_before_a_row_is_read(tmp_path: Path, lang: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"prompt": "p", "lang": lang}]))
    with pytest.raises(ConfigError, match=rf"seed\.sources\[\]\.lang='{lang}' is not known; known are .*\ben\b"):
        read_source(SourceConfig(path=str(tmp_path / "a.jsonl"), lang=lang), "s", "fail")
