"""The stream of seed records -> a bounded pool of candidates for the five seed tables; the others leave with a reason.

Memory: 8 bytes for each row (its digest, to see duplicates), and a few candidates for each item wanted.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from selfreward.artifacts import derive_seed
from selfreward.config import SeedConfig
from selfreward.filters import normalise
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

Reject = Callable[[Drop, int], None]
"""Keeps an item that leaves, and counts it for its source (by its place in the config)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that may enter a split. `order` sorts: explicit splits first, as in their files, then `auto` by hash."""

    record: Record
    source: int
    order: tuple[int, int, int]
    splits: frozenset[SplitName]


class Digests:
    """A set of texts, 8 bytes each. Two different texts count as one with a chance of n^2 / 2^65."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._old = np.empty(0, dtype=np.uint64)
        self._new: set[int] = set()
        for text in texts:
            self.add(text)

    def __contains__(self, text: str) -> bool:
        return self._holds(_digest(text))

    def add(self, text: str) -> bool:
        """Put a text in; returns whether it was not there."""
        digest = _digest(text)
        if self._holds(digest):
            return False
        self._new.add(digest)
        if len(self._new) >= 1 << 16:
            # Sorted arrays are eight times smaller than sets, and merging them seldom costs little.
            self._old = np.sort(np.concatenate([self._old, np.fromiter(self._new, np.uint64, len(self._new))]))
            self._new.clear()
        return True

    def _holds(self, digest: int) -> bool:
        if digest in self._new:
            return True
        place = int(np.searchsorted(self._old, np.uint64(digest)))
        return place < len(self._old) and int(self._old[place]) == digest


class Pool:
    """Takes records in, one by one. `heldout` knows every prompt that a source names as held out, used or not."""

    def __init__(self, config: SeedConfig, reject: Reject) -> None:
        self.heldout = Digests()
        self.num_ranked = 0
        self.num_ranked_replies = 0
        self._reject = reject
        self._supply: Counter[tuple[bool, frozenset[SplitName]]] = Counter()
        self._limits = pool_limits(config)
        self._seen = Digests()
        self._heaps: dict[frozenset[SplitName], list[tuple[tuple[int, int, int], Candidate]]] = {}
        self._arrived = 0

    def take(self, record: Record, source: int) -> None:
        """Keep a record as a candidate, or reject it or another one: `unusable_split` (its roles and its `split` fit no
        table), `duplicate`, `over_limit` (no run of these settings would get to it)."""
        self._arrived += 1
        splits = splits_of(record)
        if not splits:
            self._reject(drop_of(record, "unusable_split"), source)
            return
        if not self._seen.add(identity(record)):
            self._reject(drop_of(record, "duplicate"), source)
            return
        is_auto = record.split == "auto"
        self._supply[is_auto, splits] += 1
        if record.split == "heldout":
            self.heldout.add(normalise(record.prompt))
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

    def candidates(self) -> list[Candidate]:
        """What is in the pool, in order."""
        named = self._named()
        items = [item for heap in self._heaps.values() for _, item in heap]
        fitting = [replace(item, splits=item.splits - named) if item.record.split == "auto" else item for item in items]
        return sorted(fitting, key=lambda item: item.order)

    def _named(self) -> frozenset[SplitName]:
        """Held-out tables that some source names itself: they are whole, no `auto` record joins them."""
        return frozenset().union(*(splits for is_auto, splits in self._supply if not is_auto)) & _HELDOUT

    def _keep(self, item: Candidate) -> None:
        heap = self._heaps.setdefault(item.splits, [])
        explicit, number, arrived = item.order
        entry = ((-explicit, -number, -arrived), item)  # heapq gives the smallest; the largest shall leave
        if len(heap) < sum(self._limits[split] for split in item.splits):
            heapq.heappush(heap, entry)
        else:
            _, last = heapq.heappushpop(heap, entry)
            self._reject(drop_of(last.record, "over_limit"), last.source)


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
    row = {field.name: getattr(record, field.name) for field in fields(record)}
    row["roles"] = sorted(record.roles)
    return Drop(record.id, reason, json.dumps({key: value for key, value in row.items() if value}, ensure_ascii=False))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
