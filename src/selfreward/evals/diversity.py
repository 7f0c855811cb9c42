"""Diversity of responses: distinct-n, the share of different word n-grams among all (Li et al. 2016), and the mean ROUGE-L
between responses to different prompts. Pure.

distinct-n falls with the amount of text, so it compares models only over the same prompts, and says little when lengths
differ much. The overlap is of the kind of self-BLEU (Zhu et al. 2018) with a measure that is the same from either side and
needs no smoothing: F1 of the longest common subsequence of words, as the filters use it.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from selfreward.filters.rouge import pairwise_rouge_l
from selfreward.statistics import NOTHING, jackknife
from selfreward.types import Estimate

MAX_TEXTS = 256
"""Responses that are compared with each other: the work grows with the square of their number."""
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


def mean_overlap(texts: Sequence[str], seed: int) -> Estimate:
    """Mean ROUGE-L F1 over all pairs of texts, of at most `MAX_TEXTS` that the seed draws; low is diverse.

    The interval is a jackknife over texts. Texts without a word overlap with nothing and count so.
    """
    if len(texts) > MAX_TEXTS:
        texts = random.Random(seed).sample(list(texts), MAX_TEXTS)
    if len(texts) < 2:
        return NOTHING
    scores_NN = pairwise_rouge_l(texts)
    np.fill_diagonal(scores_NN, 0.0)
    rows_N, total, num = scores_NN.sum(axis=1), float(scores_NN.sum()), len(texts)
    value = total / (num * (num - 1))
    if num == 2:
        return Estimate(value, None, None, num)
    return jackknife(value, [float(total - 2 * row) / ((num - 1) * (num - 2)) for row in rows_N], 0.0, 1.0)


def _grams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
