"""The benchmarks' common results: rows of one JSON file, merged by workload, model and peer, and a table of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One workload. `model` is None where no model takes part; `ratio` is ours over the peer's, None without a peer."""

    workload: str
    model: str | None
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None


def read(path: Path) -> list[Row]:
    """The rows of a results file; none where it does not exist."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def update(path: Path, rows: Sequence[Row]) -> None:
    """Put the rows into the file: each replaces the one of its workload, model and peer, or comes last."""
    merged = {_key(row): row for row in [*read(path), *rows]}
    text = json.dumps({"rows": [asdict(row) for row in merged.values()]}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _key(row: Row) -> tuple[str | None, ...]:
    return row.workload, row.model, row.peer_name


def render(rows: Sequence[Row], unit: str) -> str:
    """A plain table."""
    lines = [("workload", "model", f"ours ({unit})", "peer", "peer is", "ratio")]
    for row in rows:
        peer = "-" if row.peer is None else f"{row.peer:,.0f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f}x"
        lines.append((row.workload, row.model or "-", f"{row.ours:,.0f}", peer, row.peer_name or "-", ratio))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
