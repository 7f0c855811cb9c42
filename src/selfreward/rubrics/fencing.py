"""Data between tags: kept from ending or opening the tags that a rubric's body writes around it.

A backslash goes behind the `<` of everything that reads like one of these tags: `<\\/response>`, `<\\response>`. Backslashes
that stood there get one more, so that the change can be undone: taking one backslash away gives back what was written.
Nothing else is touched.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_CLOSING_TAG = re.compile(r"</([A-Za-z][\w-]*)>")


def closed_tags(template: str) -> tuple[str, ...]:
    """Names of the tags that a template closes, in lower case."""
    return tuple(sorted({name.lower() for name in _CLOSING_TAG.findall(template)}))


def defuse(text: str, names: tuple[str, ...]) -> str:
    """The text with a backslash in all that reads like an opening or closing tag of these names.

    Case, blanks around the slash and attributes do not matter, nor full-width forms and characters without a width, which
    a model may read over. `< response` without an end is ordinary text.
    """
    if not names or not ("<" in text or "\uff1c" in text or "\ufe64" in text):
        return text
    folded, places = _fold(text)
    # As it looks, and as it stands: a character without a width ends a word for one reader and not for another.
    ends = {places[match.start()] + 1 for match in _tag_pattern(names).finditer(folded)}
    ends |= {match.start() + 1 for match in _tag_pattern(names).finditer(text)}
    parts, start = [], 0
    for end in sorted(ends):
        parts += [text[start:end], "\\"]
        start = end
    return "".join([*parts, text[start:]])


@lru_cache(maxsize=64)
def _tag_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    name = rf"(?:{'|'.join(map(re.escape, names))})(?![\w-])"
    return re.compile(rf"<(?=\\*(?:\s*/\s*{name}|{name}|\s+{name}\s*>))", re.IGNORECASE)


def _fold(text: str) -> tuple[str, Sequence[int]]:
    """The text as it looks, and the place of each of its characters in what was given."""
    if text.isascii():
        return text, range(len(text))
    kept = [place for place, character in enumerate(text) if unicodedata.category(character) != "Cf"]
    return "".join(_plain(text[place]) for place in kept), kept


def _plain(character: str) -> str:
    """The plain form of a full-width or styled character, where it is one character."""
    form = unicodedata.normalize("NFKC", character)
    return form if len(form) == 1 else character
