"""Which of many texts can come close to a new one? Rules out most of them by counting; never one that does come close.

A text is a string with one character a word. ROUGE-L F1 is 2 LCS / (n + m) for texts of n and m words, so a limit on it asks
for a certain LCS. Both texts hold the words of their LCS, so at most n + m - 2 LCS words may stand in one of them only (a
word that stands there twice counts twice). That number is bounded from below by signatures, the bitmap filter of
set-similarity joins: every word flips one of 512 bits, and two signatures differ in at most as many bits as there are
words in one text only. Folded to 64 bits they rule out most texts in one pass over 8 bytes each; all 512 bits, most of
the rest.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_WORDS = 8
"""64-bit words of a signature."""
_BITS = 64 * _WORDS
_BITS_LOG = 9
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: multiplying by it spreads consecutive numbers over the high bits."""
_POINT_BITS = 21
"""A code point fits into these bits; above them stands which occurrence of its word it is."""
_BLOCK = 1024
"""Texts whose signatures are made at a time: bounds the memory."""


def over(shared: NDArray[np.integer], total: NDArray[np.integer], limit: float) -> Bools:
    """Whether an F1 of 2 * shared / total exceeds the limit; no words at all, no likeness."""
    return np.asarray(2 * shared / np.maximum(total, 1) > limit)


def fewest_shared(longest: int, limit: float) -> Ints:
    """For each total length from 0 to `longest`, the fewest words of an LCS whose F1 exceeds the limit (in [0, 1])."""
    total = np.arange(longest + 1)
    shared = np.maximum((total * (limit / 2)).astype(np.int64) - 1, 1)
    for _ in range(4):  # the product is off by rounding; `over` has the last word
        shared = np.where(over(shared, total, limit), shared, shared + 1)
    return shared


def lengths_of(texts: Sequence[str]) -> Ints:
    """Words of each text."""
    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def signatures(texts: Sequence[str]) -> NDArray[np.uint64]:
    """One signature a text, shape [len(texts), 8]: bit i is set when an odd number of its words belongs to i."""
    made = np.empty((len(texts), _WORDS), dtype=np.uint64)
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        token, owner = _tokens(block)
        bit = (token.astype(np.uint64) * _MIX >> np.uint64(64 - _BITS_LOG)).astype(np.int64)
        odd = np.bincount(owner * _BITS + bit, minlength=len(block) * _BITS) & 1
        made[start : start + len(block)] = np.packbits(odd.astype(np.bool_)).view(np.uint64).reshape(-1, _WORDS)
    return made


def _tokens(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """(token, text) of all words: the second occurrence of a word within a text is another token than the first."""
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.int64)
    key = np.sort((np.repeat(np.arange(len(texts)), lengths_of(texts)) << _POINT_BITS) | points)
    is_first = np.diff(key, prepend=-1) != 0
    occurrence = np.arange(len(key)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    return (occurrence << _POINT_BITS) | (key & ((1 << _POINT_BITS) - 1)), key >> _POINT_BITS


class SignatureTable:
    """Signatures of texts numbered 0, 1, ... as they come in, kept in the order of their lengths."""

    def __init__(self) -> None:
        self._lengths = np.empty(0, dtype=np.int64)
        self._numbers = np.empty(0, dtype=np.int64)
        self._full = np.empty((0, _WORDS), dtype=np.uint64)
        self._folded = np.empty(0, dtype=np.uint64)
        self._starts = np.zeros(1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def longest(self) -> int:
        """Words of the longest text."""
        return len(self._starts) - 2 if len(self) else 0

    def extend(self, texts: Sequence[str]) -> None:
        """Number the texts on and take them in. Costs a copy of the table: do it for many at a time."""
        lengths = np.concatenate([self._lengths, lengths_of(texts)])
        order = np.argsort(lengths, kind="stable")
        self._lengths = lengths[order]
        self._numbers = np.concatenate([self._numbers, np.arange(len(self._numbers), len(lengths))])[order]
        self._full = np.concatenate([self._full, signatures(texts)])[order]
        self._folded = np.bitwise_xor.reduce(self._full, axis=1)
        longest = int(self._lengths[-1]) if len(lengths) else 0
        self._starts = np.searchsorted(self._lengths, np.arange(longest + 2))

    def candidates(self, n: int, signature: NDArray[np.uint64], fewest: Ints) -> tuple[Ints, Ints]:
        """(numbers, lengths) of the texts whose LCS with a text of n words may reach `fewest[n + length]`.

        `fewest` is `fewest_shared` up to n + `longest`.
        """
        m = np.arange(self.longest + 1)
        needed = fewest[n + m]
        fits = np.flatnonzero(needed <= np.minimum(n, m))  # one run: longer texts need more, but not as much as they have
        if not len(fits):
            return self._numbers[:0], self._lengths[:0]
        low, high = int(fits[0]), int(fits[-1])
        apart = n + m - 2 * needed
        allowed = np.repeat(np.minimum(apart, 255).astype(np.uint8)[low : high + 1], np.diff(self._starts[low : high + 2]))
        begin, end = self._starts[low], self._starts[high + 1]
        differ = np.bitwise_count(self._folded[begin:end] ^ np.bitwise_xor.reduce(signature))
        rows = np.flatnonzero(differ <= allowed) + begin
        differ = np.bitwise_count(np.take(self._full, rows, axis=0) ^ signature).sum(axis=1, dtype=np.uint16)
        rows = rows[differ <= apart[self._lengths[rows]]]
        return self._numbers[rows], self._lengths[rows]
