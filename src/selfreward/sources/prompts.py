"""A file of prompts, one a row -> (number of the line or row, prompt), in the order of the file.

A name that ends in .txt (.txt.gz, .txt.zst): each line that is not blank is a prompt, whatever it looks like. Everything else
is read as seed sources are: a row has `prompt`, `instruction` (a text in `input` follows it) or `text`; other fields do not
count.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from selfreward.sources.containers import TEXT_SUFFIX, data_suffix, text_lines
from selfreward.sources.formats import is_row
from selfreward.sources.places import file_rows
from selfreward.sources.plain import prompt_of
from selfreward.sources.rows import BadRow

Prompts = Callable[[], Iterator[tuple[int, str]]]
"""Opens the file anew and streams its prompts. Raises DataError at a row that cannot be read."""


def read_prompts(path: Path) -> Prompts:
    """How to read a file of prompts. Raises DataError for what can be told from the file's beginning."""
    rows = text_lines(path) if data_suffix(path) == TEXT_SUFFIX else file_rows(path, is_row)

    def stream() -> Iterator[tuple[int, str]]:
        for row in rows():
            if isinstance(row, BadRow):
                raise row.error
            yield row.number, prompt_of(row)

    return stream
