"""Is a prompt in the wanted language? Only a clear no counts.

Language identification is unsure about short texts, names, numbers and code. So a text is foreign only where the likeliest
language is much likelier than the wanted one. The score is py3langid's log-probability, divided by the square root of the
text's bytes, because its naive Bayes treats every n-gram as new evidence and is overconfident on long texts.
"""

import math
import re
from collections.abc import Mapping

from selfreward.errors import ConfigError

MIN_ODDS = math.log(20.0)
"""The likeliest language must be so many times as likely as the wanted one (natural logarithm). Among 1,130 English prompts
of four public sets the largest value is 1.2; whole sentences in other languages begin near 7."""


def is_foreign(text: str, lang: str, setting: str) -> bool:
    """Whether the text is clearly in another language than `lang`, the value of `setting`.

    Raises ConfigError for a code that is not known.
    """
    scores = _scores(text)
    code = primary(lang)
    if code not in scores:
        raise ConfigError(f"{setting}={lang!r} is not known; known are {', '.join(sorted(scores))}")
    odds = (max(scores.values()) - scores[code]) / math.sqrt(max(len(text.encode("utf-8", "replace")), 1))
    return odds > MIN_ODDS


def check_language(lang: str, setting: str) -> None:
    """Raises ConfigError, which names the setting, for a code that is not known."""
    is_foreign("", lang, setting)


def primary(tag: str) -> str:
    """The language that a tag names, without its region or script: `en` of `en-US` and `EN_gb`."""
    return re.split("[-_]", tag.strip(), maxsplit=1)[0].lower()


def same_language(a: str, b: str) -> bool:
    """Whether two tags name the same language, whatever their region and case."""
    return primary(a) == primary(b)


def _scores(text: str) -> Mapping[str, float]:
    """Log-probability of each language, up to a constant."""
    import py3langid  # reads its model when first asked (about a second): only for runs that want a language

    return {str(code): float(score) for code, score in py3langid.rank(text)}
