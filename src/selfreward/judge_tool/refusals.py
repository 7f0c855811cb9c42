"""Errors in the words of the command: who gives a file and options has no `name`, no sources and no settings to turn."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from selfreward.errors import DriftError, SelfRewardError, UsageError

WORDS: Mapping[str, str] = {
    "make them two sources, or set the source's `format`": "judge them one by one, or give --format",
    "set the source's `format` to one of": "give --format, one of",
    "set the source's `path` to one of these folders": "name one of these folders",
    "or set another `name`": "or give another --out",
}
"""What lower layers advise -> what the command can do."""
_CHANGED = (
    (re.compile(r"the contents of sections\.data changed"), "the data (or --limit, --format) changed"),
    (re.compile(r"the contents of sections\.rubric changed"), "the rubric changed"),
    (re.compile(r"the contents of sections\.player\.weights changed"), "the model's weights changed"),
    (re.compile(r"\bsections\."), ""),
)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Errors of the block as the command says them; their kinds stay."""
    try:
        yield
    except DriftError:
        raise
    except SelfRewardError as error:
        text = str(error)
        for theirs, ours in WORDS.items():
            text = text.replace(theirs, ours)
        if text == str(error):
            raise
        raise type(error)(text) from error


def other_settings(error: DriftError, out: Path | None, folder: Path) -> UsageError:
    """What to do where the output was made with other settings or data."""
    text = str(error).partition(" Set another")[0]
    for pattern, ours in _CHANGED:
        text = pattern.sub(ours, text)
    return UsageError(f"{text} Give another --out, or delete {folder} and {out} to begin again")
