"""The responses to judge, read from their file as often as they are needed; one prompt's are in memory at a time."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from selfreward.artifacts import holds_rows, iter_rows, to_plain
from selfreward.config import Config
from selfreward.errors import DataError
from selfreward.evals.head_to_head import Contest
from selfreward.evals.judging import RankedResponse, responses_of
from selfreward.judge_tool.options import Options
from selfreward.sources import Reading, Record, read_source
from selfreward.types import Drop, RankedSet


@dataclass(frozen=True)
class Scan:
    """What a first reading found: a hash of all of it, how much there is, and what is said about it."""

    digest: str
    num_sets: int
    num_responses: int
    num_pairs: int
    num_drops: int
    facts: dict[str, Any]


class Data:
    """Sets of responses to one prompt (without ranks where nobody ranked them) and the rows that left."""

    def __init__(self, options: Options, config: Config) -> None:
        """Reads all of it once. Raises DataError where there is nothing to judge, and what reading raises."""
        self._options = options
        self._config = config
        # A run's own table keeps its order and ids, which the seeds of votes go by.
        self._is_table = holds_rows(options.data, RankedSet)
        self._digest: str | None = None
        self.scan = self._scan()

    def sets(self, reject: Callable[[Drop], None] = lambda drop: None) -> Iterator[RankedSet]:
        """All sets; `reject` gets the rows that left. Raises DataError when the file is no longer what was read first."""
        for item in self._items(self._new_reading()):
            if isinstance(item, Drop):
                reject(item)
            else:
                yield item

    def responses(self, reject: Callable[[Drop], None]) -> Iterator[RankedResponse]:
        """All responses; ids are `<set id>/<index>`."""
        return (response for item in self.sets(reject) for response in responses_of([item]))

    def contests(self, reject: Callable[[Drop], None]) -> Iterator[Contest]:
        """The better (`new`) against the worse response of each ordered pair; ids are `<set id>/<better>-<worse>`."""
        return (contest for item in self.sets(reject) for contest in contests_of(item))

    def _scan(self) -> Scan:
        opened = self._new_reading()
        sets = responses = pairs = 0
        dropped: Counter[str] = Counter()
        for item in self._items(opened):
            if isinstance(item, Drop):
                dropped[item.reason] += 1
            else:
                sets, responses, pairs = sets + 1, responses + len(item.responses), pairs + len(contests_of(item))
        reading = Reading("a run's ranked sets", True, sets, responses) if opened is None else opened[0]
        num_drops = dropped.total()
        assert reading.num_rows == sets + num_drops, f"{reading.num_rows} rows gave {sets} sets and {num_drops} drops"
        facts = {
            "path": str(self._options.data),
            "format": reading.format,
            "detected": reading.detected,
            "rows": reading.num_rows,
            "dropped": dict(dropped.most_common()),
            "replies": reading.num_replies,
            "replies_dropped": dict(reading.replies_dropped.most_common()),
            "notes": reading.notes,
        }
        if not sets:
            what = "ranked replies of one prompt" if self._options.agreement else "response"
            raise DataError(
                f"{self._options.data} holds no {what} to judge: {reading.num_rows} rows read, dropped {facts['dropped']}"
            )
        return Scan(self._digest or "", sets, responses, pairs, num_drops, facts)

    def _new_reading(self) -> tuple[Reading, Iterator[Record | Drop]] | None:
        """The source opened once more; None for a run's own table."""
        return None if self._is_table else read_source(self._config.seed.sources[0], "", self._config.seed.on_bad_row)

    def _items(self, opened: tuple[Reading, Iterator[Record | Drop]] | None) -> Iterator[RankedSet | Drop]:
        digest = hashlib.sha256()
        for item in self._table() if opened is None else self._source(opened[1]):
            digest.update(json.dumps(item, default=to_plain).encode("ascii"))
            yield item
        found = digest.hexdigest()[:16]
        if self._digest not in (None, found):
            raise DataError(f"{self._options.data} changed while it was judged; give a file that stays as it is")
        self._digest = found

    def _table(self) -> Iterator[RankedSet]:
        return islice(iter_rows(self._options.data, RankedSet), self._options.limit)

    def _source(self, items: Iterator[Record | Drop]) -> Iterator[RankedSet | Drop]:
        num_sets = 0
        for item in items:
            if not isinstance(item, Record):
                yield item
                continue
            replies = item.replies or ((item.response,) if item.response is not None else ())
            if not replies:
                yield Drop(item.id, "no_response", json.dumps({"prompt": item.prompt}, ensure_ascii=False))
                continue
            yield RankedSet(item.id, item.prompt, replies, item.ranks if "ranked" in item.roles else ())
            num_sets += 1
            if num_sets == self._options.limit:
                return


def contests_of(item: RankedSet) -> list[Contest]:
    """One set's ordered pairs."""
    return [
        Contest(f"{item.id}/{i}-{j}", item.prompt, item.responses[i], item.responses[j])
        for a, b in combinations(range(len(item.ranks)), 2)
        if item.ranks[a] != item.ranks[b]
        for i, j in [(a, b) if item.ranks[a] < item.ranks[b] else (b, a)]
    ]
