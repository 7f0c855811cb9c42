"""The stream of seed records -> a bounded pool of candidates for the five seed tables; the others leave with a reason.

Memory: 8 bytes for each row (its digest, to see duplicates), a few candidates for each item wanted, and the words of each
prompt that a source holds out (none where only equal text counts).
"""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from selfreward.artifacts import derive_seed
from selfreward.config import SeedConfig
from selfreward.filters import RougePool, normalise
from selfreward.sources.digests import Digests
from selfreward.sources.records import Record
from selfreward.types import Drop

SplitName = Literal["ranked_heldout", "prompts_heldout", "eft_train", "ranked_train", "ift"]
SPLITS: tuple[SplitName, ...] = ("ranked_heldout", "prompts_heldout", "eft_train", "ranked_train", "ift")
"""In the order of their right to a prompt."""
_SERVES: dict[SplitName, tuple[str, str]] = {
    "ranked_heldout": ("ranked", "heldout"),
    "prompts_heldout": ("prompts", "heldout"),
    "eft_train": ("eft", "train"),
    "ranked_train": ("ranked", "train"),
    "ift": ("ift", "train"),
}
"""Split -> the role and the `split` that a record needs for it (`auto` fits both)."""
_HELDOUT: frozenset[SplitName] = frozenset(("ranked_heldout", "prompts_heldout"))
RANKED_RESERVE = 8
"""Ranked sets kept for each one that the EFT targets need: the judge's filter drops many."""
SLACK, SLACK_ROWS = 2, 256
"""Candidates kept for each item wanted, because some will overlap with another split."""
CHECKED_AT_ONCE = 64
"""Candidates compared with the held-out prompts together: far fewer than `SLACK_ROWS`, so that unseen copies starve nobody."""

Reject = Callable[[Drop, int], None]
"""Keeps an item that leaves, and counts it for its source (by its place in the config)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that may enter a split. `order` sorts: explicit splits first, as in their files, then `auto` by hash."""

    record: Record
    source: int
    order: tuple[int, int, int]
    splits: frozenset[SplitName]


@dataclass
class _Heap:
    """The candidates of one set of splits. `fresh`: arrivals since they were compared with `num_heldout` prompts."""

    limit: int
    entries: list[tuple[tuple[int, int, int], Candidate]] = field(default_factory=list)
    fresh: set[int] = field(default_factory=set)
    num_heldout: int = 0

    def push(self, item: Candidate) -> None:
        explicit, number, arrived = item.order
        self.fresh.add(arrived)
        # heapq gives the smallest; the largest shall leave.
        heapq.heappush(self.entries, ((-explicit, -number, -arrived), item))

    def pop(self) -> Candidate:
        """Take out the last in order."""
        _, item = heapq.heappop(self.entries)
        self.fresh.discard(item.order[2])
        return item

    def remove(self, arrivals: Set[int]) -> None:
        self.entries = [entry for entry in self.entries if entry[1].order[2] not in arrivals]
        heapq.heapify(self.entries)


