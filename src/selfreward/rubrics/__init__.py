"""Prompts for judging, comparing and proposing, kept as files and identified by content hash.

A rubric file is Markdown with a YAML header:

    ---
    name: additive
    kind: pointwise           # pointwise (score one response), pairwise (compare two), propose (ask for a new task)
    format: chat              # chat: the body is one user turn; completion: plain text that the model continues (propose)
    scale: [0, 5]             # pointwise: lowest and highest score
    decimals: true            # pointwise: whether a score between two whole ones, as in 3.5, is one
    language: en              # what the body and the replies are written in
    score_word: Punkte        # pointwise, optional: what stands before the colon and the score, instead of `Score`
    of_word: von              # with score_word: what stands before the top of the scale, as in `4 von 5`
    verdict_word: Urteil      # pairwise, optional: instead of `Verdict`
    tie_word: unentschieden   # pairwise, optional: instead of `tie`
    pattern: '...'            # optional; a regular expression whose group `verdict` (or only group) is what was said
    example: 'Score: 4'       # a reply that the pattern must read; optional for propose
    verdict_prefix: 'Score: ' # pointwise, optional: what a reply without a justification says before the score
    stop: []                  # strings that end the reply
    demonstration: 'Task: {{ prompt }}'   # propose: how one demonstration looks
    separator: "\\n"                       # propose: what stands between two demonstrations
    ---
    Body with {{ instruction }}, {{ response }} (pointwise), {{ instruction }}, {{ response_a }}, {{ response_b }}
    (pairwise) or {{ demonstrations }} (propose).

There is no template language: a placeholder is replaced, in one pass, and whatever else looks like one is refused when the
file is read (docs/decisions/0004). What is filled in is data and never expanded. Where data holds a tag that the body closes,
such as `</response>`, a backslash is put behind its `<`, see `fencing`. In demonstrations the same is done to the stop strings
and to what parts two demonstrations (`#\\##`); where that is white space alone, one blank takes its place.
How replies are read: `reading` and docs/judging.md. A proposal is read up to the first stop string, whether or not the engine
stopped there: what a reply runs on with is cut.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from selfreward.errors import ConfigError
from selfreward.rubrics.fencing import closed_tags, defuse
from selfreward.rubrics.header import Header, HeaderLoader, Kind, explain
from selfreward.rubrics.patterns import OwnPattern
from selfreward.rubrics.reading import (
    PROPOSAL_PATTERN,
    READING_RULES,
    is_quoted,
    quotations,
    readable,
    score_pattern,
    to_number,
    tops_of_scale,
    verdict_pattern,
)
from selfreward.texts import one_line

Preference = Literal["A", "B", "tie"]

SETTINGS: dict[Kind, str] = {
    "pointwise": "judge.rubric",
    "pairwise": "eval.pairwise_rubric",
    "propose": "propose.template",
}
"""The setting that names a rubric of each kind."""

PLACEHOLDERS: dict[Kind, frozenset[str]] = {
    "pointwise": frozenset({"instruction", "response"}),
    "pairwise": frozenset({"instruction", "response_a", "response_b"}),
    "propose": frozenset({"demonstrations"}),
}

MAX_FILE_BYTES, MAX_USES = 65_536, 4
"""A rubric file is a page of text: how large it and the uses of one placeholder may be."""

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_FOREIGN = re.compile(r"\{[{%#][^\n]{0,40}")
"""The beginnings of a template language's marks; left in a body they would be printed as they are, which nobody wants."""


@dataclass(frozen=True)
class Found:
    """A place where a pattern matched: what was said there ('' for nothing clear), the tops of the scale that it names, the
    match's end, and where what was said starts (-1 for nothing)."""

    said: str
    tops: tuple[float, ...]
    end: int
    start: int


