"""Open Assistant exports: trees (one a row) and the message table (one message a row). First turns only.

As in the paper (section 3.1): the reply that humans ranked first is the response, and only messages that are human-written,
reviewed and not deleted are used; fields that an export does not have count as fine. A first turn that cannot be used
leaves with its whole tree, by the reasons `not_ready`, `lang`, `deleted`, `unreviewed`, `synthetic`, `blank`. A reply
leaves by the same reasons or as `unranked`; replies of a dropped tree are counted as `tree_<reason>`, everything below
the first replies as `deeper_turn`.

The message table is read twice. The first pass keeps ids only (some 200 bytes a message); the second keeps the first
turns of those trees that are not complete yet, which is one tree at a time where trees stand together.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfreward.errors import DataError
from selfreward.filters import same_language
from selfreward.sources.found import Found, Read, attempt, sort_replies
from selfreward.sources.records import Reading
from selfreward.sources.rows import BadRow, Row, Rows

READY = "ready_for_export"


def trees_reader(lang: str | None) -> Read:
    """Reads the tree export, keeping one language, or all."""

    def read(rows: Rows, reading: Reading) -> Iterator[Found | BadRow]:
        for row in rows():
            yield row if isinstance(row, BadRow) else attempt(lambda row: _parse_tree(row, lang), row)

    return read


def messages_reader(lang: str | None) -> Read:
    """Reads the message table, keeping one language, or all."""

    def read(rows: Rows, reading: Reading) -> Iterator[Found | BadRow]:
        yield from _Table(rows, lang).trees(reading)

    return read


def _parse_tree(row: Row, lang: str | None) -> Found:
    root = row.value.get("prompt")
    if not isinstance(root, Mapping):
        raise row.fail("prompt", "must be the tree's first message, an object")
    first = row.inner(root, "prompt")
    replies = first.rows("replies") if root.get("replies") else []
    own_id = row.own_id("message_tree_id") or first.own_id("message_id")
    deeper = sum(_count_below(reply) for reply in replies)
    return _tree(first, replies, lang, (own_id, row.value.get("tree_state"), deeper))


def _tree(first: Row, replies: Sequence[Row], lang: str | None, about: tuple[str | None, Any, int]) -> Found:
    """A first turn and its replies; `about`: the tree's id, state and number of deeper turns."""
    own_id, state, deeper = about
    lost = Counter({"deeper_turn": deeper})
    reason = "not_ready" if state not in (None, READY) else _unusable(first, lang)
    if reason:
        item = {key: value for key, value in first.value.items() if key != "replies"}
        return Found(first.number, own_id, lost=lost, reason=reason, unread=len(replies), item=item)
    usable: list[tuple[float, str]] = []
    best = None
    for reply in replies:
        reason = _unusable(reply, lang) or (None if reply.has("rank") else "unranked")
        if reason:
            lost[reason] += 1
            continue
        rank = reply.rank("rank")
        usable.append((rank, reply.string("text")))
        if rank == 0 and best is None:
            best = reply.string("text")
    texts, ranks = sort_replies(usable)
    return Found(first.number, own_id, first.string("text"), best, texts, ranks, lang=first.optional("lang"), lost=lost)


def _unusable(message: Row, lang: str | None) -> str | None:
    """Why a message is left out, or None."""
    value = message.value
    own = value.get("lang")
    if lang is not None and own not in (None, "") and not same_language(str(own), lang):
        return "lang"
    if _is_true(value.get("deleted")):
        return "deleted"
    if "review_result" in value and not _is_true(value["review_result"]):
        return "unreviewed"
    if _is_true(value.get("synthetic")):
        return "synthetic"
    return None if message.string("text").strip() else "blank"


def _is_true(value: Any) -> bool:
    """A CSV writes truth as text."""
    return value.strip().lower() == "true" if isinstance(value, str) else bool(value)


def _count_below(reply: Row) -> int:
    """Messages below a reply, at any depth."""
    number = 0
    waiting = [reply.value]
    while waiting:
        below = waiting.pop().get("replies") or []
        if not isinstance(below, list) or not all(isinstance(item, Mapping) for item in below):
            raise reply.fail("replies", "must be a list of objects at every depth")
        number += len(below)
        waiting.extend(below)
    return number


class _Open:
    """A tree whose messages are still coming in."""

    def __init__(self, missing: int) -> None:
        self.root: Row | None = None
        self.replies: list[Row] = []
        self.missing = missing


class _Table:
    """The two passes over a message table."""

    def __init__(self, rows: Rows, lang: str | None) -> None:
        self._rows, self._lang = rows, lang
        self._is_root: dict[str, bool] = {}
        self._num_children: Counter[str] = Counter()
        self._open: dict[str, _Open] = {}

    def trees(self, reading: Reading) -> Iterator[Found | BadRow]:
        """Each tree when its last message has come; each message that cannot be read; counts of what lies deeper."""
        repeated = self._first_pass()
        for row in self._rows():
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                own, parent = self._check(row)
                if row.number in repeated:
                    raise row.fail("message_id", f"{own!r} stands in the file twice")
            except DataError as error:
                yield row.bad(error)
                continue
            if parent is not None and not self._is_root.get(parent, False):
                # Counted at once: whoever reads may stop at any tree.
                reading.replies_dropped["deeper_turn" if parent in self._is_root else "no_parent"] += 1
                reading.num_replies += 1
                continue
            tree = self._add(row, own, parent)
            if tree is not None:
                yield tree
        assert not self._open, "every tree is complete when the file has ended"

    def _first_pass(self) -> set[int]:
        """Which messages are roots and how many replies each has; returns the rows whose message was there before."""
        repeated: set[int] = set()
        for row in self._rows():
            if isinstance(row, BadRow):
                continue
            try:
                own, parent = self._check(row)
            except DataError:
                continue  # The second pass meets the same row and yields it.
            if own in self._is_root:
                repeated.add(row.number)
                continue
            self._is_root[own] = parent is None
            if parent is not None:
                self._num_children[parent] += 1
        return repeated

    def _check(self, row: Row) -> tuple[str, str | None]:
        """Ids of a message and its parent; raises DataError when something is wrong with the message."""
        own = row.own_id("message_id")
        if own is None:
            raise row.fail("message_id", f"is missing; the row has {sorted(map(str, row.value))}")
        parent = row.own_id("parent_id")
        row.string("text")
        if row.value.get("rank") not in (None, "") and parent is not None:
            row.rank("rank")
        return own, parent

    def _add(self, row: Row, own: str, parent: str | None) -> Found | None:
        """Put a first-turn message into its tree; the tree if that was the last one."""
        root = own if parent is None else parent
        tree = self._open.setdefault(root, _Open(1 + self._num_children[root]))
        if parent is None:
            tree.root = row
        else:
            tree.replies.append(row)
        tree.missing -= 1
        if tree.missing or tree.root is None:
            return None
        del self._open[root]
        about = (tree.root.own_id("message_tree_id") or root, tree.root.value.get("tree_state") or None, 0)
        return _tree(tree.root, tree.replies, self._lang, about)
