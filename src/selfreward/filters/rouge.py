"""ROUGE-L between prompts: the F1 of the longest common subsequence of words, 2 LCS / (len a + len b).

`RougePool.admit` answers for each new text whether it comes too close to a known one. It is exact, and fast on pools of
100,000 texts: `_signatures` says how, `bench/dedupe.py` measures it.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from selfreward.errors import DataError
from selfreward.filters._signatures import Bools, SignatureTable, fewest_shared, lengths_of, over, signatures

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
"""Thai, Lao, Burmese, Khmer, Kana, Han and Hangul: written without blanks between words (Hangul with few), so each character
counts as a word, with the marks on it."""
_ASCII_WORD = re.compile("[a-z0-9]+")
_SURROGATES = range(0xD800, 0xE000)
_MAX_WORDS = 0x110000 - len(_SURROGATES)
"""Distinct words that a pool can tell apart: one code point each."""
_BLOCK = 256
"""Texts compared at a time: bounds the tables of scores."""
_FIRST_PIECE = 16
"""Candidates that are compared with a text before more are."""
MAX_RECENT = 512
"""Texts of the pool that wait for their signatures; they are compared with every new text."""


def words_of(text: str) -> list[str]:
    """Words for ROUGE-L: lower-case runs of letters and digits (on ASCII text `[a-z0-9]+`), each with the marks on it.

    Texts that differ only in how Unicode writes a character (NFC, NFD, full width, ligatures) have the same words.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _word().findall(unicodedata.normalize("NFKC", text).lower())