@dataclass(frozen=True)
class Rubric:
    """A prompt file, checked. `scale` is (0, 0) unless the kind is pointwise; `example` may be '' for propose.
    `is_read_safely`: the pattern is a default one, with the header's words in it. `tie_word` is '' for `tie`."""

    name: str
    kind: Kind
    format: Literal["chat", "completion"]
    scale: tuple[float, float]
    body: str
    pattern: str
    example: str
    stop: tuple[str, ...]
    demonstration: str
    separator: str
    decimals: bool
    language: str
    verdict_prefix: str = ""
    tie_word: str = ""
    is_read_safely: bool = False

    @cached_property
    def content_hash(self) -> str:
        """16 hex digits over everything that decides the prompts and how replies are read (`verdict_prefix` does neither, and
        whether `pattern` is one of ours shows in it)."""
        aside = {"verdict_prefix", "is_read_safely"} | ({"tie_word"} if not self.tie_word else set())
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in aside}
        fields["reading"] = READING_RULES
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode("ascii")).hexdigest()[:16]

    def fill(self, **values: str) -> str:
        """The body with every placeholder replaced by its value, in one pass, tags in the values made harmless."""
        assert values.keys() == PLACEHOLDERS[self.kind], f"{self.kind} rubrics take {sorted(PLACEHOLDERS[self.kind])}"
        if self.kind != "propose":  # demonstrations were made harmless one by one: their own tags must stay
            values = {name: defuse(value, self.tags) for name, value in values.items()}
        return _substitute(self.body, values)

    def fill_demonstrations(self, prompts: Sequence[str]) -> str:
        """A propose template's body with these prompts as demonstrations, each in the header's `demonstration` form."""
        shown = [_substitute(self.demonstration, {"prompt": self._harmless_demonstration(prompt)}) for prompt in prompts]
        return self.fill(demonstrations=self.separator.join(shown))

    def find_verdict(self, text: str) -> Found | None:
        """The last place in the text that the pattern matches and that is no quotation; None without one.

        The default patterns see the text as `readable` makes it, a pattern of the file's own sees it as it is.
        """
        if self.is_read_safely:
            text = readable(text)
        spans = quotations(text, self.tags)
        last = None
        for match in self._regex.finditer(text):
            if not is_quoted(match.start(), match.end(), spans):
                last = match
        return self._found(last) if last else None

    def preference(self, said: str) -> Preference | None:
        """What the verdict of a pairwise judge means; None for another word."""
        word = said.casefold()
        known: dict[str, Preference] = {"a": "A", "b": "B", "tie": "tie", (self.tie_word or "tie").casefold(): "tie"}
        return known.get(word)

    def allows(self, score: float) -> bool:
        """Whether a number is a score on the rubric's scale."""
        low, high = self.scale
        return low <= score <= high and (self.decimals or score == int(score))

    def read_proposal(self, text: str) -> str:
        """The task in a reply to a propose template: the first match's verdict before any stop string; '' for none."""
        ends = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        match = self._regex.search(text[: min(ends)] if ends else text)
        return self._found(match).said if match else ""

    def is_closed(self, text: str) -> bool:
        """Whether a reply holds a stop string: what comes before it is whole, however the reply ended."""
        return any(stop in text for stop in self.stop)

    def _found(self, match: Any) -> Found:
        groups = match.groupdict()
        group = "verdict" if "verdict" in groups else 1
        said = match[group] or ""
        start = match.start(group) + len(said) - len(said.lstrip())
        return Found(said.strip(), tops_of_scale(groups.get("out_of"), groups.get("within")), match.end(), start)

    @cached_property
    def _regex(self) -> re.Pattern[str] | OwnPattern:
        if self.is_read_safely:
            return re.compile(self.pattern)
        return OwnPattern(self.pattern, f"rubric {self.name!r}")

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The tags that the body closes: what is filled in can neither open nor end them."""
        return closed_tags(self.body + self.demonstration)

    @cached_property
    def _delimiters(self) -> tuple[str, ...]:
        """What ends a demonstration in a propose template; white space between demonstrations that have tags does not."""
        parted_by_tags = bool(closed_tags(self.demonstration))
        separator = self.separator.strip() or ("" if parted_by_tags else self.separator)
        return tuple(dict.fromkeys(text for text in (*self.stop, separator) if text))

    def _harmless_demonstration(self, value: str) -> str:
        value = defuse(value, self.tags)
        for blank in (text for text in self._delimiters if not text.strip()):
            value = re.sub(rf"\s*{re.escape(blank)}\s*", " ", value)
        for mark in (text for text in self._delimiters if text.strip()):
            # Each place where it begins, also inside another one: `####` holds `###` twice.
            broken = r"\1\\" if len(mark) > 1 else r"\\\1"
            value = re.sub(rf"(?={re.escape(mark)})(.)", broken, value, flags=re.DOTALL)
        return value


def load_rubric(name_or_path: str, kind: Kind, setting: str | None = None) -> Rubric:
    """Read a shipped rubric by name, or any rubric file by path; `setting` is the one that named it.

    Raises ConfigError naming what is wrong: unknown name, too large a file, wrong kind, unknown header key, missing or foreign
    placeholder, pattern that does not compile or does not read the example, example outside the scale.
    """
    setting = setting or SETTINGS[kind]
    rubric = read_rubric(name_or_path, setting)
    if rubric.kind != kind:
        raise ConfigError(f"{setting}={name_or_path!r} is of kind {rubric.kind}, but {kind} is needed")
    return rubric


def read_rubric(name_or_path: str, setting: str) -> Rubric:
    """A rubric of whatever kind; see `load_rubric`."""
    shipped = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.md"))}
    path = shipped.get(name_or_path, Path(name_or_path))
    try:
        if not name_or_path or path.is_dir():
            what = "is a folder" if name_or_path else "names no rubric"
            raise ConfigError(f"{setting}={name_or_path!r} {what}; give a rubric file or a shipped one: {', '.join(shipped)}")
        if not path.is_file():
            near = get_close_matches(name_or_path, shipped, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{setting}={name_or_path!r}: {hint}no such file; shipped: {', '.join(shipped)}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{setting}={name_or_path!r}: {path} is larger than {MAX_FILE_BYTES:,} bytes, too large for a rubric"
            )
        return parse_rubric(path.read_text(encoding="utf-8-sig"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}={name_or_path!r}: {path} cannot be read: {error}") from error


def parse_rubric(text: str, origin: str) -> Rubric:
    """Check a rubric file's text; `origin` names it in errors. See `load_rubric`."""
    text = text.replace("\r\n", "\n")
    parts = re.split(r"^---[ \t]*$\n?", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) != 3 or parts[0].strip():
        raise ConfigError(f"{origin} must start with a YAML header between two lines '---'")
    try:
        tree = HeaderLoader(parts[1]).get_single_data()
        header = Header.model_validate(tree)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin}: the header is not valid YAML: {one_line(error)}") from error
    except ValidationError as error:
        raise ConfigError(f"{origin}: {'; '.join(explain(item) for item in error.errors())}") from error
    body = parts[2].strip("\n")
    rubric = Rubric(
        name=header.name,
        kind=header.kind,
        format=header.format,
        scale=header.scale or (0.0, 0.0),
        body=body,
        pattern=header.pattern or _default_pattern(header),
        example=header.example,
        stop=header.stop,
        demonstration=header.demonstration or "",
        separator=header.separator,
        decimals=header.decimals,
        language=header.language,
        verdict_prefix=header.verdict_prefix,
        tie_word=header.tie_word,
        is_read_safely=header.pattern in (None, "", _default_pattern(header)),
    )
    _check(rubric, origin)
    return rubric


