"""Formats in which a row holds several replies that someone put in an order: ranked, preference.

`ranked` has three shapes: a list of replies in the row, each with a rank or a score; texts and a list of ranks or scores
beside them; or one reply a row with its score, where consecutive rows of one prompt belong together. Ranks: the lowest is
the best, whether it is 0 or 1, gaps are closed. Scores: the highest is the best. A reply whose rank or score is null is
left out (`unranked`). The best reply of a row is its response as well.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from selfreward.errors import DataError
from selfreward.sources.found import Found, sort_replies
from selfreward.sources.plain import found, one_turn, unusable
from selfreward.sources.records import Reading
from selfreward.sources.rows import BadRow, Row, Rows

LIST_KEYS = ("responses", "completions", "replies")
TEXT_KEYS = ("text", "response", "content", "output", "answer", "completion")
RANK_KEYS = {"rank": "rank", "ranks": "rank"}
SCORE_KEYS = {
    "score": "score", "scores": "score", "rating": "rating", "ratings": "rating",
    "overall_score": "overall_score", "fine-grained_score": "fine-grained_score", "helpfulness": "helpfulness",
}  # fmt: skip
"""Fields that order replies, one for each reply or a list beside the replies -> how the note calls it. The first that is
there counts, ranks before scores."""
ORDER_KEYS = RANK_KEYS | SCORE_KEYS
ASPECTS = "annotations"
"""Ratings of several aspects, `{aspect: {"Rating": "4"}}`: their mean is the score where there is no overall one."""

Keyed = tuple[str, float | None]
"""A reply and its sort key, the lowest is the best; None: nobody ordered it."""


def read_ranked(rows: Rows, reading: Reading) -> Iterator[Found | BadRow]:
    """Rows with a list of replies, and runs of rows with one reply each."""
    lowest: dict[str, float] = {}
    run: _Run | None = None
    for row in rows():
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            row.own_id()
            prompt = row.string("prompt", "instruction")
            if any(row.has(key) for key in LIST_KEYS):
                following, unit = None, _listed(row, lowest)
            else:
                following, unit = _Run.begin_or_go_on(run, prompt, row, lowest), None
        except DataError as error:
            yield row.bad(error)
            continue
        if run and following is not run:
            yield run.unit()
        if unit:
            yield unit
        run = following
    if run:
        yield run.unit()
    reading.notes.update({f"order by {name}": _direction(name, low) for name, low in lowest.items()})


def parse_preference(row: Row) -> Found:
    """`prompt`, `chosen`, `rejected`: texts or lists of turns; lists may hold the prompt instead."""
    units = [_side(row, key) for key in ("chosen", "rejected")]
    reason = next((unit.reason for unit in units if unit.reason), None)
    if reason:
        return unusable(row, reason, len(units))
    chosen, rejected = units
    if chosen.prompt != rejected.prompt:
        raise row.fail("rejected", "must answer the prompt that 'chosen' answers")
    lost = chosen.lost + rejected.lost
    if chosen.response is not None and chosen.response == rejected.response:
        return unusable(row, "chosen_is_rejected", len(units))
    pair = [(rank, unit.response) for rank, unit in enumerate(units) if unit.response is not None]
    replies, ranks = sort_replies([(float(rank), reply) for rank, reply in pair])
    return replace(chosen, replies=replies, ranks=ranks, lost=lost)


def _side(row: Row, key: str) -> Found:
    if not row.has("prompt") and isinstance(row.get(key), str):
        row.find("prompt")  # Texts alone do not say what they answer.
    return one_turn(row, "prompt" if row.has("prompt") else None, key)


class _Run:
    """Rows of one prompt that follow each other, one reply each."""

    def __init__(self, prompt: str, first: Row) -> None:
        self._prompt, self._first = prompt, first
        self._order = _order_of([first])
        self._keyed: list[Keyed] = []

    @classmethod
    def begin_or_go_on(cls, run: "_Run | None", prompt: str, row: Row, lowest: dict[str, float]) -> "_Run":
        """The run that the row joins: the one before it where the prompt is the same."""
        joined = run if run and run._prompt == prompt else cls(prompt, row)
        joined._keyed.append(_keyed(row, joined._order, lowest))
        return joined

    def unit(self) -> Found:
        """The whole run."""
        return _ranked(self._first, self._prompt, self._keyed)


def _listed(row: Row, lowest: dict[str, float]) -> Found:
    key = row.find(*LIST_KEYS)
    items = row.items(key)
    if not items:
        raise row.fail(key, "must hold at least one reply, got none")
    replies = _beside(row, key) if all(isinstance(item, str) for item in items) else row.rows(key)
    order = _order_of(replies)
    return _ranked(row, row.string("prompt", "instruction"), [_keyed(reply, order, lowest) for reply in replies])


def _beside(row: Row, key: str) -> list[Row]:
    """Texts, and a list of ranks or scores for them."""
    order = row.find(*ORDER_KEYS)
    texts, values = row.items(key), row.items(order)
    if len(texts) != len(values):
        raise row.fail(order, f"must hold one value for each of the {len(texts)} replies, got {len(values)}")
    cells = [{"text": text, order: value} for text, value in zip(texts, values, strict=True)]
    return [row.inner(cell, f"{key}[{index}]") for index, cell in enumerate(cells)]


def _order_of(replies: list[Row]) -> str:
    """The field that orders replies: the first that one of them has."""
    keys = [*ORDER_KEYS, ASPECTS]
    present = [key for key in keys if any(reply.has(key) for reply in replies)]
    present += [key for key in keys if key in replies[0].value]  # All null: nobody ordered them.
    return present[0] if present else replies[0].find(*ORDER_KEYS)


def _keyed(reply: Row, order: str, lowest: dict[str, float]) -> Keyed:
    """A reply's text and its sort key; None where the field is null."""
    text = reply.string(*TEXT_KEYS)
    if not reply.has(order):
        if order not in reply.value:
            reply.find(order)
        return text, None
    if order == ASPECTS:
        return text, _mean_rating(reply, lowest)
    name = ORDER_KEYS[order]
    value = float(reply.rank(order)) if order in RANK_KEYS else reply.number_at(order)
    lowest[name] = min(value, lowest.get(name, value))
    return text, value if order in RANK_KEYS else -value


def _mean_rating(row: Row, lowest: dict[str, float]) -> float | None:
    """Minus the mean of the aspects' ratings, numbers or digits; an aspect without one (`N/A`) does not count."""
    aspects: Any = row.value[ASPECTS]
    if not isinstance(aspects, dict) or not all(isinstance(aspect, dict | None) for aspect in aspects.values()):
        raise row.fail(ASPECTS, 'must be an object of objects with a "Rating" each')
    cells = [replace(row.inner(aspect, f"{ASPECTS}.{name}"), is_text=True) for name, aspect in aspects.items() if aspect]
    ratings = [cell.number_at("Rating") for cell in cells if cell.value.get("Rating") not in (None, "N/A")]
    if not ratings:
        return None
    lowest["mean rating"] = min(min(ratings), lowest.get("mean rating", ratings[0]))
    return -sum(ratings) / len(ratings)


def _ranked(row: Row, prompt: str, keyed: list[Keyed]) -> Found:
    replies, ranks = sort_replies([(key, text) for text, key in keyed if key is not None])
    lost = Counter({"unranked": len(keyed) - len(replies)})
    return replace(found(row, prompt, replies[0] if replies else None), replies=replies, ranks=ranks, lost=lost)


def _direction(name: str, low: float) -> str:
    return f"{low:.0f} is the best" if name == "rank" else "the highest is the best"
