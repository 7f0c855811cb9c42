"""Parts of the configuration tree that `config.py` is built of: the seed sources."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from selfreward.section import Section


class SourceConfig(Section):
    """One source of seed data: where it lies, what shape it has, and which of its rows are wanted."""

    path: str = ""
    """A file, a folder, or a hub id (`owner/name` or `owner/name:split`, needs `allow_download`); empty: `seed.path`."""
    format: Literal[
        "auto", "lab", "seed-folder", "oasst-trees", "oasst-messages", "alpaca", "messages", "sharegpt",
        "completion", "self-instruct", "ranked", "preference", "eft", "prompts",
    ] = "auto"  # fmt: skip
    """Shape of the rows; `auto` tells it from the first ones. `lab`: the embedded micro-world."""
    role: Literal["auto", "ift", "ranked", "prompts", "eft"] = "auto"
    """What the rows are used for; `auto`: all that the format offers."""
    split: Literal["auto", "train", "heldout"] = "auto"
    """Where the rows may go; `auto` lets the seed stage hold out a part. A seed folder's files have splits of their own."""
    lang: str | None = Field(default=None, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$")
    """Keep this language only, such as `en`, whatever its region: by the row's own `lang` field, else unless its prompt is
    clearly in another one."""
    min_response_words: int | None = Field(default=None, ge=1)
    """Responses with fewer words are left out."""
    max_response_words: int | None = Field(default=None, ge=1)
    """Responses with more words are left out."""
    max_prompt_words: int | None = Field(default=None, ge=1)
    """Rows whose prompt has more words are left out."""
    cap: int | None = Field(default=None, ge=1)
    """Reading stops after this many records; what follows is not looked at."""
    allow_download: bool = False
    """Let `datasets` stream `path` from the hub when it is no file or folder; otherwise no network is used."""

    @model_validator(mode="after")
    def _some_response_fits(self) -> "SourceConfig":
        low, high = self.min_response_words, self.max_response_words
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_response_words={low} is above max_response_words={high}: no response fits; change either")
        return self


def check_sources(sources: Sequence[SourceConfig], path: str | None) -> None:
    """Raises ValueError where there is no source, or `seed.path` and the sources' own paths do not fit together."""
    # No bound of the field: it would be broken, and said to be, by each wrong source too.
    if not sources:
        raise ValueError("sources must hold one source at least, such as [{format: lab}]")
    open_ones = [source for source in sources if source.format != "lab" and not source.path]
    if open_ones and not path:
        raise ValueError(f"a source of format {open_ones[0].format} needs a path; set its path, or seed.path")
    if path and not open_ones:
        raise ValueError(f"seed.path={path!r} belongs to no source; set seed.sources=[{{format: auto}}] to read it")
