"""Prompts for judging, comparing and proposing, kept as files and identified by content hash.

A rubric file is Markdown with a YAML header:

    ---
    name: additive
    kind: pointwise           # pointwise (score one response), pairwise (compare two), propose (ask for a new task)
    format: chat              # chat: the body is one user turn; completion: plain text that the model continues (propose)
    scale: [0, 5]             # pointwise: lowest and highest score
    pattern: '...'            # optional; a regular expression whose group `verdict` (or only group) is what was said
    example: 'Score: 4'       # a reply that the pattern must read; optional for propose
    verdict_prefix: 'Score: ' # pointwise, optional: what a reply without a justification says before the score
    stop: []                  # strings that end the reply
    demonstration: 'Task: {{ prompt }}'   # propose: how one demonstration looks
    separator: "\\n"                       # propose: what stands between two demonstrations
    ---
    Body with {{ instruction }}, {{ response }} (pointwise), {{ instruction }}, {{ response_a }}, {{ response_b }}
    (pairwise) or {{ demonstrations }} (propose).

Filling is one pass: what is filled in is data and never expanded. Where data holds a tag that the body closes, such as
`</response>`, a backslash is put behind its `<` (`<\\/response>`, `<\\response>`), so that data cannot end or open a tag
and a reader of the log still sees what was written.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from selfreward.errors import ConfigError

Kind = Literal["pointwise", "pairwise", "propose"]

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

_MARKS = r"[ \t*_`<\[({\"'$]*"
_NUMBER = r"[-\u2212]?\d+(?:\.\d{1,3}|,\d{1,2})?"
_OPERATORS = r"[-\u2010-\u2015\u2212~\uff5e\u2026,;|&+=x\u00d7]|\.{2,}|(?:to|or|and)\b"
SCORE_PATTERN = (
    r"(?i)(?<![a-z])score[ \t*_`]*(?:\([^()\n]*\)[ \t*_`]*)?[:\uff1a]"  # `Score:`, `**Score**:`, `Score (0-5):`
    r"(?:" + _MARKS + r"(?:\\boxed\{)?(?:\d[\d .+]*=[ \t]*)?"  # an addition before the total: `1 + 1 + 1 = 3`
    rf"(?P<verdict>{_NUMBER})(?![\d%]|[.,]\d)"
    rf"(?![ \t*_`]*(?:{_OPERATORS})[ \t*_`]*\d|[ \t]*\*[ \t]*\d)"  # `3-4`, `4, 5`, `3 + 1` without a total: no verdict
    r"(?:[ \t*_`(]*(?:(?:points?|pts)\b[ \t*_`(]*)?(?:/|(?:out[ \t]+)?of\b)[ \t*_`]*(?P<out_of>\d+(?:\.\d+)?))?"
    r")?"
)
"""Default pattern of pointwise rubrics. It matches every `Score:`; `verdict` is the number behind it, None where there is
no clear one. `out_of` is the scale's top when the reply names it."""
VERDICT_PATTERN = (
    r"(?<![A-Za-z])(?i:verdict)[ \t*_`]*[:\uff1a]"
    r"(?:" + _MARKS + r"(?:(?i:assistant|response|answer)[ \t]+)?(?:[Aa][ \t]+)?"  # `Response B`, `a tie`
    r"(?P<verdict>(?i:tie)|A|B)(?!\w|[ \t]*[/|]|(?:[ \t]*,|[ \t]+and|[ \t]+or)[ \t]+(?:A|B|(?i:tie))\b)"
    r")?"
)
"""Default pattern of pairwise rubrics. It matches every `Verdict:`; `verdict` is None where no clear one follows."""
PROPOSAL_PATTERN = r"(?s)\A\s*(?P<verdict>.*?)\s*\Z"
"""Default pattern of propose templates: the whole reply."""

_DEFAULT_PATTERNS: dict[Kind, str] = {
    "pointwise": SCORE_PATTERN,
    "pairwise": VERDICT_PATTERN,
    "propose": PROPOSAL_PATTERN,
}
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_CLOSING_TAG = re.compile(r"</([A-Za-z][\w-]*)>")


