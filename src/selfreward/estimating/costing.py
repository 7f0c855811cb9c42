"""Workload x speed: what each stage takes, and the whole run. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from selfreward.config import POLICY
from selfreward.estimating.calibration import REPLY_KINDS, TRAINING_KINDS, Calibration, Key
from selfreward.estimating.workload import Assumptions, Job, Kind, Planned, is_foreign


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of prompts (each for each of its replies), of those read, written, trained on; seconds without those of endpoints
    and scripts."""

    asked: float = 0.0
    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.asked + other.asked,
            self.read + other.read,
            self.written + other.written,
            self.trained + other.trained,
            self.seconds + other.seconds,
        )

    def times(self, number: float) -> "Cost":
        """So many of them."""
        return Cost(
            self.asked * number, self.read * number, self.written * number, self.trained * number, self.seconds * number
        )


class Lengths(Protocol):
    """What tells how long replies are."""

    def mean_reply(self, kind: Kind, scale: float) -> float:
        """Tokens of a reply of a kind on average."""
        ...


def stage_cost(stage: Planned, found: Calibration, lengths: Lengths, assumed: Assumptions) -> Cost:
    """What a stage takes once."""
    total = Cost()
    for job in stage.jobs:
        total += _job_cost(job, found, lengths, assumed)
    return total


def total_cost(stages: Sequence[Planned], found: Calibration, lengths: Lengths, assumed: Assumptions) -> Cost:
    """What all stages take, each as often as it comes."""
    total = Cost()
    for stage in stages:
        total += stage_cost(stage, found, lengths, assumed).times(stage.times)
    return total


def _job_cost(job: Job, found: Calibration, lengths: Lengths, assumed: Assumptions) -> Cost:
    if job.kind in REPLY_KINDS:
        return _replies(job, found, lengths, assumed)
    if job.kind in TRAINING_KINDS:
        speed = found.speeds[job.kind, POLICY]
        seconds = job.num_rows * (speed.seconds_once + job.epochs * speed.seconds_row) / assumed.speed
        return Cost(trained=job.num_rows * job.epochs * speed.row_tokens, seconds=seconds)
    return Cost(seconds=0.0 if is_foreign(job.model) else job.num_rows * _each(found.seconds_each, (job.kind, job.model)))


def _replies(job: Job, found: Calibration, lengths: Lengths, assumed: Assumptions) -> Cost:
    # A foreign model's prompts are about as long as the policy's would be; its time nobody can measure here.
    foreign = is_foreign(job.model)
    speed = found.speeds.get((job.kind, POLICY if foreign else job.model)) or found.speeds["judge", POLICY]
    reply = lengths.mean_reply(job.kind, assumed.reply_scale)
    asked = job.num_rows * speed.prompt_tokens * (int(job.writes) + int(job.weighs))
    asked += job.num_rows * reply * (job.weighs and job.writes)
    read = asked if foreign else asked * min(1.0, speed.read_share * speed.shared / job.shared)
    written = job.num_rows * reply * job.writes
    seconds = 0.0 if foreign else (read * speed.seconds_read + written * speed.seconds_written) / assumed.speed
    return Cost(asked, read, written, 0.0, seconds)


def _each(seconds: Mapping[Key, float], key: Key) -> float:
    return seconds[key] if key in seconds else seconds[key[0], POLICY]
