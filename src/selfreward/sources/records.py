"""What every source yields, whatever its format: usable records and rows that are left out, one for each row read."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["ift", "ranked", "prompts", "eft"]
"""What a record can be used for: a demonstration, ranked replies, a bare prompt, a ready EFT target."""
Split = Literal["auto", "train", "heldout"]
"""Where a record may go: `auto` lets the seed stage hold out a part."""


@dataclass(frozen=True, slots=True)
class Record:
    """One usable row. `roles` are those that its content allows and its source's `role` wants; never empty.

    `response` is the reply to imitate (role `ift`). `replies` are ranked ones (role `ranked`), best first (in a seed
    folder as they stand), with `ranks[i]` of `replies[i]`, 0 best, equal = tied. `judgement` and `score` belong to
    `response` (role `eft`).
    """

    id: str
    prompt: str
    roles: frozenset[Role]
    split: Split = "auto"
    response: str | None = None
    replies: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    judgement: str | None = None
    score: float | None = None
    lang: str | None = None


@dataclass
class Reading:
    """Counts that a source adds up while it is read; complete when its stream has ended.

    `num_rows` = records yielded + drops yielded: a row is what makes one record (a tree, a prompt with the replies that
    follow it, else a row of the file). `num_replies` = replies in yielded records + `replies_dropped`; a record's replies
    are `replies`, or else its `response`. A row that cannot be read (`bad_row`) has none.

    `files` are those that were opened; `ignored` are files of the folder that are no part of the source. `notes` say what
    was found out about the rows, such as which rank is the best.
    """

    format: str
    detected: bool
    num_rows: int = 0
    num_replies: int = 0
    replies_dropped: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