class Pool:
    """Takes records in, one by one.

    Each set of splits has a bounded number of candidates. Where they are too many, those that repeat a prompt held out so
    far leave first, so that they take no place from others; a source's held-out rows should come before its training rows.
    """

    def __init__(self, config: SeedConfig, reject: Reject) -> None:
        self.num_ranked = 0
        self.num_ranked_replies = 0
        self._reject = reject
        self._supply: Counter[tuple[bool, frozenset[SplitName]]] = Counter()
        self._limits = pool_limits(config)
        self._seen = Digests()
        self._heaps: dict[frozenset[SplitName], _Heap] = {}
        self._arrived = 0
        self._max_overlap = config.max_overlap
        self._heldout = Digests()
        self._num_heldout = 0
        self._heldout_words = RougePool()

    def take(self, record: Record, source: int) -> None:
        """Keep a record as a candidate, or reject it or another one: `unusable_split` (its roles and its `split` fit no
        table), `duplicate`, `overlaps_heldout`, `over_limit` (there are several times as many before it as are wanted)."""
        self._arrived += 1
        if record.split == "heldout" and self._heldout.add(normalise(record.prompt)):
            self._num_heldout += 1
            if self._max_overlap < 1:
                self._heldout_words.add(record.prompt)
        splits = splits_of(record)
        if not splits:
            self._reject(drop_of(record, "unusable_split"), source)
            return
        if not self._seen.add(identity(record)):
            self._reject(drop_of(record, "duplicate"), source)
            return
        is_auto = record.split == "auto"
        self._supply[is_auto, splits] += 1
        if "ranked" in record.roles:
            self.num_ranked += 1
            self.num_ranked_replies += len(record.replies)
        number = derive_seed("split", record.id) if is_auto else self._arrived
        self._keep(Candidate(record, source, (int(is_auto), number, self._arrived), splits))

    def supply(self) -> Counter[frozenset[SplitName]]:
        """How many usable records came in, by the splits that they can serve."""
        counted: Counter[frozenset[SplitName]] = Counter()
        for (is_auto, splits), number in self._supply.items():
            counted[splits - self._named() if is_auto else splits] += number
        return counted

    def near_heldout(self, prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is one that a source holds out, whether a table takes that one or not."""
        close = self._heldout_words.overlapping(prompts, self._max_overlap)  # empty where only equal text counts
        return [is_close or normalise(prompt) in self._heldout for prompt, is_close in zip(prompts, close, strict=True)]

    def candidates(self) -> list[Candidate]:
        """What is in the pool, in order."""
        named = self._named()
        items = [item for heap in self._heaps.values() for _, item in heap.entries]
        fitting = [replace(item, splits=item.splits - named) if item.record.split == "auto" else item for item in items]
        return sorted(fitting, key=lambda item: item.order)

    def _named(self) -> frozenset[SplitName]:
        """Held-out tables that some source names itself: they are whole, no `auto` record joins them."""
        return frozenset().union(*(splits for is_auto, splits in self._supply if not is_auto)) & _HELDOUT

    def _keep(self, item: Candidate) -> None:
        heap = self._heaps.setdefault(item.splits, _Heap(sum(self._limits[split] for split in item.splits)))
        heap.push(item)
        if len(heap.entries) > heap.limit:
            self._leave_heldout(heap)
        if len(heap.entries) > heap.limit:
            last = heap.pop()
            self._reject(drop_of(last.record, "over_limit"), last.source)

    def _leave_heldout(self, heap: _Heap) -> None:
        """Reject what repeats a held-out prompt: all that is there after new ones came, else what came since, many at once."""
        if heap.num_heldout == self._num_heldout and len(heap.fresh) < CHECKED_AT_ONCE:
            return
        items = [item for _, item in heap.entries if item.record.split != "heldout"]
        if heap.num_heldout == self._num_heldout:
            items = [item for item in items if item.order[2] in heap.fresh]
        near = self.near_heldout([item.record.prompt for item in items])
        gone = {item.order[2]: item for item, is_near in zip(items, near, strict=True) if is_near}
        heap.num_heldout, heap.fresh = self._num_heldout, set()
        heap.remove(gone.keys())
        for item in gone.values():
            self._reject(drop_of(item.record, "overlaps_heldout"), item.source)


def pool_limits(config: SeedConfig) -> dict[SplitName, int]:
    """Split -> candidates kept for it."""
    wanted: dict[SplitName, int] = {
        "ranked_heldout": config.num_heldout_ranked,
        "prompts_heldout": config.num_heldout_prompts,
        "eft_train": config.num_eft,
        "ranked_train": config.num_eft * RANKED_RESERVE // (2 * SLACK),  # a set has two replies at least
        "ift": config.num_ift,
    }
    return {split: SLACK * number + SLACK_ROWS for split, number in wanted.items()}


def splits_of(record: Record) -> frozenset[SplitName]:
    """The splits that a record can serve."""
    return frozenset(
        split for split, (role, side) in _SERVES.items() if role in record.roles and record.split in ("auto", side)
    )


def identity(record: Record) -> str:
    """Records with the same one are duplicates.

    The prompt decides, among records of the same roles and `split`. Where a source says that its rows are for training,
    several responses to a prompt are several items; so are several EFT targets of it anywhere.
    """
    parts: list[str | None] = [record.split, *sorted(record.roles), normalise(record.prompt)]
    if record.split == "train" or "eft" in record.roles:
        parts += [record.response, record.judgement, *record.replies]
    return json.dumps(parts)


def drop_of(record: Record, reason: str) -> Drop:
    """The drop that keeps a record, without its empty fields."""
    row = {item.name: getattr(record, item.name) for item in fields(record)}
    row["roles"] = sorted(record.roles)
    kept = {key: value for key, value in row.items() if value not in (None, (), "")}  # a score of 0 is no empty field
    return Drop(record.id, reason, json.dumps(kept, ensure_ascii=False))
