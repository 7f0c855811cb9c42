"""What a proposed prompt must pass (paper section 2.2 and appendix A.1): text in, verdict out.

`rules` and `language` look at one prompt alone, `rouge` compares prompts with everything that is already there.
"""

from selfreward.filters.language import check_language, is_foreign, same_language
from selfreward.filters.rouge import RougePool, rouge_l, words_of
from selfreward.filters.rules import normalise, read_unsafe_words, refuse

__all__ = [
    "RougePool", "check_language", "is_foreign", "normalise", "read_unsafe_words", "refuse", "rouge_l", "same_language",
    "words_of",
]  # fmt: skip
