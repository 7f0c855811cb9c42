"""An unknown format is told by the nearest known one and the fields that it lacks."""

from pathlib import Path

import pytest

from selfreward.config import SourceConfig
from selfreward.errors import DataError
from selfreward.sources import read_source
from selfreward.sources.formats import formats
from selfreward.sources.nearest import FIELDS


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("question,answer", "a,b", "completion, which lacks 'prompt' (rename 'question'?) and 'completion' or"),
        ("promt,response", "a,b", "completion, which lacks 'prompt' (rename 'promt'?)"),
        ("Instruction,Output", "a,b", "alpaca, which lacks 'instruction' (rename 'Instruction'?) and 'output' or"),
        ("prompt,chosen,rejectd", "a,b,c", "preference, which lacks 'rejected' (rename 'rejectd'?)"),
        ("id,conversation", "1,b", "messages, which lacks 'messages' (rename 'conversation'?)"),
        ("chosen,reject", "a,b", "preference, which lacks 'rejected' (rename 'reject'?)"),
        ("colour,size", "a,b", "they resemble no format (the plainest, completion, needs 'prompt' and"),
    ],
)  # fmt: skip
def test_the_nearest_format_is_named(tmp_path: Path, header: str, row: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError) as caught:
        list(read_source(SourceConfig(path=str(tmp_path / "a.csv")), "", "fail")[1])
    assert "; set the source's `format` to one of" in str(caught.value)
    assert said in str(caught.value)


def test_every_format_has_its_fields() -> None:
    assert FIELDS.keys() == formats(None).keys()