def _default_pattern(header: Header) -> str:
    if header.kind == "pointwise":
        return score_pattern(readable(header.score_word), readable(header.of_word))
    if header.kind == "pairwise":
        return verdict_pattern(readable(header.verdict_word), readable(header.tie_word))
    return PROPOSAL_PATTERN


def _check(rubric: Rubric, origin: str) -> None:
    """Placeholders, pattern and example; raises ConfigError."""
    _check_placeholders(rubric, origin)
    _check_pattern(rubric, origin)
    if rubric.kind == "propose" and not rubric.example:
        return
    found = rubric.find_verdict(rubric.example)
    if found is None or not found.said:
        raise ConfigError(f"{origin}: the pattern does not read the example {rubric.example!r}")
    said, (low, high) = found.said, rubric.scale
    if rubric.kind == "pointwise":
        score = to_number(said)
        if score is None or not rubric.allows(score):
            whole = "" if rubric.decimals else "whole "
            raise ConfigError(f"{origin}: the example's score {said!r} is not a {whole}number in the scale {low:g} to {high:g}")
        _check_verdict_prefix(rubric, origin)
    if rubric.kind == "pairwise":
        _check_verdicts(rubric, found, origin)


def _check_placeholders(rubric: Rubric, origin: str) -> None:
    names = _PLACEHOLDER.findall(rubric.body)
    used, wanted = set(names), PLACEHOLDERS[rubric.kind]
    for part, text in (("body", rubric.body), ("demonstration", rubric.demonstration)):
        if foreign := _FOREIGN.search(_PLACEHOLDER.sub("", text)):
            raise ConfigError(
                f"{origin}: the {part} holds {foreign[0]!r}; a rubric has placeholders like {{{{ response }}}} and no template "
                "language: nothing in it is computed"
            )
    if used != wanted:
        raise ConfigError(f"{origin}: the body has placeholders {sorted(used)}, a {rubric.kind} rubric needs {sorted(wanted)}")
    if rubric.kind == "propose" and set(_PLACEHOLDER.findall(rubric.demonstration)) != {"prompt"}:
        raise ConfigError(
            f"{origin}: demonstration {rubric.demonstration!r} must hold {{{{ prompt }}}} and no other placeholder"
        )
    if crowded := [name for name in sorted(used) if names.count(name) > MAX_USES]:
        raise ConfigError(f"{origin}: the body uses the placeholder {crowded[0]!r} more than {MAX_USES} times")


