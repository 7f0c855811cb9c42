"""What tests of the seed splits share: records made on the spot, and a pool and splitter over them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from selfreward.config import SeedConfig
from selfreward.sources.records import Record, Role, Split
from selfreward.stages._pool import SPLITS, Pool, SplitName
from selfreward.stages._split import Splitter
from selfreward.types import Drop

SMALL = SeedConfig(num_ift=4, num_eft=4, num_heldout_prompts=2, num_heldout_ranked=2)


def prompt_text(number: int) -> str:
    """Prompts that share no word."""
    return " ".join(f"w{number}{place}" for place in "abcdef")


def tree(number: int, replies: tuple[str, ...] = ("best", "worse"), **fields: Any) -> Record:
    """What an Open Assistant tree yields: fit for all but ready EFT targets."""
    roles: set[Role] = {"prompts"} | ({"ranked"} if len(replies) > 1 else set()) | ({"ift"} if replies else set())
    values: dict[str, Any] = {
        "id": f"t{number}",
        "prompt": prompt_text(number),
        "roles": frozenset(roles),
        "response": replies[0] if replies else None,
        "replies": replies,
        "ranks": tuple(range(len(replies))),
    }
    return Record(**{**values, **fields})


def row(id_: str, prompt: str, role: Role, split: Split = "auto", **fields: Any) -> Record:
    """A record for one purpose."""
    needs: dict[str, dict[str, Any]] = {
        "ift": {"response": "a response"},
        "ranked": {"replies": ("good", "bad"), "ranks": (0, 1)},
        "eft": {"response": "a response", "judgement": "fine. Score: 4", "score": 4.0},
        "prompts": {},
    }
    return Record(id_, prompt, frozenset([role]), split, **{**needs[role], **fields})


class Splits:
    """Records after pool and splitter: ids in each table, drops by reason."""

    def __init__(self, records: Iterable[Record], config: SeedConfig = SMALL) -> None:
        self.drops: list[Drop] = []
        self.num_in = 0
        pool = Pool(config, self._reject)
        for record in records:
            self.num_in += 1
            pool.take(record, 0)
        self.splitter = Splitter(pool, config, self._reject)
        self.splitter.split()
        self.records = {split: [item.record for item in items] for split, items in self.splitter.tables.items()}
        self.ids: dict[SplitName, list[str]] = {split: [record.id for record in self.records[split]] for split in SPLITS}

    def _reject(self, drop: Drop, source: int) -> None:
        self.drops.append(drop)

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(ids) for split, ids in self.ids.items() if ids}

    @property
    def reasons(self) -> dict[str, str]:
        return {drop.id: drop.reason for drop in self.drops}

    @property
    def by_reason(self) -> dict[str, int]:
        return dict(Counter(drop.reason for drop in self.drops))
