"""The file of a user's own prompts that `propose.path` names. How it is read, `sources.prompts` says.

A prompt is known by its line, from 1 (its row where the file has no lines): later rounds go on behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from selfreward.errors import ConfigError, DataError
from selfreward.sources import read_prompts


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt and the line where it stands. The text may be blank: who filters it counts it."""

    line: int
    text: str


def read_prompt_file(setting: str, after: int = 0) -> Iterator[PromptRow]:
    """The rows of `propose.path` behind line `after`. The path and the file's beginning are looked at in the call itself.

    Raises ConfigError when the path names no file, DataError for one that is no file of prompts or, naming the line, for a
    row that cannot be read.
    """
    path = Path(setting).expanduser()
    if not path.is_file():
        raise ConfigError(f"propose.path={setting!r} is no file; propose.source=file needs one")
    with _named():
        prompts = read_prompts(path)

    def stream() -> Iterator[PromptRow]:
        with _named():
            for line, text in dropwhile(lambda row: row[0] <= after, prompts()):
                yield PromptRow(line, text)

    return stream()


def count_prompts(setting: str) -> int:
    """How many rows the file has, each of them readable. Raises ConfigError where there are none, else as above."""
    num_rows = sum(1 for _ in read_prompt_file(setting))
    if not num_rows:
        raise ConfigError(f"propose.path={setting!r} holds no prompt; add one a line, or set propose.source=self-instruct")
    return num_rows


@contextmanager
def _named() -> Iterator[None]:
    """Puts the setting before what is wrong with the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"propose.path: {error}") from error
