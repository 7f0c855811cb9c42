"""`read_source`: one configured source -> a lazy stream of records and drops, with its counts.

Memory: one row at a time (a tree, a prompt's run of rows), and 8 bytes for each id.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from selfreward.config import SourceConfig
from selfreward.errors import ConfigError, DataError
from selfreward.filters import check_language, is_foreign, same_language, words_of
from selfreward.sources.digests import Digests
from selfreward.sources.formats import detect, formats, is_row
from selfreward.sources.found import Format, Found
from selfreward.sources.places import Container, data_files, file_rows, open_place
from selfreward.sources.records import Reading, Record, Role, Split
from selfreward.sources.rows import BadRow, Row, to_json
from selfreward.sources.seed_folder import NAME as SEED_FOLDER
from selfreward.sources.seed_folder import seed_files
from selfreward.types import Drop

PEEK = 20
"""First rows of a file that its format is told from."""
_LANG = "seed.sources[].lang"


@dataclass(frozen=True, slots=True)
class _Part:
    """A container with what its records have in common. `format` None: told when its turn comes."""

    container: Container
    format: Format | None
    split: Split
    prefix: str = ""


def read_source(
    source: SourceConfig,
    label: str,
    on_bad_row: Literal["fail", "skip"],
    ids: Digests | None = None,
    keeps_blank_replies: bool = False,
) -> tuple[Reading, Iterator[Record | Drop]]:
    """Open a source and stream it: each row is one Record or one Drop. The Reading is complete when the stream has ended.

    Ids are `<label>-<the row's own id, or its line or row number>`, with the file's name before the number when a folder
    holds several files; an id that was there before gets the row's number behind it. An empty label adds nothing. `ids` are
    those given out so far: sources that share the set share no id. None: nobody else gives out ids.

    Blank replies are left out, unless `keeps_blank_replies`.

    Drop reasons of all formats: `bad_row` (only with on_bad_row=skip; else DataError), `lang`, `prompt_too_long`, `blank`
    (the prompt, or the only reply), and where no wanted role is left `too_short`, `too_long`, `no_response`, `no_reply`,
    `one_reply`, `all_tied` or `no_usable_reply`; formats add their own.

    Raises ConfigError when the format does not offer the role or `lang` is no known language, DataError when there is
    nothing to read, when the format cannot be told, and, once the stream runs, where a file is damaged.
    """
    if source.format == "lab":
        raise ConfigError("format=lab is not read from a path: the seed stage writes the micro-world's seed folder first")
    if not source.path:
        raise ConfigError("a seed source has no path; set its `path`, or `seed.path` for all sources")
    if source.lang is not None:
        check_language(source.lang, _LANG)
    files = seed_files(Path(source.path).expanduser()) if source.format in ("auto", SEED_FOLDER) else []
    reading = Reading(format=source.format, detected=source.format == "auto")
    if files or source.format == SEED_FOLDER:
        parts = _seed_folder_parts(source, reading)
    else:
        containers, reading.ignored = open_place(source, is_row)
        shape = _format_of(containers[0], source, on_bad_row)
        _check_role(source, shape.name, shape.offers)
        reading.format = shape.name
        parts = [_Part(container, None, source.split) for container in containers]
        parts[0] = replace(parts[0], format=shape)
    stream = _Stream(source, label, on_bad_row, reading, Digests() if ids is None else ids)
    stream.keeps_blank_replies = keeps_blank_replies
    return reading, stream.run(parts)


def _seed_folder_parts(source: SourceConfig, reading: Reading) -> list[_Part]:
    folder = Path(source.path).expanduser()
    files = seed_files(folder)
    if not files:
        raise DataError(f"{source.path!r} is no seed folder: it must hold ift.jsonl or another of the five seed files")
    if source.split != "auto":
        raise ConfigError(f"split={source.split} does not fit a seed folder, whose files have splits of their own; use auto")
    _check_role(source, f"{SEED_FOLDER} with {', '.join(file.name for file in files)}", frozenset(file.role for file in files))
    wanted = [file for file in files if source.role in ("auto", file.role)]
    every, others = data_files(folder)
    names = {file.name for file in wanted}
    reading.format, reading.ignored = SEED_FOLDER, sorted({path.name for path in every} - names | set(others))
    return [
        _Part(
            Container(str(folder / file.name), "", file_rows(folder / file.name, is_row)), file.format, file.split, file.prefix
        )
        for file in wanted
    ]


def _check_role(source: SourceConfig, name: str, offers: frozenset[Role]) -> None:
    if source.role not in ("auto", *offers):
        raise ConfigError(
            f"seed.sources, {source.path!r}: role={source.role} is not in a source of format {name}, which offers "
            f"{', '.join(sorted(offers))}"
        )


def _format_of(container: Container, source: SourceConfig, on_bad_row: str) -> Format:
    """The format that is set, or that the first rows have. Raises DataError when there are none."""
    table = formats(source.lang)
    first = list(islice(container.rows(), PEEK))
    if not first:
        raise DataError(f"{container.name} holds no row")
    if source.format != "auto":
        return table[source.format]
    rows = [row for row in first if isinstance(row, Row)]
    if not rows:
        assert isinstance(first[0], BadRow), "rows are good or bad"
        if on_bad_row == "fail":
            raise first[0].error
        raise DataError(f"{container.name}: none of the first {len(first)} rows can be read: {first[0].error}")
    return detect(container.name, rows, table)


class _Stream:
    """Turns units into records and drops, and counts them."""

    def __init__(self, source: SourceConfig, label: str, on_bad_row: str, reading: Reading, ids: Digests) -> None:
        self._source, self._on_bad_row, self._reading = source, on_bad_row, reading
        self._prefix = f"{label}-" if label else ""
        self._ids = ids
        self.keeps_blank_replies = False

    def run(self, parts: list[_Part]) -> Iterator[Record | Drop]:
        """All parts, one after the other."""
        for part in parts:
            self._reading.files.append(part.container.name)
            shape = part.format or _format_of(part.container, self._source, self._on_bad_row)
            if shape.name != self._reading.format:
                raise DataError(
                    f"{part.container.name} has format {shape.name}, the folder's first file {self._reading.format}; "
                    "make them two sources, or set the source's `format`"
                )
            for unit in shape.read(part.container.rows, self._reading):
                self._reading.num_rows += 1
                yield self._bad(unit, part) if isinstance(unit, BadRow) else self._finish(unit, part, shape)

    def _bad(self, row: BadRow, part: _Part) -> Drop:
        if self._on_bad_row == "fail":
            raise row.error
        return Drop(self._id(None, row.number, part), "bad_row", to_json({"error": str(row.error), "row": row.excerpt}))

    def _finish(self, unit: Found, part: _Part, shape: Format) -> Record | Drop:
        """Filter a unit: a record, or a drop with the reason why no wanted role is left."""
        own = self._id(unit.own_id, unit.number, part)
        reason = unit.reason or self._why_not_prompt(unit)
        kept = unit if reason else self._filter_replies(unit)
        roles = frozenset() if reason else self._roles(kept, shape)
        lost = kept.lost.copy()
        if not roles:
            reason = reason or _why_no_role(kept, self._source.role)
            lost += Counter({f"{shape.unit}_{reason}": kept.unread + kept.num_replies})
        lost = +lost
        self._reading.replies_dropped.update(lost)
        self._reading.num_replies += lost.total()
        if not roles:
            assert reason, "what is dropped has a reason"
            return Drop(own, reason, to_json(unit.item if unit.item is not None else _content(unit)))
        self._reading.num_replies += kept.num_replies
        return Record(
            own, kept.prompt, roles, part.split, kept.response, kept.replies, kept.ranks, kept.judgement, kept.score, kept.lang
        )

    def _why_not_prompt(self, unit: Found) -> str | None:
        if not unit.prompt.strip():
            return "blank"
        if self._source.lang is not None and _is_other_language(unit, self._source.lang):
            return "lang"
        limit = self._source.max_prompt_words
        return "prompt_too_long" if limit is not None and len(words_of(unit.prompt)) > limit else None

    def _filter_replies(self, unit: Found) -> Found:
        """Leave out replies that are blank, too short or too long; ranks close up."""
        replies = unit.replies or ((unit.response,) if unit.response is not None else ())
        reasons = [self._why_not_reply(reply) for reply in replies]
        if not any(reasons):
            return unit
        lost = unit.lost + Counter(reason for reason in reasons if reason)
        # A response is the first of the replies, or the only one.
        response = None if reasons[0] else unit.response
        ranks = [rank for rank, reason in zip(unit.ranks, reasons, strict=False) if not reason]
        places = sorted(set(ranks))
        return replace(
            unit,
            response=response,
            replies=tuple(reply for reply, reason in zip(unit.replies, reasons, strict=False) if not reason),
            ranks=tuple(places.index(rank) for rank in ranks),
            lost=lost,
        )

    def _why_not_reply(self, reply: str) -> str | None:
        if not reply.strip():
            return None if self.keeps_blank_replies else "blank"
        low, high = self._source.min_response_words, self._source.max_response_words
        if low is None and high is None:
            return None
        num_words = len(words_of(reply))
        if low is not None and num_words < low:
            return "too_short"
        return "too_long" if high is not None and num_words > high else None

    def _roles(self, unit: Found, shape: Format) -> frozenset[Role]:
        """Roles that the content allows, the format offers, and the source wants."""
        has: set[Role] = {"prompts"}
        if unit.response is not None:
            has.add("eft" if unit.judgement is not None else "ift")
        if len(unit.replies) > 1 and (len(set(unit.ranks)) > 1 or shape.ties_alone_rank):
            has.add("ranked")
        return frozenset(role for role in has & shape.offers if self._source.role in ("auto", role))

    def _id(self, own: str | None, number: int, part: _Part) -> str:
        """A new id. One that only looks as if it were there before (64 bits) gets a number behind it too."""
        tag = f"{part.container.tag}-" if part.container.tag else ""
        name = f"{self._prefix}{part.prefix}{own if own is not None else f'{tag}{number}'}"
        while not self._ids.add(name):
            name = f"{name}-{number}"
        return name


def _is_other_language(unit: Found, wanted: str) -> bool:
    """A row's own word counts. Without it only a text that is clearly in another language is."""
    return not same_language(unit.lang, wanted) if unit.lang else is_foreign(unit.prompt, wanted, _LANG)


def _why_no_role(unit: Found, role: str) -> str:
    """Why a unit with a usable prompt has no wanted role."""
    if role == "ranked" and len(unit.replies) == 1:
        return "one_reply"
    if role == "ranked" and unit.replies:
        return "all_tied"
    reasons = +unit.lost
    del reasons["deeper_turn"], reasons["further_instance"]
    if len(reasons) == 1:
        return next(iter(reasons))
    if reasons or unit.replies:
        return "no_usable_reply"
    return "no_reply" if role == "ranked" else "no_response"


def _content(unit: Found) -> Mapping[str, Any]:
    """What a unit holds, as its drop keeps it."""
    content = {
        "prompt": unit.prompt, "response": unit.response, "replies": unit.replies, "ranks": unit.ranks,
        "judgement": unit.judgement, "score": unit.score, "lang": unit.lang,
    }  # fmt: skip
    return {key: value for key, value in content.items() if value not in (None, ())}
