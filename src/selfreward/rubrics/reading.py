"""Where a judge's reply says its verdict: the default patterns, how a reply is made readable for them, what is a quotation.

The rules for people, with a table of examples, stand in docs/judging.md; a test reads that table.
"""

import re
from collections.abc import Iterator, Sequence

READING_RULES = 2
"""Part of every rubric's content hash: raise it when replies are read in another way."""

_MARKS = r"[ \t*_`\[({\"'$]*"
_NUMBER = r"[-\u2212]?\d+(?:\.\d{1,3}|,\d{1,2})?"
_BLANKS = r"[ \t*_`]*"
_OPERATORS = (
    r"(?:[-=]>|[-\u2010-\u2015\u2212~\u2026\u00b1\u2192\u21d2,;:|&+=x\u00d7]|\.{2,}|\+/-"
    r"|(?:to|or|and|vs)\b\.?|(?:versus|through|thru|minus|plus|times|maybe|perhaps|possibly|up[ \t]+to)\b)"
)
_WORDS = {
    word: float(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
} | {"twenty": 20.0, "hundred": 100.0}
_PART_OF_A_NUMBER = (
    r"(?!\d|[ \t]*[.,]\d|[\u066b\u066c\u00b7]|[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215f\u2189])"
    r"(?![ \t]*(?:%|per[ \t]?cent))"
    r"(?!(?!points?\b|pts?\b)[a-z])"  # `4th`, `4e1`; units of other scripts (`4点`) may stand there
    r"(?![+\-\u2212](?![a-z]))"  # `4+`, `4-`: a grade, not a number
)
_HALF = r"(?![ \t]+(?:and[ \t]+(?:a|one)[ \t]+half\b|[\u00bc-\u00be\u2150-\u215f\u2189]))"
_OUT_OF = (
    r"(?:/|(?:out[ \t]+)?of\b|over\b)[ \t*_`]*(?:(?:an?|the|maximum|max|possible|total|of)\b[ \t]+){0,5}"
    r"|(?:(?:on|from)[ \t]+)?(?:(?:an?|the)[ \t]+)?scale\b[ \t:]*(?:(?:of|from)[ \t]+)?(?:\d+[ \t]*(?:[-\u2013]|to\b)[ \t]*)?"
    r"|max(?:imum)?\b[.:]?[ \t]*(?:(?:of|is)[ \t]+)?"
)
"""What stands between a score and the top of the scale it is on: `4/10`, `4 out of a possible 10`, `4 (on a scale of 1-10)`."""
_WORD = r"[^\W\d_]{1,30}\.?[ \t]*"
_UNIT = r"(?:(?:(?:points?|pts?|stars?|marks?)\b|[\u70b9\u9ede\u5206])[ \t*_`(,]*)?"


def score_pattern(word: str = "", of_word: str = "") -> str:
    """Default pattern of pointwise rubrics. It matches every `Score:`, or every `word:`; `verdict` is the number behind it,
    None where there is no clear one. `out_of` and `within` hold the scale's top where the reply names it.

    Which words make a range (`3 to 4`) is known in English alone. With another language's `word` no number may follow the
    first one with a word or two between, unless the last of them is `of_word` (`4 von 5`).
    """
    name, others, out_of = r"(?<![a-z])score", "", _OUT_OF
    if word:
        name = _starting(word)
        is_top = "".join(rf"(?<!{re.escape(of_word)}{blank})" for blank in ("", r"[ \t]")) if of_word else ""
        others = rf"(?![ \t*_`(,]*(?:{_WORD}){{1,2}}{is_top}\d)"
        out_of += rf"|(?:{_WORD})??{_starting(of_word)}[ \t]*" if of_word else ""
    return (
        rf"(?i){name}[\"']?{_BLANKS}(?:\((?P<within>[^()\n]*)\){_BLANKS})?:"  # `Score:`, `**Score**:`, `Score (0-5):`
        rf"(?:{_MARKS}(?:(?P<opened><)[ \t*_`]*)?(?:\\boxed\{{)?(?:\d[\d .+]*=[ \t]*)?"  # an addition: `1 + 1 + 1 = 3`
        rf"(?P<verdict>{_NUMBER}){_PART_OF_A_NUMBER}"
        rf"{_HALF}(?!{_BLANKS}\d|(?:[ \t*_`(]*{_OPERATORS})+{_BLANKS}\d)"  # `4 5`, `3-4`, `4, 5`, `3 + 1` without a total
        rf"{others}(?!{_BLANKS}[(\[]{_BLANKS}\d+(?:[.,]\d+)?{_BLANKS}[)\]])"  # `4 (5)`
        r"(?![ \t]*/[ \t]*\d+[ \t]*/)"  # a date
        r"(?(opened)(?=[^<\n]*>))"  # `<4>`, but not `< 4`
        rf"(?:[ \t*_`(,]*{_UNIT}"
        rf"(?:{out_of})(?P<out_of>\d+(?:\.\d+)?|(?:{'|'.join(_WORDS)})\b))?"
        r")?"
    )


_PREFERS = r"(?=[ \t*_`\]})]*(?:>|,?[ \t]*\(?(?:over|not|rather[ \t]+than|instead[ \t]+of|(?:is[ \t]+)?better[ \t]+than)\b))"
_NO_OTHER = r"(?![^\n.!?]{{0,200}}(?<!\w)(?:{}|(?i:{})(?!-))(?!\w))"
"""Behind A nothing in its sentence speaks of B, unless to say that A is preferred: `A slight edge to B` is no A."""


def verdict_pattern(word: str = "", tie: str = "") -> str:
    """Default pattern of pairwise rubrics. It matches every `Verdict:`, or every `word:`; `verdict` is None where none of A, B
    and `tie` follows clearly."""
    name, tie = _starting(word) if word else r"(?<![A-Za-z])(?i:verdict)", _blanks(tie or "tie")
    said_a, said_b = (f"{one}(?:{_PREFERS}|{_NO_OTHER.format(other, tie)})" for one, other in ("AB", "BA"))
    return (
        rf"{name}[ \t*_`]*:"
        r"(?:[ \t*_`<\[({\"'$]*(?:(?i:assistant|response|answer)[ \t]+)?(?:[Aa][ \t]+)?"  # `Response B`, `a tie`
        rf"(?P<verdict>(?i:{tie})(?![\w-])|{said_a}|{said_b})"
        rf"(?!\w|[ \t]*[/|=<]|[ \t]+vs\b|(?:[ \t]*,|[ \t]+(?:and|n?or))[ \t]+(?:A|B|(?i:{tie}))\b)"
        r")?"
    )


def _blanks(words: str) -> str:
    """A pattern for these words with any blanks between them."""
    return r"[ \t]+".join(map(re.escape, words.split()))


def _starting(word: str) -> str:
    """A pattern for the word where it begins; scripts without capitals, as Chinese, write no blank before it."""
    parted = word[0].lower() != word[0].upper()
    return (r"(?<![^\W\d_])" if parted else "") + f"(?i:{_blanks(word)})"


PROPOSAL_PATTERN = r"(?s)\A\s*(?P<verdict>.*?)\s*\Z"
"""Default pattern of propose templates: the whole reply."""

_SPACES = (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_HIDDEN = (0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
"""Characters without a width: joiners, soft hyphens, marks for the direction of writing."""
_READABLE = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms of ASCII
    | dict.fromkeys((*_SPACES, *_HIDDEN), " ")
    | dict.fromkeys((0x2044, 0x2215), "/")
)

_INLINE_QUOTES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<!\w)\"[^\"\n]{0,1000}\"(?!\w)",
        r"(?<!\w)'[^\n]{0,400}?'(?!\w)",  # an apostrophe inside a word ends nothing
        r"\u2018[^\n]{0,400}?\u2019(?!\w)",
        r"\u201c[^\u201d]{0,2000}\u201d",
        r"\u201e[^\u201c\u201d]{0,2000}[\u201c\u201d]",
        r"\u00ab[^\u00bb]{0,2000}\u00bb",
        r"\u300c[^\u300d]{0,2000}\u300d",
        r"\u300e[^\u300f]{0,2000}\u300f",
        r"(`{1,3})[^`\n]{1,1000}\1",
        r"(?m)^[ \t]{0,3}>[^\n]*$",
    )
)
_FENCE_LINE = re.compile(r"(?m)^[ \t]*(?P<mark>`{3,}|~{3,})(?P<rest>[^`\n]*)$")