@dataclass(frozen=True)
class Found:
    """A place where a pattern matched: what was said there ('' for nothing clear), the named top of the scale, the match's
    end, and where what was said starts (-1 for nothing)."""

    said: str
    out_of: str | None
    end: int
    start: int


@dataclass(frozen=True)
class Rubric:
    """A prompt file, checked. `scale` is (0, 0) unless the kind is pointwise; `example` may be '' for propose."""

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
    verdict_prefix: str = ""

    @cached_property
    def content_hash(self) -> str:
        """16 hex digits over everything that decides the prompts and how replies are read (`verdict_prefix` does neither)."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "verdict_prefix"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode("ascii")).hexdigest()[:16]

    def fill(self, **values: str) -> str:
        """The body with every placeholder replaced by its value, in one pass, tags in the values made harmless."""
        assert values.keys() == PLACEHOLDERS[self.kind], f"{self.kind} rubrics take {sorted(PLACEHOLDERS[self.kind])}"
        if self.kind != "propose":  # demonstrations were made harmless one by one: their own tags must stay
            values = {name: self._harmless(value) for name, value in values.items()}
        return _substitute(self.body, values)

    def fill_demonstrations(self, prompts: Sequence[str]) -> str:
        """A propose template's body with these prompts as demonstrations, each in the header's `demonstration` form."""
        shown = [_substitute(self.demonstration, {"prompt": self._harmless(prompt)}) for prompt in prompts]
        return self.fill(demonstrations=self.separator.join(shown))

    def find_verdict(self, text: str) -> Found | None:
        """The last place in the text that the pattern matches; None where it matches nowhere."""
        last = None
        for last in self._regex.finditer(text):  # noqa: B007
            pass
        return self._found(last) if last else None

    def read_proposal(self, text: str) -> str:
        """The task in a reply to a propose template: the first match's verdict; '' where there is none."""
        match = self._regex.search(text)
        return self._found(match).said if match else ""

    def _found(self, match: re.Match[str]) -> Found:
        groups = match.groupdict()
        group = "verdict" if "verdict" in groups else 1
        said = match[group] or ""
        start = match.start(group) + len(said) - len(said.lstrip())
        return Found(said.strip(), groups.get("out_of"), match.end(), start)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @cached_property
    def _tags(self) -> re.Pattern[str] | None:
        names = sorted({name.lower() for name in _CLOSING_TAG.findall(self.body + self.demonstration)})
        return re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(names)})\b)", re.IGNORECASE) if names else None

    def _harmless(self, value: str) -> str:
        return self._tags.sub(r"<\\", value) if self._tags else value


