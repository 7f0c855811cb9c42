"""Which of many texts can come close to a new one? Rules out most of them by counting; never one that does come close.

A text is a string with one character a word. ROUGE-L F1 is 2 LCS / (n + m) for texts of n and m words, so a limit on it asks
for a certain LCS. Both texts hold the words of their LCS, so at most n + m - 2 LCS words may stand in one of them only (a
word that stands there twice counts twice). That number is bounded from below by signatures, the bitmap filter of
set-similarity joins: every word of a text flips the one of 512 bits that belongs to it, and two signatures differ in at
most as many bits as there are words in one text only. Folding a signature keeps that true, so a cascade of 64, 128, 256
and 512 bits rules out most texts in one pass over 8 bytes each.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]

_WIDTHS = (1, 2, 4, 8)
"""64-bit words of the signatures of the cascade."""
_BITS = 64 * _WIDTHS[-1]
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: multiplying by it spreads consecutive numbers over the high bits."""
_SHIFT = np.uint64(64 - 9)
"""Keeps the 9 highest bits: a number below 512."""
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


def signatures(texts: Sequence[str]) -> Words:
    """One signature of 512 bits a text, shape [8, len(texts)]: a bit is set when an odd number of words belongs to it."""
    made = np.empty((_WIDTHS[-1], len(texts)), dtype=np.uint64)
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        points = np.frombuffer("".join(block).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        bit = (points * _MIX >> _SHIFT).astype(np.int64)
        owner = np.repeat(np.arange(len(block)), lengths_of(block))
        odd = np.bincount(owner * _BITS + bit, minlength=len(block) * _BITS) & 1
        made[:, start : start + len(block)] = np.packbits(odd.astype(np.bool_)).view(np.uint64).reshape(len(block), -1).T
    return made


def _fold(full: Words, width: int) -> Words:
    """Signatures of `width` words: the exclusive or of the parts, shape [width, ...]."""
    return np.asarray(np.bitwise_xor.reduce(full.reshape(len(full) // width, width, *full.shape[1:]), axis=0))


class SignatureTable:
    """Signatures of texts numbered 0, 1, ... as they come in, kept in the order of their lengths."""

    def __init__(self) -> None:
        self._lengths = np.empty(0, dtype=np.int64)
        self._numbers = np.empty(0, dtype=np.int64)
        self._folds = [np.empty((width, 0), dtype=np.uint64) for width in _WIDTHS]
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
        full = np.concatenate([self._folds[-1], signatures(texts)], axis=1)[:, order]
        self._folds = [_fold(full, width) for width in _WIDTHS]
        longest = int(self._lengths[-1]) if len(lengths) else 0
        self._starts = np.searchsorted(self._lengths, np.arange(longest + 2))

    def candidates(self, n: int, signature: Words, fewest: Ints) -> tuple[Ints, Ints]:
        """(numbers, lengths) of the texts whose LCS with a text of n words may reach `fewest[n + length]`.

        `signature` has shape [8]; `fewest` is `fewest_shared` up to the longer of 2 n and n + `longest`.
        """
        m = np.arange(self.longest + 1)
        needed = fewest[n + m]
        fits = np.flatnonzero(needed <= np.minimum(n, m))  # one run: longer texts need more, but not as much as they have
        if not len(fits):
            return self._numbers[:0], self._lengths[:0]
        low, high = int(fits[0]), int(fits[-1]) + 1
        # Only words in [low, high) are asked, where n + m - 2 needed is at least 0.
        allowed = np.repeat((n + m - 2 * needed)[low:high].astype(np.int32), np.diff(self._starts[low : high + 1]))
        rows: slice | Ints = slice(int(self._starts[low]), int(self._starts[high]))
        for width, fold in zip(_WIDTHS, self._folds, strict=True):
            if width == _WIDTHS[-1] or _tells_apart(width, n, 2 * n - 2 * int(fewest[2 * n])):
                differ = np.zeros(len(allowed), dtype=np.uint16)
                for column, word in zip(fold, _fold(signature, width), strict=True):
                    differ += np.bitwise_count(column[rows] ^ word)
                left = np.flatnonzero(differ <= allowed)
                allowed = allowed[left]
                rows = left + rows.start if isinstance(rows, slice) else rows[left]
        return self._numbers[rows], self._lengths[rows]


def _tells_apart(width: int, n: int, allowed: int) -> bool:
    """Whether two unlike texts of n words can be expected to differ in more than `allowed` bits of such a signature."""
    return 32 * width * (1 - math.exp(-4 * n / (64 * width))) > allowed
