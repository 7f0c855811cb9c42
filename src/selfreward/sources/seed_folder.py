"""The project's own seed folder: up to five JSON-lines files, each with its role and its split.

| file | row | role, split, ids |
|---|---|---|
| ift.jsonl | {"prompt", "response"} | ift, train, `ift-17` |
| eft.jsonl | {"instruction", "response", "judgement", "score"} | eft, train, `eft-17` |
| ranked.jsonl | {"prompt", "responses": [{"text", "rank"}, ...]} | ranked, train, `ranked-17` |
| heldout_prompts.jsonl | {"prompt"} | prompts, heldout, `heldout-17` |
| heldout_ranked.jsonl | as ranked.jsonl | ranked, heldout, `heldout-ranked-17` |

The number is the line. Rank 0 is best, equal ranks are ties, the replies may stand in any order and keep it. No text may be
blank, and a ranked row holds at least two replies. Further keys are ignored, a row's own id as well.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from selfreward.sources.found import Format, Found, Parse, each
from selfreward.sources.plain import parse_eft
from selfreward.sources.records import Role, Split
from selfreward.sources.rows import Row

NAME = "seed-folder"


@dataclass(frozen=True, slots=True)
class SeedFile:
    """One of the five files."""

    name: str
    prefix: str
    split: Split
    role: Role
    parse: Parse

    @property
    def format(self) -> Format:
        """The format of its rows."""
        return Format(NAME, frozenset({self.role}), lambda value: False, each(self.parse), ties_alone_rank=True)


def seed_files(folder: Path) -> list[SeedFile]:
    """Which of the five files a folder holds."""
    return [file for file in SEED_FILES if (folder / file.name).is_file()] if folder.is_dir() else []


def _parse_ift(row: Row) -> Found:
    return Found(row.number, None, row.text("prompt"), row.text("response"), lang=row.optional("lang"))


def _parse_eft(row: Row) -> Found:
    return replace(parse_eft(row), own_id=None)


def _parse_prompt(row: Row) -> Found:
    return Found(row.number, None, row.text("prompt"), lang=row.optional("lang"))


def _parse_ranked(row: Row) -> Found:
    responses = row.rows("responses")
    if len(responses) < 2:
        raise row.fail("responses", f"must hold at least two responses to compare, got {len(responses)}")
    # In the order of the row: replies are judged, and their seeds derived, by their places.
    replies = tuple(reply.text("text") for reply in responses)
    ranks = tuple(reply.rank("rank") for reply in responses)
    return Found(row.number, None, row.text("prompt"), None, replies, ranks, lang=row.optional("lang"))


SEED_FILES = (
    SeedFile("ift.jsonl", "ift-", "train", "ift", _parse_ift),
    SeedFile("eft.jsonl", "eft-", "train", "eft", _parse_eft),
    SeedFile("ranked.jsonl", "ranked-", "train", "ranked", _parse_ranked),
    SeedFile("heldout_prompts.jsonl", "heldout-", "heldout", "prompts", _parse_prompt),
    SeedFile("heldout_ranked.jsonl", "heldout-ranked-", "heldout", "ranked", _parse_ranked),
)
