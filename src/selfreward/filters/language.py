"""Is a prompt in the wanted language? Only a clear no counts.

Language identification is unsure about short texts, names, numbers and code. So a text is foreign only where the likeliest
language is much likelier than the wanted one. The score is py3langid's log-probability, divided by the square root of the
text's bytes, because its naive Bayes treats every n-gram as new evidence and is overconfident on long texts.
"""

import math
from collections.abc import Mapping

from selfreward.errors import ConfigError

MIN_ODDS = math.log(20.0)
"""The likeliest language must be so many times as likely as the wanted one (natural logarithm). Among 1,130 English prompts
of four public sets the largest value is 1.2; whole sentences in other languages begin near 7."""


def is_foreign(text: str, lang: str) -> bool:
    """Whether the text is clearly in another language than `lang`. Raises ConfigError for a code that is not known."""
    scores = _scores(text)
    if lang not in scores:
        raise ConfigError(f"propose.lang={lang!r} is not known; known are {', '.join(sorted(scores))}")
    odds = (max(scores.values()) - scores[lang]) / math.sqrt(max(len(text.encode("utf-8", "replace")), 1))
    return odds > MIN_ODDS


def check_language(lang: str) -> None:
    """Raises ConfigError for a code that is not known."""
    is_foreign("", lang)


def _scores(text: str) -> Mapping[str, float]:
    """Log-probability of each language, up to a constant."""
    import py3langid  # reads its model when first asked (about a second): only for runs that want a language

    return {str(code): float(score) for code, score in py3langid.rank(text)}
