"""The responses to judge, read from their file as often as they are needed; one prompt's are in memory at a time."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from selfreward.artifacts import holds_rows, iter_rows, to_plain
from selfreward.config import Config
from selfreward.errors import DataError, UsageError
from selfreward.evals.head_to_head import Contest
from selfreward.evals.judging import RankedResponse, responses_of
from selfreward.judge_tool.options import Options
from selfreward.sources import Reading, Record, read_source
from selfreward.sources.formats import formats, is_row
from selfreward.sources.places import open_place
from selfreward.sources.read import PEEK
from selfreward.sources.rows import Row
from selfreward.types import Drop, RankedSet


@dataclass(frozen=True)
class Scan:
    """What a first reading found: a hash of all of it, how much there is, and what is said about it."""

    digest: str
    num_sets: int
    num_prompts: int
    num_responses: int
    num_blank: int
    num_pairs: int
    num_drops: int
    facts: dict[str, Any]
    first_of: Mapping[str, str]
    """A later set's id -> that of the first one with the same prompt: they were not drawn independently."""

    @property
    def num_asked(self) -> int:
        """Responses that a judge can be asked about."""
        return self.num_responses - self.num_blank

    def group(self, set_id: str) -> str:
        """What a set is counted with."""
        return self.first_of.get(set_id, set_id)


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
        """All responses but the blank ones, which `reject` gets too; ids are `<set id>/<index>`."""
        for item in self.sets(reject):
            for response in responses_of([item]):
                if is_blank(response.text):
                    reject(Drop(response.id, "blank", json.dumps({"prompt": item.prompt, "response": response.text})))
                else:
                    yield response

    def contests(self, reject: Callable[[Drop], None] = lambda drop: None) -> Iterator[Contest]:
        """The better (`new`) against the worse response of each ordered pair; ids are `<set id>/<better>-<worse>`."""
        return (contest for item in self.sets(reject) for contest in contests_of(item))

    def _scan(self) -> Scan:
        opened = self._new_reading()
        sets = responses = pairs = blank = 0
        dropped: Counter[str] = Counter()
        prompts: dict[bytes, str] = {}
        first_of: dict[str, str] = {}
        for item in self._items(opened):
            if isinstance(item, Drop):
                dropped[item.reason] += 1
            else:
                sets, responses, pairs = sets + 1, responses + len(item.responses), pairs + len(contests_of(item))
                blank += sum(map(is_blank, item.responses))
                first = prompts.setdefault(hashlib.sha256(item.prompt.encode()).digest()[:12], item.id)
                if first != item.id:
                    first_of[item.id] = first
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
        if responses == blank:
            raise DataError(self._nothing(facts))
        return Scan(self._digest or "", sets, len(prompts), responses, blank, pairs, num_drops, facts, first_of)

    def _nothing(self, facts: Mapping[str, Any]) -> str:
        """Why there is nothing to judge, and which fields are there."""
        what = "ranked replies of one prompt" if self._options.agreement else "response"
        left = (
            ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in facts["dropped"].items()) or "blank responses"
        )
        seen = "" if self._is_table else f"; its rows have the fields {', '.join(self._fields())}"
        return (
            f"{self._options.data} holds no {what} to judge: {facts['rows']:,} rows read as format {facts['format']}, without: "
            f"{left}{seen}. A response is looked for in the fields response, output, completion, messages or responses "
            "(others: docs/sources.md); rename the field, or give --format"
        )

    def _fields(self) -> list[str]:
        """The fields of the first rows."""
        containers, _ = open_place(self._config.seed.sources[0], is_row)
        rows = islice((row for row in containers[0].rows() if isinstance(row, Row)), PEEK)
        return list(dict.fromkeys(str(key) for row in rows for key in row.value))

    def _new_reading(self) -> tuple[Reading, Iterator[Record | Drop]] | None:
        """The source opened once more; None for a run's own table."""
        if self._is_table:
            return None
        source, on_bad_row = self._config.seed.sources[0], self._config.seed.on_bad_row
        if self._options.agreement:
            shape = read_source(source.model_copy(update={"role": "auto"}), "", on_bad_row)[0].format
            known = formats(source.lang)
            if shape in known and "ranked" not in known[shape].offers:
                ranked = ", ".join(name for name, item in known.items() if "ranked" in item.offers)
                raise UsageError(
                    f"--agreement needs responses that people ranked, but {self._options.data} has format {shape}, one "
                    f"response for a prompt at most; formats with ranks: {ranked}"
                )
        # A blank response keeps its row among the scores; among ranks there is nothing to learn of it.
        return read_source(source, "", on_bad_row, keeps_blank_replies=not self._options.agreement)

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


def is_blank(text: str) -> bool:
    """Whether there is nothing to judge."""
    return not text.strip()
