"""Filters for self-instruct proposals (paper section 2.2 and appendix A.1): text in, verdict out. Pure.

Two kinds of rules: `refuse` looks at one proposal alone, `RougePool` compares proposals with everything that is
already there. ROUGE-L is the F1 of the longest common subsequence of words, 2 LCS / (len a + len b).
"""

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from selfreward.config import ProposeConfig

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
"""Kana, Han and Hangul: written without blanks between words, so each character counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SURROGATES = range(0xD800, 0xE000)
_BLOCK = 256
"""Texts compared with the pool at a time: bounds the score table at 256 x pool size."""
_SMALL_BLOCK = 32
"""The same where texts of like length are compared with that part of the pool which is of like length."""


def normalise(text: str) -> str:
    """The form in which two prompts count as the same: NFKC, case folded, runs of white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> list[str]:
    """Words for ROUGE-L: lower-case runs of letters and digits. On ASCII text this is `[a-z0-9]+`."""
    return _WORD.findall(text.lower())


def rouge_l(a: str, b: str) -> float:
    """ROUGE-L F1 of two texts, in [0, 1]; 0 when either has no words."""
    return float(RougePool([a]).closest([b])[0])


def refuse(text: str, config: ProposeConfig) -> str | None:
    """Why a proposal is refused for itself, or None.

    Reasons: `empty`; `bad_start` (begins with punctuation or a non-ASCII character); `too_short`, `too_long`
    (`propose.min_words`, `propose.max_words`, words parted by white space); `banned_word` (`propose.banned_words`
    as whole words, any case).
    """
    text = text.strip()
    if not text:
        return "empty"
    if text[0] in string.punctuation or not text[0].isascii():
        return "bad_start"
    num_words = len(text.split())
    if num_words < config.min_words:
        return "too_short"
    if num_words > config.max_words:
        return "too_long"
    if config.banned_words and _banned_pattern(config.banned_words).search(text):
        return "banned_word"
    return None


@lru_cache(maxsize=8)
def _banned_pattern(banned: tuple[str, ...]) -> re.Pattern[str]:
    phrases = [r"\s+".join(re.escape(word) for word in phrase.split()) for phrase in banned]
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)


class RougePool:
    """Texts to stay away from. Each distinct word becomes one character, so that the comparison runs over strings."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._symbols: dict[str, str] = {}
        self._coded: list[str] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._coded)

    def add(self, text: str) -> None:
        """Put a text into the pool."""
        self._coded.append(self._code(text))

    def closest(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Highest ROUGE-L F1 of each text to any text of the pool, shape [len(texts)]; 0 for an empty pool."""
        return self._closest([self._code(text) for text in texts], self._coded)

    def overlapping(self, texts: Sequence[str], limit: float) -> list[bool]:
        """Whether each text's highest F1 exceeds `limit`: `closest(texts) > limit`, sooner, because two texts of very
        different lengths need no comparison."""
        coded = [self._code(text) for text in texts]
        lengths = np.array([len(code) for code in coded], dtype=np.int64)
        pool_lengths = np.array([len(code) for code in self._coded], dtype=np.int64)
        ratio = limit / (2 - limit)  # what the shorter one's length must exceed, as a share of the longer one's
        found = np.zeros(len(texts), dtype=bool)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _SMALL_BLOCK):
            rows = order[start : start + _SMALL_BLOCK]
            shortest, longest = int(lengths[rows[0]]), int(lengths[rows[-1]])
            fits = np.flatnonzero((pool_lengths >= shortest * ratio - 1) & (pool_lengths * ratio <= longest + 1))
            if not len(fits):
                continue
            least = int(limit * (shortest + int(pool_lengths[fits].min())) / 2)
            block, pool = [coded[row] for row in rows], [self._coded[place] for place in fits]
            common = cdist(block, pool, scorer=LCSseq.similarity, score_cutoff=least, dtype=np.int32)
            total = lengths[rows][:, None] + pool_lengths[fits][None, :]
            found[rows] = (2 * common / np.maximum(total, 1) > limit).any(axis=1)
        return [bool(item) for item in found]

    def admit(self, texts: Sequence[str], limit: float) -> list[bool]:
        """Take texts in, one after the other: False where the F1 to the pool or to a text admitted before exceeds
        `limit`. Admitted texts join the pool."""
        coded = [self._code(text) for text in texts]
        far = self._closest(coded, self._coded) <= limit
        fresh: list[str] = []
        admitted = []
        for code, is_far in zip(coded, far, strict=True):
            take = bool(is_far) and float(self._closest([code], fresh)[0]) <= limit
            if take:
                fresh.append(code)
            admitted.append(take)
        self._coded.extend(fresh)
        return admitted

    def _code(self, text: str) -> str:
        return "".join(self._symbol(word) for word in words_of(text))

    def _symbol(self, word: str) -> str:
        symbol = self._symbols.get(word)
        if symbol is None:
            point = len(self._symbols)
            # The surrogate range is not made of characters: jump over it.
            symbol = chr(point if point < _SURROGATES.start else point + len(_SURROGATES))
            self._symbols[word] = symbol
        return symbol

    @staticmethod
    def _closest(queries: Sequence[str], pool: Sequence[str]) -> NDArray[np.float64]:
        best = np.zeros(len(queries))
        if not pool:
            return best
        pool_lengths = np.array([len(code) for code in pool])
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            common = cdist(block, pool, scorer=LCSseq.similarity, dtype=np.int32)
            lengths = np.array([len(code) for code in block])[:, None] + pool_lengths[None, :]
            best[start : start + len(block)] = (2 * common / np.maximum(lengths, 1)).max(axis=1)
        return best
