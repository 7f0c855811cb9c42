"""Diversity of responses: distinct-n, the share of different word n-grams among all (Li et al. 2016). Pure.

The figure falls with the amount of text, so it compares models only over the same prompts, and says little when
lengths differ much.
"""

import re
from collections import Counter
from collections.abc import Sequence

from selfreward.statistics import NOTHING, jackknife
from selfreward.types import Estimate

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Kana, Han, Hangul: scripts in which one character is taken as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits of any script; single characters where words are not spaced."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Sequence[str], size: int) -> Estimate:
    """Distinct n-grams / all n-grams over all texts, `size` words each; the interval is a jackknife over texts.

    Texts shorter than `size` words have no n-gram and are not counted in `n`.
    """
    grams = [Counter(_grams(words(text), size)) for text in texts]
    grams = [counter for counter in grams if counter]
    if not grams:
        return NOTHING
    num_texts_with = Counter(gram for counter in grams for gram in counter)
    total = sum(counter.total() for counter in grams)
    distinct = len(num_texts_with)
    without = []
    for counter in grams:
        rest = total - counter.total()
        only_here = sum(num_texts_with[gram] == 1 for gram in counter)
        if rest:
            without.append((distinct - only_here) / rest)
    return jackknife(distinct / total, without, 0.0, 1.0) if without else Estimate(1.0 * distinct / total, None, None, 1)


def _grams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
