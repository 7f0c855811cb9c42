"""Files of a user's: seed data, prompts, words."""

from itertools import islice
from pathlib import Path

from selfreward.config import Config, SourceConfig
from selfreward.errors import ConfigError, DataError
from selfreward.filters import check_language, read_unsafe_words
from selfreward.preflight.findings import Findings
from selfreward.sources import read_source
from selfreward.stages._prompt_file import count_prompts
from selfreward.stages.seed import located_sources
from selfreward.texts import counted

FIRST_ROWS = 20
"""Rows of each seed source that are read before a run."""


def check_sources(config: Config, findings: Findings) -> None:
    """Each source of seed data by its first rows; a line each."""
    for place, source in enumerate(located_sources(config.seed)):
        label = f"seed.sources[{place}]"
        with findings.part():
            try:
                findings.line(_check_source(config, source, label))
            except DataError as error:  # the file's fault; which setting names it stands before it
                raise DataError(f"{label}: {str(error).removeprefix(f'{label}: ')}") from error


def _check_source(config: Config, source: SourceConfig, label: str) -> str:
    """Raises ConfigError for a source that is not there, and what reading raises: DataError for an unknown format or a
    malformed row."""
    if source.format == "lab":
        return f"{label}: the micro-world, held-out set {config.seed.heldout!r}"
    if not Path(source.path).expanduser().exists() and not source.allow_download:
        raise ConfigError(
            f"{label}: {source.path!r} is no file or folder here; set its path (or seed.path), "
            f"or {label}.allow_download=true for a data set of the hub"
        )
    if source.lang is not None:
        check_language(source.lang, f"{label}.lang")
    reading, items = read_source(source, "", config.seed.on_bad_row)
    num_rows = sum(1 for _ in islice(items, FIRST_ROWS))
    if not num_rows:
        raise DataError(f"{label}: {source.path!r} holds no rows")
    found = "detected" if reading.detected else "named"
    return f"{label}: {source.path}, format {reading.format} ({found}), first {counted(num_rows, 'row')} can be read"


def check_filters(config: Config, findings: Findings) -> None:
    """What the filters of new prompts read, and a user's own prompts."""
    propose = config.propose
    if propose.source == "file":
        with findings.part():
            number = count_prompts(propose.path or "")
            findings.line(f"propose.path: {counted(number, 'prompt')} in {propose.path}")
    if propose.unsafe_words_file is not None:
        with findings.part():
            number = len(read_unsafe_words(propose.unsafe_words_file))
            findings.line(f"propose.unsafe_words_file: {counted(number, 'word or phrase', 'words and phrases')}")
    if propose.lang is not None:
        with findings.part():
            check_language(propose.lang, "propose.lang")
            findings.line(f"propose.lang: {propose.lang}")