@cache
def marks() -> str:
    """Characters that write a part of the character before them (vowel signs, accents), as ranges for a regular expression.

    Variation selectors choose a picture and are none.
    """
    found = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    found = [code for code in found if not 0xFE00 <= code <= 0xFE0F]
    starts = [code for code, before in zip(found, [-1, *found], strict=False) if code != before + 1]
    ends = [code for code, after in zip(found, [*found[1:], -1], strict=True) if code != after - 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


@cache
def _word() -> re.Pattern[str]:
    return re.compile(rf"[{UNSPACED}][{marks()}]*|[^\W_{UNSPACED}](?:[^\W_{UNSPACED}]|[{marks()}])*")


def rouge_l(a: str, b: str) -> float:
    """ROUGE-L F1 of two texts, in [0, 1]; 0 when either has no words."""
    return float(RougePool([a]).closest([b])[0])


def pairwise_rouge_l(texts: Sequence[str]) -> NDArray[np.float64]:
    """ROUGE-L F1 of each text with each, shape [len(texts), len(texts)]; 0 where either has no words."""
    return RougePool(texts).scores()


class RougePool:
    """Texts to stay away from. Each distinct word becomes one character, so that the comparison runs over strings."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._symbols: dict[str, str] = {}
        self._coded: list[str] = []
        self._table = SignatureTable()
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._coded)

    def add(self, text: str) -> None:
        """Put a text into the pool. Raises DataError when its words are more than there are characters to stand for them."""
        self._coded.append(self._code(text))

    def scores(self) -> NDArray[np.float64]:
        """ROUGE-L F1 between all texts of the pool, shape [len, len]."""
        lengths = lengths_of(self._coded)
        common = _common_words(self._coded, self._coded)
        return np.asarray(2 * common / np.maximum(lengths[:, None] + lengths[None, :], 1), dtype=np.float64)

    def closest(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Highest ROUGE-L F1 of each text to any text of the pool, shape [len(texts)]; 0 for an empty pool.

        Compares each with all: for pools that are not large. `admit` needs no such value.
        """
        queries = [self._code(text) for text in texts]
        best = np.zeros(len(queries))
        if not self._coded:
            return best
        pool_lengths = lengths_of(self._coded)
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            lengths = lengths_of(block)[:, None] + pool_lengths[None, :]
            scores = 2 * _common_words(block, self._coded) / np.maximum(lengths, 1)
            best[start : start + len(block)] = scores.max(axis=1)
        return best

    def overlapping(self, texts: Sequence[str], limit: float) -> list[bool]:
        """Whether each text's F1 to any text of the pool exceeds `limit`, a number in [0, 1]; the pool stays as it is."""
        found: list[bool] = []
        for start in range(0, len(texts), _BLOCK):
            found += self._exceeds_pool([self._code(text) for text in texts[start : start + _BLOCK]], limit).tolist()
        return found

    def admit(self, texts: Sequence[str], limit: float) -> list[bool]:
        """Take texts in, one after the other: False where the F1 to the pool or to a text admitted before exceeds
        `limit`, a number in [0, 1]. Admitted texts join the pool. Exact: the verdicts of comparing with every text."""
        admitted: list[bool] = []
        for start in range(0, len(texts), _BLOCK):
            block = [self._code(text) for text in texts[start : start + _BLOCK]]
            verdicts = self._admit_block(block, limit)
            self._coded.extend(code for code, is_far in zip(block, verdicts, strict=True) if is_far)
            admitted += verdicts
        return admitted

    def _admit_block(self, block: Sequence[str], limit: float) -> list[bool]:
        """Verdicts of one block: first against the pool, then, in order, against those admitted before."""
        near = self._exceeds_pool(block, limit)
        left = np.flatnonzero(~near)
        fresh = [block[number] for number in left.tolist()]
        clashes = _exceeds(fresh, fresh, limit)
        taken = np.zeros(len(fresh), dtype=np.bool_)
        for number in range(len(fresh)):
            taken[number] = not (clashes[number] & taken).any()
        near[left] = ~taken
        return [not is_near for is_near in near.tolist()]

    def _exceeds_pool(self, block: Sequence[str], limit: float) -> Bools:
        """Whether each text exceeds the limit with any text of the pool, shape [len(block)]."""
        assert 0 <= limit <= 1, f"a ROUGE-L limit lies in [0, 1], got {limit}"
        if len(self._coded) - len(self._table) > MAX_RECENT:
            self._table.extend(self._coded[len(self._table) :])
        near: Bools = np.any(_exceeds(block, self._coded[len(self._table) :], limit), axis=1)
        left = np.flatnonzero(~near)
        near[left] = self._exceeds_table([block[number] for number in left.tolist()], limit)
        return near

    def _exceeds_table(self, block: Sequence[str], limit: float) -> Bools:
        """Whether each text exceeds the limit with any text that has a signature, shape [len(block)]."""
        result = np.zeros(len(block), dtype=np.bool_)
        if not len(self._table):
            return result
        longest = max(map(len, block), default=0)
        fewest = fewest_shared(longest + max(longest, self._table.longest), limit)
        for row, (code, signature) in enumerate(zip(block, signatures(block).T, strict=True)):
            numbers, lengths = self._table.candidates(len(code), signature, fewest)
            # In ever larger pieces: where many are too close, the first few tell.
            start, size = 0, _FIRST_PIECE
            while start < len(numbers) and not result[row]:
                piece = slice(start, start + size)
                common = _common_words([code], [self._coded[number] for number in numbers[piece].tolist()])[0]
                result[row] = over(common, lengths[piece] + len(code), limit).any()
                start, size = start + size, 4 * size
        return result

    def _code(self, text: str) -> str:
        return "".join(self._symbols.get(word) or self._new_symbol(word) for word in words_of(text))

    def _new_symbol(self, word: str) -> str:
        point = len(self._symbols)
        if point >= _MAX_WORDS:
            raise DataError(
                f"the prompts to compare hold more than {_MAX_WORDS:,} different words; use a smaller pool (seed.num_ift, "
                "propose.num_prompts, propose.path)"
            )
        # The surrogate range is not made of characters: jump over it.
        symbol = chr(point if point < _SURROGATES.start else point + len(_SURROGATES))
        self._symbols[word] = symbol
        return symbol


def _common_words(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.int32]:
    """LCS in words of each query with each text, shape [len(queries), len(texts)]."""
    return np.asarray(cdist(queries, texts, scorer=LCSseq.similarity, dtype=np.int32))


def _exceeds(queries: Sequence[str], texts: Sequence[str], limit: float) -> Bools:
    """Whether each query exceeds the limit with each text, shape [len(queries), len(texts)], by comparing them all."""
    if not queries or not texts:
        return np.zeros((len(queries), len(texts)), dtype=np.bool_)
    totals = lengths_of(queries)[:, None] + lengths_of(texts)[None, :]
    return over(_common_words(queries, texts), totals, limit)
