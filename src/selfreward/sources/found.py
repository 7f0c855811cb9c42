"""What a format makes of its rows, before filters and ids: one `Found` for each future record or drop."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfreward.errors import DataError
from selfreward.sources.records import Reading, Role
from selfreward.sources.rows import BadRow, Row, Rows


@dataclass(frozen=True, slots=True)
class Found:
    """One unit of data. `replies` are best first with compacted `ranks`; `response` is one of them, or the only reply.

    `lost` counts replies that were left out, by reason. `reason`: the whole unit cannot be used; then `unread` replies
    leave with it, and `item` is what its drop keeps.
    """

    number: int
    own_id: str | None
    prompt: str = ""
    response: str | None = None
    replies: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    judgement: str | None = None
    score: float | None = None
    lang: str | None = None
    lost: Counter[str] = field(default_factory=Counter)
    reason: str | None = None
    unread: int = 0
    item: Mapping[str, Any] | None = None

    @property
    def num_replies(self) -> int:
        """Replies that it carries."""
        return len(self.replies) or int(self.response is not None)


Parse = Callable[[Row], Found]
Read = Callable[[Rows, Reading], Iterator[Found | BadRow]]
"""Reads a container; may add notes to the reading."""


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of data. `fits` tells from one row's fields whether it has this shape; `unit` names what a dropped unit's
    replies are counted under: `<unit>_<reason>`."""

    name: str
    offers: frozenset[Role]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Read
    unit: str = "row"
    ties_alone_rank: bool = False
    """Ranked replies that are all tied still make a ranked set."""


def each(parse: Parse) -> Read:
    """A format in which each row is a unit."""

    def read(rows: Rows, reading: Reading) -> Iterator[Found | BadRow]:
        for row in rows():
            yield row if isinstance(row, BadRow) else attempt(parse, row)

    return read


def attempt(parse: Parse, row: Row) -> Found | BadRow:
    """Parse a row; a malformed one becomes a bad row."""
    try:
        return parse(row)
    except DataError as error:
        return row.bad(error)


def sort_replies(keyed: Sequence[tuple[float, str]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(key, reply), the lowest key is the best -> replies best first, ranks without gaps; ties keep their order."""
    ordered = sorted(keyed, key=lambda item: item[0])
    keys = sorted({key for key, _ in ordered})
    place = {key: rank for rank, key in enumerate(keys)}
    return tuple(reply for _, reply in ordered), tuple(place[key] for key, _ in ordered)
