"""What was measured, for people (a table of 80 columns, then notes) and for the results file."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from _results import Row

from speed.contest import Rates
from speed.roofline import Limit

WIDTH = 80
COLUMNS = (("workload", 18), ("model", 5), ("unit", 6), ("ours", 8), ("peer", 8), ("peer is", 17), ("ratio", 6), ("limit", 5))
"""Heads and widths; one space between them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside one peer on one workload (expected scores: the same candidates, which the peer judges by votes).

    `tokens` are the new tokens that each side made; `limit` counts for ours.
    """

    workload: str
    model: str
    unit: str
    ours: Rates
    peer: Rates
    peer_name: str
    tokens: tuple[int, int]
    settings: tuple[str, str]
    seconds: float
    limit: Limit

    @property
    def ratio(self) -> float:
        """Of the medians: above 1 ours is faster."""
        return self.ours.median / self.peer.median

    @property
    def reached(self) -> float:
        """The least time over ours (median): 1 would be the machine's limit."""
        return self.limit.seconds / self.seconds

    def row(self) -> Row:
        """For the results file."""
        return Row(self.workload, self.model, self.ours.median, self.peer.median, self.peer_name, self.ratio)


def render(comparisons: Sequence[Comparison]) -> str:
    """The table; no line is wider than 80 columns."""
    lines = [_line([head for head, _ in COLUMNS])]
    for item in comparisons:
        lines.append(
            _line(
                [
                    item.workload,
                    item.model,
                    item.unit,
                    _number(item.ours.median),
                    _number(item.peer.median),
                    item.peer_name,
                    f"{item.ratio:.2f}x",
                    f"{100 * item.reached:.0f} %",
                ]
            )
        )
    return "\n".join(lines)


def notes(comparisons: Sequence[Comparison]) -> str:
    """Under the table: for each row both sides' range and new tokens, how they were set up, and what bounds ours."""
    lines = []
    for item in comparisons:
        text = (
            f"{item.workload}, {item.model}: ours {_range(item.ours)} {item.unit}/s, {item.tokens[0]:,} new tokens, "
            f"{item.settings[0]}; {item.peer_name} {_range(item.peer)} {item.unit}/s, {item.tokens[1]:,} new tokens, "
            f"{item.settings[1]}. Least time {item.limit.seconds:.2f} s ({item.limit.bound}: computing "
            f"{item.limit.compute:.2f} s, traffic {item.limit.traffic:.2f} s), ours {item.seconds:.2f} s."
        )
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    """One line: texts from the left, figures from the right, what is too long cut."""
    figures = {"ours", "peer", "ratio", "limit"}
    padded = []
    for cell, (head, width) in zip(cells, COLUMNS, strict=True):
        padded.append(cell[:width].rjust(width) if head in figures else cell[:width].ljust(width))
    return " ".join(padded).rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(rates: Rates) -> str:
    return f"{_number(rates.median)} [{_number(rates.least)}, {_number(rates.most)}]"
