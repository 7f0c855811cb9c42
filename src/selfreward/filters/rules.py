"""What a prompt must be for itself, whatever else is there: text in, the name of the first rule that it breaks out."""

import re
import string
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

from selfreward.config import ProposeConfig
from selfreward.errors import ConfigError
from selfreward.filters.language import is_foreign
from selfreward.filters.rouge import UNSPACED, marks

_COUNTED = re.compile(rf"[{UNSPACED}][{marks()}]*|[^\s{UNSPACED}]+")
"""One word of a prompt's length: what stands between white space, or one character, with its marks, of a script without
blanks."""


def normalise(text: str) -> str:
    """The form in which two prompts count as the same: NFKC, case folded, runs of white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def refuse(text: str, config: ProposeConfig) -> str | None:
    """Why a proposal is refused for itself, or None. The first reason that holds, in this order:

    `empty`; `bad_start` (begins with ASCII punctuation, or with a non-ASCII character while `propose.ascii_start`);
    `too_short`, `too_long` (`propose.min_words`, `propose.max_words`; words parted by white space, each character of a
    script without blanks is one); `banned_word` (`propose.banned_words`) and `unsafe` (`propose.unsafe_words_file`) as whole
    words, any case; `language` (clearly not `propose.lang`).
    Raises ConfigError when the file of unsafe words cannot be used.
    """
    text = text.strip()
    if not text:
        return "empty"
    if text[0] in string.punctuation or (config.ascii_start and not text[0].isascii()):
        return "bad_start"
    num_words = len(_COUNTED.findall(text))
    if num_words < config.min_words:
        return "too_short"
    if num_words > config.max_words:
        return "too_long"
    if config.banned_words and _pattern(config.banned_words).search(text):
        return "banned_word"
    if config.unsafe_words_file is not None and _unsafe_pattern(config.unsafe_words_file).search(_plain(text)):
        return "unsafe"
    if config.lang is not None and is_foreign(text, config.lang, "propose.lang"):
        return "language"
    return None


def read_unsafe_words(path: str) -> tuple[str, ...]:
    """The words and phrases of `propose.unsafe_words_file`, normalised.

    Raises ConfigError when the file is missing, not UTF-8 text, or holds no word.
    """
    what = f"propose.unsafe_words_file={path!r}"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}; give a UTF-8 text file with one word or phrase a line") from error
    words = tuple(_plain(line) for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not words:
        raise ConfigError(f"{what} holds no word: every line is empty or a comment; add words or unset the setting")
    return words


def _plain(text: str) -> str:
    """Normalised, and without invisible format characters, which would part a word for us and for no reader."""
    text = text if text.isascii() else "".join(char for char in text if unicodedata.category(char) != "Cf")
    return normalise(text)


@cache
def _unsafe_pattern(path: str) -> re.Pattern[str]:
    return _pattern(read_unsafe_words(path))


@lru_cache(maxsize=8)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases as whole words; in scripts without blanks a phrase has no ends to look at."""
    return re.compile("|".join(map(_phrase_pattern, phrases)), re.IGNORECASE)


def _phrase_pattern(phrase: str) -> str:
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    before = "" if re.match(rf"[{UNSPACED}]", phrase) else r"(?<!\w)"
    after = "" if re.search(rf"[{UNSPACED}]\Z", phrase) else r"(?!\w)"
    return f"{before}{words}{after}"
