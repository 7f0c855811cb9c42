"""A set of texts that costs 8 bytes each: for ids and prompts of streams that are too long to keep."""

import hashlib
from collections.abc import Iterable

import numpy as np


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


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
