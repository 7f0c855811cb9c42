"""What the seed stage's record tells of each source: rows, replies, languages, scores, lengths."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from selfreward.config import SourceConfig
from selfreward.sources.records import Reading, Record

QUANTILES = {"min": 0.0, "5%": 0.05, "50%": 0.5, "95%": 0.95, "max": 1.0}
UNUSED_REPLY = "unused"
"""A reply of a kept row whose table has no place for it."""
LOST_REPLY = "row_dropped"
"""A reply of a row that left."""


class SourceNotes:
    """Counts of one source, added up while it is read and split. Quantiles and histograms are of what is kept."""

    def __init__(self, source: SourceConfig) -> None:
        self.reading = Reading(source.format, detected=False)
        self.dropped: Counter[str] = Counter()
        self.num_rows = 0
        self.stopped_at_cap = False
        self._path = source.path
        self._is_lab = source.format == "lab"
        self._lang = source.lang or "not said"
        self._num_replies = 0
        self._kept: Counter[str] = Counter()
        self._replies_kept = 0
        self._replies_unused = 0
        self._languages: Counter[str] = Counter()
        self._scores: Counter[float] = Counter()
        self._words: dict[str, list[int]] = {"prompts": [], "responses": []}

    def see(self, record: Record) -> None:
        """Count a usable row as it comes in."""
        self._num_replies += len(replies_of(record))

    def keep(self, record: Record, split: str) -> None:
        """Count a row that a table takes."""
        self._kept[split] += 1
        self._languages[record.lang or self._lang] += 1
        self._words["prompts"].append(_num_words(record.prompt))
        used: Sequence[str] = ()
        if split.startswith("ranked"):
            used = record.replies
        elif split in ("ift", "eft_train") and record.response is not None:
            used = (record.response,)
        self._words["responses"] += map(_num_words, used)
        if split == "eft_train" and record.score is not None:
            self._scores[record.score] += 1
        replies = replies_of(record)
        num_used = sum((Counter(replies) & Counter(used)).values())
        self._replies_kept += num_used
        self._replies_unused += len(replies) - num_used

    def plain(self) -> dict[str, Any]:
        """The counts as the record stores them."""
        lost = Counter(self.reading.replies_dropped)
        lost[UNUSED_REPLY] += self._replies_unused
        lost[LOST_REPLY] += self._num_replies - self._replies_kept - self._replies_unused
        return {
            "path": self._path,
            # The micro-world is read as a seed folder that was written a moment before.
            "format": "lab" if self._is_lab else self.reading.format,
            "detected": self.reading.detected,
            "rows": self.num_rows,
            "stopped_at_cap": self.stopped_at_cap,
            "kept": dict(sorted(self._kept.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "replies": {
                "in": self._num_replies + sum(self.reading.replies_dropped.values()),
                "kept": self._replies_kept,
                "dropped": {reason: number for reason, number in sorted(lost.items()) if number},
            },
            "languages": dict(self._languages.most_common()),
            "scores": {f"{score:g}": number for score, number in sorted(self._scores.items())},
            "words": {name: quantiles(lengths) for name, lengths in self._words.items()},
        }


def replies_of(record: Record) -> tuple[str, ...]:
    """What counts as the replies of a row: the ranked ones, else its response."""
    return record.replies or (() if record.response is None else (record.response,))


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """The quantiles that the notes show; none of no values."""
    return {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()} if values else {}


def _num_words(text: str) -> int:
    return len(text.split())
