"""When to kill: moments drawn over a run's stages, and the watch that tells a running process's stage and when one has come.

A run is seen from outside only: by the lines that it adds to run.log and by the files that come and go in its folders.
Two spans around the stages count as stages too: `opening`, from the first sign in the run's folder to the first stage, and
`report`, from the last stage to the end of the process.
"""

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OPENING, REPORT = "opening", "report"
ENDS = ("stage finished", "stage reused")
SHORTLY = 0.02
"""Seconds after an event within which a kill follows it."""
KILLS_IN_A_RUN = (1, 1, 2, 3)
"""How often one run is killed before it may finish; one of these, drawn."""

Event = Literal["start", "files", "record", "time"]


@dataclass(frozen=True, slots=True)
class Span:
    """What the uninterrupted run spent in one stage: seconds, and how often the files of its folder were seen to change."""

    seconds: float
    num_changes: int


Timeline = Mapping[str, Span]
"""Stage key -> its span, in the order of the run."""


@dataclass(frozen=True, slots=True)
class Moment:
    """`delay` seconds after an event of a stage: its start (`start` and `time`), the `count`-th change of its files, or its
    record. A stage that ends before its event comes is killed at its end."""

    stage: str
    event: Event
    count: int
    delay: float

    def __str__(self) -> str:
        after = {"start": "start", "time": "start", "files": f"change {self.count} of its files", "record": "record"}[
            self.event
        ]
        return f"{self.stage}: {after} + {1000 * self.delay:.0f} ms"


def kind_of(stage: str) -> str:
    """What a stage does, whatever the round or model: `evals` of `m1/evals` and `round-2/evals`."""
    return stage.rsplit("/", maxsplit=1)[-1]


def draw(rng: random.Random, timeline: Timeline, num_kills: int, kinds: Sequence[str] = ()) -> list[Moment]:
    """The moments of a whole session, in random order. First one for every kind of stage (or of `kinds`), at an event, so that
    no kind is missed; the rest uniformly over the working time."""
    every = list(dict.fromkeys(map(kind_of, timeline)))
    if unknown := set(kinds) - set(every):
        raise SystemExit(f"unknown kinds of stages: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    wanted = list(kinds or every)
    rng.shuffle(wanted)
    moments = [_at_event(rng, timeline, kind) for kind in wanted[:num_kills]]
    allowed = {key: span for key, span in timeline.items() if not kinds or kind_of(key) in kinds}
    moments += [_in_time(rng, allowed) for _ in range(num_kills - len(moments))]
    rng.shuffle(moments)
    return moments


def group(rng: random.Random, moments: Sequence[Moment], timeline: Timeline, size: int) -> list[list[Moment]]:
    """The moments of each run, in the order of the run; `size` kills in each, 0 for `KILLS_IN_A_RUN`."""
    order = {key: place for place, key in enumerate(timeline)}
    groups, left = [], list(moments)
    while left:
        number = size or rng.choice(KILLS_IN_A_RUN)
        groups.append(sorted(left[:number], key=lambda moment: order[moment.stage]))
        left = left[number:]
    return groups


def _at_event(rng: random.Random, timeline: Timeline, kind: str) -> Moment:
    stage = rng.choice([key for key in timeline if kind_of(key) == kind])
    events: list[Event] = ["start", "files", "files"] + ([] if kind in (OPENING, REPORT) else ["record"])
    event = rng.choice(events)
    count = rng.randint(1, max(1, timeline[stage].num_changes))
    # Right at a record is where its stage still clears up: a later kill would fall into the next stage.
    return Moment(stage, event, count, 0.0 if event == "record" else rng.uniform(0, SHORTLY))


def _in_time(rng: random.Random, timeline: Timeline) -> Moment:
    stage = rng.choices(list(timeline), [span.seconds for span in timeline.values()])[0]
    return Moment(stage, "time", 0, rng.uniform(0, timeline[stage].seconds))


class Watch:
    """What one process does in a run's folder; make it before the process starts, then `look` again and again. Without
    `last_stage` (the first run of all, whose stages are not known yet) the report begins after every stage.

    `stage` is the one at work, None before the first sign of the process; `since` is when it was first seen. `passed` are the
    stages that are over for this process. `changes` counts how often the files of the stage's folder changed.
    """

    def __init__(self, root: Path, last_stage: str | None = None) -> None:
        self.root, self.last_stage = root, last_stage
        self.stage: str | None = None
        self.since = 0.0
        self.changes = 0
        self.spans: dict[str, Span] = {}
        self.passed: set[str] = set()
        self.has_record = False
        self._due: tuple[Moment, float] | None = None
        self._log = root / "run.log"
        self._offset = self._log.stat().st_size if self._log.exists() else 0
        self._files = self._list(OPENING)

    def look(self) -> None:
        """See what is new."""
        now = time.monotonic()
        lines = self._new_lines()
        if lines and self.stage is None:
            self.stage, self.since = OPENING, now
        for line in lines:
            told = json.loads(line)
            if told["message"] == "stage started":
                self._enter(told["data"]["stage"], now)
            elif told["message"] in ENDS:
                key = told["data"]["stage"]
                self.passed.add(key)
                if key == self.last_stage or self.last_stage is None:
                    self._enter(REPORT, now)
        files = self._list(self.stage or OPENING)
        if files != self._files:
            self._files = files
            if self.stage is None:
                self.stage, self.since = OPENING, now
            self.changes += 1
        self.has_record = "record.json" in files

    def is_due(self, moment: Moment) -> bool:
        """Whether the moment has come; `look` first."""
        if moment.stage in self.passed:
            return True
        if self.stage != moment.stage:
            return False
        if self._due is None or self._due[0] is not moment:
            now = time.monotonic()
            come = {"files": self.changes >= moment.count, "record": self.has_record}
            if not come.get(moment.event, True):
                return False
            self._due = (moment, (self.since if moment.event == "time" else now) + moment.delay)
        return time.monotonic() >= self._due[1]

    def timeline(self) -> Timeline:
        """The spans of all stages, once the process has ended; `opening` first, `report` last."""
        return {key: span for key, span in self.spans.items() if key != REPORT} | {REPORT: self.spans[REPORT]}

    def close(self) -> None:
        """The process has ended: so has its last stage."""
        self._enter(None, time.monotonic())

    def _enter(self, stage: str | None, now: float) -> None:
        if self.stage is not None:
            self.spans[self.stage] = Span(now - self.since, self.changes)
            self.passed.add(self.stage)
        self.stage, self.since, self.changes, self.has_record = stage, now, 0, False
        self._files = frozenset() if stage is None else self._list(stage)

    def _list(self, stage: str) -> frozenset[str]:
        """Names in a stage's folder, and in the folders that are its own."""
        folder = self.root if stage in (OPENING, REPORT) else self.root / stage
        names: set[str] = set()
        with suppress(FileNotFoundError):  # not there yet, or just taken away: the next look sees the rest
            for entry in os.scandir(folder):
                names.add(entry.name)
                if folder != self.root and entry.is_dir():
                    names |= {f"{entry.name}/{inner.name}" for inner in os.scandir(entry.path)}
        return frozenset(names)

    def _new_lines(self) -> list[bytes]:
        """Whole lines that the log got since the last look."""
        try:
            if self._log.stat().st_size <= self._offset:
                return []
        except FileNotFoundError:
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()
