"""What the prompts of one call share: a root that all begin with, and stems that some go on with.

A judge's prompts begin with one rubric (the root), the candidates of one instruction share it too (their stem), and the votes
on one response share the whole prompt (its requests). What is shared is read once. Token ids only; nothing here runs a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from selfreward.types import Request

LEAST_SHARED = 8
"""Shorter beginnings are not worth a pass of their own."""
LEAST_GAIN = 32
LEAST_ROWS = 64
"""Prompts part into families where some, with this many rows at least, share this many tokens more than all do: two rubrics
in one call, for example. Smaller families would leave a machine idle."""


@dataclass(frozen=True)
class Job:
    """One prompt (token ids) and the requests that continue it: one row each."""

    ids: tuple[int, ...]
    requests: tuple[Request, ...]

    def rows(self, start: int, stop: int) -> Self:
        """The same prompt with some of its rows."""
        return replace(self, requests=self.requests[start:stop])


@dataclass(frozen=True)
class Leaf:
    """One job of a family. The first `num_root` of its tokens are the family's root; up to `num_stem` it shares them with
    those neighbours that have the same `stem` number. At least one token is its own."""

    job: Job
    num_root: int
    num_stem: int
    stem: int

    @property
    def num_rows(self) -> int:
        """Rows that the job wants."""
        return len(self.job.requests)

    def rows(self, start: int, stop: int) -> "Leaf":
        """The same leaf with some of its rows."""
        return replace(self, job=self.job.rows(start, stop))


@dataclass(frozen=True)
class Family:
    """Jobs that begin with the same tokens, `root`; leaves of one stem stand together, longest first."""

    root: tuple[int, ...]
    leaves: tuple[Leaf, ...]


def plan_families(jobs: Sequence[Job]) -> list[Family]:
    """Part jobs into families. The same jobs give the same plan, in whatever order they come."""
    ordered = sorted(jobs, key=lambda job: job.ids)
    return [_family(group) for group in _part(ordered)] if jobs else []


def num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size
    low, high = 0, size  # alike up to low, not alike up to high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


def _num_root(ordered: Sequence[Job]) -> int:
    """Tokens that all begin with; each keeps one of its own, whose logits say what follows."""
    return min(num_common(ordered[0].ids, ordered[-1].ids), *(len(job.ids) - 1 for job in ordered))


def _part(ordered: Sequence[Job]) -> list[list[Job]]:
    """Groups of jobs in the order of their ids that should have a root of their own."""
    shared = _num_root(ordered)
    branches: dict[int, list[Job]] = {}
    for job in ordered:
        branches.setdefault(job.ids[shared], []).append(job)
    if len(branches) == 1 or not any(map(_is_family, branches.values())):
        return [list(ordered)]
    rest: list[Job] = []
    groups: list[list[Job]] = []
    for branch in branches.values():
        if _is_family(branch) and _num_root(branch) >= shared + LEAST_GAIN:
            groups += _part(branch)
        else:
            rest += branch
    return [*groups, rest] if rest else groups


def _is_family(jobs: Sequence[Job]) -> bool:
    return len(jobs) > 1 and sum(len(job.requests) for job in jobs) >= LEAST_ROWS


def _family(ordered: Sequence[Job]) -> Family:
    num_root = _num_root(ordered) if len(ordered) > 1 else 0
    if num_root < LEAST_SHARED:
        num_root = 0
    clusters = _clusters(ordered, num_root)
    clusters.sort(key=lambda cluster: -max(len(job.ids) for job in cluster))
    leaves = []
    for number, cluster in enumerate(clusters):
        stem = max(_num_root(cluster), num_root) if len(cluster) > 1 else num_root
        leaves += [Leaf(job, num_root, stem, number) for job in sorted(cluster, key=lambda job: -len(job.ids))]
    return Family(ordered[0].ids[:num_root], tuple(leaves))


def _clusters(ordered: Sequence[Job], num_root: int) -> list[list[Job]]:
    """Neighbours that share more with each other than with those around them.

    A cluster ends where the next job shares too little, or less than half of what it shares on its other side.
    """
    shared = [max(num_common(left.ids, right.ids) - num_root, 0) for left, right in pairwise(ordered)]
    clusters = [[ordered[0]]]
    for place, job in enumerate(ordered[1:]):
        around = max(shared[place - 1] if place else 0, shared[place + 1] if place + 1 < len(shared) else 0)
        if shared[place] < LEAST_SHARED or 2 * shared[place] < around:
            clusters.append([])
        clusters[-1].append(job)
    return clusters
