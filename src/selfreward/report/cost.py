"""What a run cost: a row a stage, from the `usage` of its record, and the total."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from selfreward.report.reading import Json
from selfreward.spending import COUNTED, USAGE
from selfreward.texts import counted

GIB = 2**30
HEADINGS = ("stage", "time", "asked", "read", "out", "trained", "tokens/s", "prefill", "decode", "peak GiB")
"""Of the table, as `cost_cells` fills it; times in seconds."""


def stage_cost(key: str, record: Mapping[str, Any]) -> Json:
    """One stage's `usage` with its `stage` and `seconds`, and the `rate`: tokens written a second of generation, or tokens
    trained on a second of training; None for stages that do neither. None is also what an earlier version's record lacks."""
    unknown = dict.fromkeys((*COUNTED, "peak_rss_bytes", "peak_gpu_bytes", "peak_of"))
    usage = unknown | (record.get(USAGE) or {})
    return {"stage": key, "seconds": record["seconds"], **usage, "rate": _rate(usage)}


def run_cost(stages: Iterable[Json]) -> Json:
    """For summary.json: `stages` and their `total`, whose peaks are the highest; what some stage does not tell is left out of
    the sums. `num_untold`: stages that asked an engine that does not tell what it read; `num_unknown`: those of a version that
    told no usage."""
    rows = list(stages)
    total: Json = {"seconds": round(sum(row["seconds"] for row in rows), 3)}
    for name in COUNTED:
        known = [row[name] for row in rows if row[name] is not None]
        total[name] = round(sum(known), 3) if known else None
    for name in ("peak_rss_bytes", "peak_gpu_bytes"):
        total[name] = max((row[name] for row in rows if row[name] is not None), default=None)
    total["num_untold"] = sum(bool(row["untold_tokens"]) for row in rows)
    total["num_unknown"] = sum(row["peak_of"] is None for row in rows)
    return {"stages": rows, "total": total}


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table, without its first column; `-` for what nobody tells or what the stage does not do."""
    works = bool(row["asked_tokens"])
    read = _whole(row["read_tokens"]) + ("+" if row["untold_tokens"] and row["read_tokens"] is not None else "")
    memory = max(filter(None, (row["peak_rss_bytes"], row["peak_gpu_bytes"])), default=None)
    return [
        f"{row['seconds']:.1f}",
        _whole(row["asked_tokens"]) if works else "-",
        read if works else "-",
        _whole(row["generated_tokens"]) if works else "-",
        _whole(row["trained_tokens"]) if row["trained_tokens"] else "-",
        _whole(row.get("rate")),
        _tenth(row["prefill_seconds"]) if works else "-",
        _tenth(row["decode_seconds"]) if works else "-",
        "-" if memory is None else f"{memory / GIB:.2f}",
    ]


def cost_line(total: Mapping[str, Any]) -> str:
    """The total in one line: `cost: 281 s; 1.95M asked, 871k read, 803k out, 629k trained tokens; 0.80 GiB`."""
    named = {"asked": "asked_tokens", "read": "read_tokens", "out": "generated_tokens", "trained": "trained_tokens"}
    tokens = ", ".join(f"{short(total[name])} {word}" for word, name in named.items() if total[name])
    seconds = total["seconds"]
    parts = [f"{seconds:.0f} s" if seconds < 10_000 else f"{seconds / 3600:.1f} h", *([f"{tokens} tokens"] if tokens else [])]
    if total["peak_rss_bytes"]:
        gpu = f", GPU {total['peak_gpu_bytes'] / GIB:.2f}" if total["peak_gpu_bytes"] else ""
        parts.append(f"{total['peak_rss_bytes'] / GIB:.2f} GiB{gpu}")
    return f"cost: {'; '.join(parts)}"


def short(number: float) -> str:
    """`960`, `871k`, `1.95M`, `12.3G`."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:.0f}{unit}"
    return f"{number / 1000:.0f}k" if number >= 1000 else f"{number:.0f}"


def cost_notes(cost: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of the table has to know."""
    rows: Sequence[Mapping[str, Any]] = cost["stages"]
    yield (
        "asked: tokens of all prompts, each for each of its replies; read: those that the model really read, shared beginnings "
        "once; trained: tokens of all examples over all epochs; tokens/s: written (or trained on) a second of generating (or "
        "training); peak: the larger of RAM of the whole process and memory on the GPU"
    )
    if num := sum(row["peak_of"] == "process" for row in rows):
        yield f"peak of {counted(num, 'stage')}: the highest of the process so far, this system sets no mark back"
    if num := cost["total"]["num_untold"]:
        yield f"{counted(num, 'stage')} asked an engine that does not tell what it read"
    if num := cost["total"]["lost_tokens"]:
        yield f"{counted(num, 'token')} more were charged by servers for answers that could not be read and were tried again"
    if num := cost["total"]["num_unknown"]:
        yield f"{counted(num, 'stage')} made by a version that did not write down what it cost"


def _rate(usage: Mapping[str, Any]) -> float | None:
    if usage["trained_tokens"] and usage["training_seconds"]:
        return float(usage["trained_tokens"] / usage["training_seconds"])
    if usage["generated_tokens"] and usage["engine_seconds"]:
        return float(usage["generated_tokens"] / usage["engine_seconds"])
    return None


def _whole(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _tenth(number: float | None) -> str:
    return "-" if number is None else f"{number:.1f}"