def load_rubric(name_or_path: str, kind: Kind) -> Rubric:
    """Read a shipped rubric by name, or any rubric file by path.

    Raises ConfigError naming what is wrong: unknown name, wrong kind, unknown header key, missing placeholder,
    pattern that does not compile or does not read the example, example outside the scale.
    """
    setting = SETTINGS[kind]
    shipped = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.md"))}
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        near = get_close_matches(name_or_path, shipped, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{setting}={name_or_path!r}: {hint}no such file; shipped: {', '.join(shipped)}")
    try:
        rubric = parse_rubric(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}={name_or_path!r}: {path} cannot be read: {error}") from error
    if rubric.kind != kind:
        raise ConfigError(f"{setting}={name_or_path!r} is of kind {rubric.kind}, but {kind} is needed")
    return rubric


def parse_rubric(text: str, origin: str) -> Rubric:
    """Check a rubric file's text; `origin` names it in errors. See `load_rubric`."""
    text = text.replace("\r\n", "\n")
    parts = re.split(r"^---[ \t]*$\n?", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) != 3 or parts[0].strip():
        raise ConfigError(f"{origin} must start with a YAML header between two lines '---'")
    try:
        tree = yaml.safe_load(parts[1])
        header = _Header.model_validate(tree)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: the header is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ConfigError(f"{origin}: {'; '.join(_explain(item) for item in error.errors())}") from error
    body = parts[2].strip("\n")
    rubric = Rubric(
        name=header.name,
        kind=header.kind,
        format=header.format,
        scale=header.scale or (0.0, 0.0),
        body=body,
        pattern=header.pattern or _DEFAULT_PATTERNS[header.kind],
        example=header.example,
        stop=header.stop,
        demonstration=header.demonstration or "",
        separator=header.separator,
        verdict_prefix=header.verdict_prefix,
    )
    _check(rubric, origin)
    return rubric


class _Header(BaseModel):
    """The YAML header as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    name: str
    kind: Kind
    format: Literal["chat", "completion"] = "chat"
    scale: tuple[float, float] | None = None
    pattern: str | None = None
    example: str = ""
    stop: tuple[str, ...] = ()
    demonstration: str | None = None
    separator: str = "\n"
    verdict_prefix: str = ""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.kind == "pointwise") != (self.scale is not None):
            raise ValueError("scale: [low, high] belongs to pointwise rubrics, and they need it")
        if self.scale and self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale: the low end {self.scale[0]} must be below the high end {self.scale[1]}")
        if (self.kind == "propose") != (self.demonstration is not None):
            raise ValueError("demonstration belongs to propose templates, and they need it")
        if self.format == "completion" and self.kind != "propose":
            raise ValueError(f"format: completion is for propose templates; {self.kind} rubrics are chat")
        if any(not text for text in self.stop):
            raise ValueError("stop: an empty string would stop every reply at once")
        if self.verdict_prefix and self.kind != "pointwise":
            raise ValueError("verdict_prefix belongs to pointwise rubrics")
        return self


def _check(rubric: Rubric, origin: str) -> None:
    """Placeholders, pattern and example; raises ConfigError."""
    used, wanted = set(_PLACEHOLDER.findall(rubric.body)), PLACEHOLDERS[rubric.kind]
    if used != wanted:
        raise ConfigError(f"{origin}: the body has placeholders {sorted(used)}, a {rubric.kind} rubric needs {sorted(wanted)}")
    if rubric.kind == "propose" and set(_PLACEHOLDER.findall(rubric.demonstration)) != {"prompt"}:
        raise ConfigError(
            f"{origin}: demonstration {rubric.demonstration!r} must hold {{{{ prompt }}}} and no other placeholder"
        )
    try:
        groups = re.compile(rubric.pattern).groupindex
    except re.error as error:
        raise ConfigError(f"{origin}: pattern {rubric.pattern!r} is no regular expression: {error}") from error
    if "verdict" not in groups and re.compile(rubric.pattern).groups != 1:
        raise ConfigError(f"{origin}: pattern {rubric.pattern!r} needs one group, or a group (?P<verdict>...), for the verdict")
    if rubric.kind == "propose" and not rubric.example:
        return
    found = rubric.find_verdict(rubric.example)
    if found is None or not found.said:
        raise ConfigError(f"{origin}: the pattern does not read the example {rubric.example!r}")
    said, (low, high) = found.said, rubric.scale
    if rubric.kind == "pointwise":
        score = to_number(said)
        if score is None or not low <= score <= high:
            raise ConfigError(f"{origin}: the example's score {said!r} is not a number in the scale {low:g} to {high:g}")
        _check_verdict_prefix(rubric, origin)
    if rubric.kind == "pairwise" and said.upper() not in ("A", "B", "TIE"):
        raise ConfigError(f"{origin}: the example's verdict {said!r} is not A, B or tie")


def _check_verdict_prefix(rubric: Rubric, origin: str) -> None:
    """The pattern must read a score behind the prefix, at both ends of the scale."""
    for score in rubric.scale if rubric.verdict_prefix else ():
        found = rubric.find_verdict(f"{rubric.verdict_prefix}{score:g}")
        if found is None or to_number(found.said) != score:
            raise ConfigError(f"{origin}: the pattern does not read {score:g} behind verdict_prefix {rubric.verdict_prefix!r}")


def to_number(text: str) -> float | None:
    """A score as written (`4`, `4.5`, `4,5`, a real minus sign) as a number; None when it is none."""
    text = text.strip().replace(",", ".").replace("\u2212", "-")
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def _substitute(template: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown header key {key!r}; known: {', '.join(_Header.model_fields)}"
    return f"{key}: {message}" if key else message