def _check_pattern(rubric: Rubric, origin: str) -> None:
    own = OwnPattern(rubric.pattern, origin)
    if not own.finds_a_verdict:
        raise ConfigError(f"{origin}: pattern {rubric.pattern!r} needs one group, or a group (?P<verdict>...), for the verdict")
    if not rubric.is_read_safely:
        own.probe(rubric.example)


def _check_verdicts(rubric: Rubric, found: Found, origin: str) -> None:
    """The pattern must read A, B and the tie where the example says its verdict: else those verdicts would all be missing."""
    tie = rubric.tie_word or "tie"
    if rubric.preference(found.said) is None:
        raise ConfigError(
            f"{origin}: the example's verdict {found.said!r} is not A, B or {tie}; another word for a tie: tie_word"
        )
    before, after = rubric.example[: found.start], rubric.example[found.start + len(found.said) :]
    for word in ("A", "B", tie):
        other = rubric.find_verdict(f"{before}{word}{after}")
        if other is None or rubric.preference(other.said) != rubric.preference(word):
            raise ConfigError(
                f"{origin}: the pattern reads the verdict {found.said!r} in the example, but not {word!r} in its place; a "
                "pairwise judge says A, B or tie, and tie_word in the header names another word for a tie"
            )


def _check_verdict_prefix(rubric: Rubric, origin: str) -> None:
    """The pattern must read a score behind the prefix, at both ends of the scale."""
    for score in rubric.scale if rubric.verdict_prefix else ():
        found = rubric.find_verdict(f"{rubric.verdict_prefix}{score:g}")
        if found is None or to_number(found.said) != score:
            raise ConfigError(f"{origin}: the pattern does not read {score:g} behind verdict_prefix {rubric.verdict_prefix!r}")


def _substitute(template: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)
