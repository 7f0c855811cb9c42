"""The human seed data: its sources, and the EFT targets built of it."""

from typing import Literal

from pydantic import Field

from selfreward.config.section import Section


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


class SeedConfig(Section):
    """The human seed data: IFT pairs, EFT targets, held-out prompts and ranked sets."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(format="lab"),)
    """Where the data comes from, read in this order; `lab` is the micro-world."""
    path: str | None = None
    """The path of every source that has none of its own."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """A malformed row stops the run, or is left out and counted."""
    max_overlap: float = Field(default=0.7, gt=0, le=1)
    """ROUGE-L F1 above this to a prompt of another split counts as the same prompt; 1.0: only equal text does."""
    num_ift: int = Field(default=3200, ge=1)
    """At most this many IFT pairs (paper section 3.1: 3,200)."""
    num_eft: int = Field(default=1630, ge=0)
    """At most this many EFT training targets (paper section 3.1: 1,630)."""
    num_heldout_prompts: int = Field(default=256, ge=1)
    """Held-out prompts for generation (paper section 3.2: 256)."""
    num_heldout_ranked: int = Field(default=190, ge=1)
    """Held-out ranked sets for judge quality (paper: 541 replies, 2.85 a prompt)."""
    heldout: Literal["dev", "test"] = "test"
    """Lab only: which held-out set to load. Choose settings on `dev`, report figures on `test`."""


class EftConfig(Section):
    """Building EFT targets from ranked replies with the SFT baseline as judge (paper section 3.1)."""

    samples: int = Field(default=3, ge=1)
    """Judgements sampled for each ranked reply; the first round of them that agrees with the human order is kept."""
    agreement: Literal["whole-order", "pairwise"] = "whole-order"
    """`whole-order`: all replies of a prompt, or none. `pairwise`: those that take part in no disagreeing pair."""
    ties: Literal["disagree", "allow"] = "disagree"
    """Equal scores for two replies that humans told apart: a disagreement, or no evidence either way."""
    max_share: float = Field(default=0.4, gt=0, le=1)
    """No score may make up more than this share of the built targets (the paper down-samples score 4)."""
    min_targets: int = Field(default=1, ge=0)
    """Fewer EFT targets stop the run; 0 lets M1 train on those there are, without any on IFT alone."""
