"""The YAML header of a rubric file: what may stand in it."""

import re
from math import isfinite
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from selfreward.texts import shown

Kind = Literal["pointwise", "pairwise", "propose"]
MAX_PATTERN_LENGTH = 2_000
_WORD = re.compile(r"[^\W\d_]([^\n:]{0,38}\w)?")


def _is_word(text: str) -> str:
    if text and not _WORD.fullmatch(text):
        raise ValueError(f"{shown(text)} is no word; give one of at most 40 characters, or a few, without the colon behind it")
    return text


Word = Annotated[str, AfterValidator(_is_word)]
"""A word or a few of any language."""


class HeaderLoader(yaml.SafeLoader):
    """Safe YAML in which no key may stand twice: the first of two scales would be gone without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value) for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Header(BaseModel):
    """The YAML header as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    name: str = Field(min_length=1, pattern=r"^[^\s\x00-\x1f](.*\S)?$")
    kind: Kind
    format: Literal["chat", "completion"] = "chat"
    scale: tuple[float, float] | None = None
    pattern: str | None = None
    score_word: Word = ""
    of_word: Word = ""
    verdict_word: Word = ""
    tie_word: Word = ""
    example: str = ""
    stop: tuple[str, ...] = ()
    demonstration: str | None = None
    separator: str = "\n"
    decimals: bool = True
    language: str = Field(default="en", pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$")
    verdict_prefix: str = ""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.kind == "pointwise") != (self.scale is not None):
            raise ValueError("scale: [low, high] belongs to pointwise rubrics, and they need it")
        if not self.decimals and self.kind != "pointwise":
            raise ValueError("decimals belongs to pointwise rubrics")
        if self.pattern is not None and len(self.pattern) > MAX_PATTERN_LENGTH:
            raise ValueError(f"pattern: {len(self.pattern):,} characters, at most {MAX_PATTERN_LENGTH:,} are allowed")
        if self.scale and self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale: the low end {self.scale[0]:g} must be below the high end {self.scale[1]:g}")
        if (self.kind == "propose") != (self.demonstration is not None):
            raise ValueError("demonstration belongs to propose templates, and they need it")
        if self.format == "completion" and self.kind != "propose":
            raise ValueError(f"format: completion is for propose templates; {self.kind} rubrics are chat")
        if any(not text for text in self.stop):
            raise ValueError("stop: an empty string would stop every reply at once")
        if self.verdict_prefix and self.kind != "pointwise":
            raise ValueError("verdict_prefix belongs to pointwise rubrics")
        self._check_words()
        return self

    def _check_words(self) -> None:
        """Words of another language stand in the default patterns; a pattern of the file's own says its words itself."""
        for name, kind in (("score_word", "pointwise"), ("of_word", "pointwise"), ("verdict_word", "pairwise")):
            if getattr(self, name) and self.kind != kind:
                raise ValueError(f"{name} belongs to {kind} rubrics")
            if getattr(self, name) and self.pattern is not None:
                raise ValueError(f"{name} is for the default pattern; remove it, or pattern")
        if self.of_word and not self.score_word:
            raise ValueError("of_word belongs to a rubric with score_word")
        if self.tie_word and self.kind != "pairwise":
            raise ValueError("tie_word belongs to pairwise rubrics")
        if self.tie_word.upper() in ("A", "B"):
            raise ValueError(f"tie_word: {self.tie_word!r} is one of the responses; give another word")

    @field_validator("scale", mode="before")
    @classmethod
    def _is_scale(cls, value: Any) -> Any:
        numbers = isinstance(value, list) and all(
            isinstance(item, int | float) and not isinstance(item, bool) and isfinite(item) for item in value
        )
        if value is not None and not (numbers and len(value) == 2):
            raise ValueError(
                f"{shown(value)} is no scale; give two finite numbers, the lowest and the highest score, like [1, 10]"
            )
        return value


def explain(item: Any) -> str:
    """A pydantic error about a header as one line."""
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown header key {key!r}; known: {', '.join(Header.model_fields)}"
    return f"{key}: {message}" if key else message