def readable(text: str) -> str:
    """The same text, character by character, for the default patterns: full-width forms as ASCII, odd blanks as blanks."""
    return text if text.isascii() else text.translate(_READABLE)


def to_number(text: str) -> float | None:
    """A score as written (`4`, `4.5`, `4,5`, a real minus sign) as a number; None when it is none."""
    text = text.strip().replace(",", ".").replace("\u2212", "-")
    return float(text) + 0.0 if re.fullmatch(r"-?\d+(\.\d+)?", text) else None  # + 0.0: minus zero is zero


def tops_of_scale(out_of: str | None, within: str | None) -> tuple[float, ...]:
    """The tops of the scale that a reply names behind its score (`4/5`, `4 out of five`) and before it (`Score (0-5):`)."""
    behind = [] if not out_of else [_WORDS.get(out_of.lower(), to_number(out_of))]
    before = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", within or "")][-1:]
    return tuple(top for top in (*behind, *before) if top is not None)


def quotations(text: str, tags: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) of what a reply quotes: text in quotation marks or backticks, block quotes, code fences, and what it
    repeats from the prompt between these tags. Quotations that never end are none."""
    spans = [match.span() for pattern in _INLINE_QUOTES for match in pattern.finditer(text)]
    spans += _fences(text)
    for tag in tags:
        spans += _between(text, tag)
    return spans


def is_quoted(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a place lies inside a quotation. A match that begins with the quotation mark itself is none: its pattern asks
    for the mark."""
    return any(first < start and end <= last for first, last in spans)


def _fences(text: str) -> Iterator[tuple[int, int]]:
    opened: re.Match[str] | None = None
    for line in _FENCE_LINE.finditer(text):
        if opened is None:
            opened = line
        elif line["mark"].startswith(opened["mark"]) and not line["rest"].strip():
            yield opened.start(), line.end()
            opened = None


def _between(text: str, tag: str) -> Iterator[tuple[int, int]]:
    opening, closing = (re.compile(re.escape(mark), re.IGNORECASE) for mark in (f"<{tag}>", f"</{tag}>"))
    start = opening.search(text)
    while start:
        end = closing.search(text, start.end())
        if end is None:
            return
        yield start.start(), end.end()
        start = opening.search(text, end.end())
