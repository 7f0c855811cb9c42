"""`selfreward eval RUN` on screen: one row a model, then the same figures with their intervals."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfreward.report.paper import paper_rows
from selfreward.report.task_rows import render_tax
from selfreward.texts import counted

Json = Mapping[str, Any]
_Write = Callable[[float], str]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _score(value: float) -> str:
    return f"{value:.2f}"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


COLUMNS: Mapping[str, tuple[str, str, _Write]] = {
    "strength": ("BT", "BT strength, SFT = 0", _signed),
    "judge_pairwise": ("pair\n%", "judge: pairs right %", _percent),
    "judge_five_best": ("5bst\n%", "judge: 5-best %", _percent),
    "judge_exact_match": ("ord.\n%", "judge: order right %", _percent),
    "judge_spearman": ("rho", "judge: Spearman rho", _ratio),
    "judge_kendall": ("tau", "judge: Kendall tau-b", _ratio),
    "judge_mean": ("own", "judge: mean score", _score),
    "judge_tied": ("tied\n%", "judge: pairs tied %", _percent),
    "mean_length": ("len", "length, characters", _count),
    "distinct_2": ("dis2", "distinct-2", _ratio),
    "overlap": ("ovl", "overlap (ROUGE-L)", _ratio),
    "oracle_mean": ("orac", "oracle, 0-5", _score),
}
"""Figure -> short heading, name, how it is written."""
CONTESTS = {"against_previous": ("prev\nw/l%", "previous"), "against_sft": ("SFT\nw/l%", "SFT")}


def render_run(document: Json, width: int = 80) -> str:
    """The table of all models, the intervals, who judged, and the rules."""
    models = document["models"]
    parts = [f"{document['name']}: {counted(len(models), 'model')}", _table(models, width), _intervals(models, width)]
    judge = document["judge"]
    if judge["name"] is None:
        parts.append(f"No win rates and no strengths: {judge['why_not']}.")
    else:
        by = f" by {judge['rubric']}, both orders" if judge["rubric"] else ""
        counts = [pair["counts"] for pair in document["pairs"].values()]
        unread, all_of_them = (sum(count[key] for count in counts) for key in ("no_verdict", "contests"))
        missing = f" {unread:,} of {all_of_them:,} comparisons have no readable verdict and count nowhere." if unread else ""
        parts.append(f"All pairs of models were compared by {judge['name']}{by}.{missing}")
        parts += [text for key in ("no_strengths", "unbounded", "position") if (text := judge[key])]
    if document["tax"]:
        parts.append(render_tax(document["tax"]))
    if document["stale"]:
        parts.append(f"Left out, of models that were replaced since: {', '.join(document['stale'])}.")
    if document["is_real"] and (rows := paper_rows(models)):
        parts.append(_paper(rows, width))
    parts.append(f"Ties of the judge. {document['rules']['ties']}")
    text = "\n\n".join(part if "\n" in part else textwrap.fill(part, width) for part in parts)
    return f"{text}\n\nreport: {document['report']}"


def _table(models: Sequence[Json], width: int) -> str:
    """Figures that at least one model has; a `-` where it has none."""
    contests = [key for key in CONTESTS if any(model[key] for model in models)]
    figures = [figure for figure in COLUMNS if any(_value(model[figure]) is not None for model in models)]
    has_tasks = any(model["tasks"] for model in models)
    headings = ["\nmodel", *(CONTESTS[key][0] for key in contests), *(COLUMNS[figure][0] for figure in figures)]
    rows = []
    for model in models:
        cells = [model["model"], *(_contest(model[key]) for key in contests)]
        cells += [_cell(model[figure], COLUMNS[figure][2]) for figure in figures]
        values = [result["value"] for result in model["tasks"].values()]
        rows.append([*cells, *([_percent(sum(values) / len(values)) if values else "-"] if has_tasks else [])])
    return _grid([*headings, *(["task\n%"] if has_tasks else [])], rows, width)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Right-aligned columns one blank apart, under headings of up to two lines."""
    lines = [heading.split("\n") if "\n" in heading else ["", heading] for heading in headings]
    first, *others = [[*lines[place], *(row[place] for row in rows)] for place in range(len(headings))]
    wide = max(map(len, first))
    return _blocks([f"{cell:>{wide}}" for cell in first], others, " ", width)


def _blocks(labels: Sequence[str], columns: Sequence[Sequence[str]], gap: str, width: int) -> str:
    """Right-aligned columns beside their labels; what is wider than `width` goes on in a further block with the same labels."""
    blocks: list[list[str]] = []
    for column in columns:
        wide = max(map(len, column))
        cells = [f"{cell:>{wide}}" for cell in column]
        if not blocks or len(blocks[-1][0]) + len(gap) + wide > width:
            blocks.append(list(labels))
        blocks[-1] = [f"{line}{gap}{cell}" for line, cell in zip(blocks[-1], cells, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def _intervals(models: Sequence[Json], width: int) -> str:
    """Figures down, models across, each with half of its 95 % interval; n is the last model's."""
    lines = [["± half 95 % interval", *(model["model"] for model in models), f"n, {models[-1]['model']}"]]
    for key, (_, name) in CONTESTS.items():
        for figure, word in (("win_rate", "beats"), ("lose_rate", "loses to")):
            found = [model[key][figure] if model[key] else None for model in models]
            lines.append([f"{word} {name} %", *(_with_half(one, _percent) for one in found), _n(found)])
    for figure, (_, name, write) in COLUMNS.items():
        found = [model[figure] for model in models]
        lines.append([name, *(_with_half(one, write) for one in found), _n(found)])
    for task in dict.fromkeys(task for model in models for task in model["tasks"]):
        found = [model["tasks"].get(task) for model in models]
        lines.append([f"task {task} %"[:40], *(_with_half(one, _percent) for one in found), _n(found)])
    kept = [lines[0], *(line for line in lines[1:] if any(cell != "-" for cell in line[1:-1]))]
    first, *others = [[line[place] for line in kept] for place in range(len(kept[0]))]
    wide = max(map(len, first))
    return _blocks([f"{cell:<{wide}}" for cell in first], others, "  ", width)


def _paper(rows: Sequence[Json], width: int) -> str:
    """Ours beside the paper's, a line a figure."""
    lines = ["Judging, ours and the paper's (Llama 2 70B; its tie rule is not reported):"]
    for row in rows:
        cells = [f"{cell['model']} {cell['ours']} {cell['interval']} / {cell['paper']}" for cell in row["cells"]]
        text = f"{row['label']}: {'; '.join(' '.join(cell.split()) for cell in cells)}"
        lines.append(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def _value(figure: Json | None) -> float | None:
    return None if figure is None else figure["value"]


def _cell(figure: Json | None, write: _Write) -> str:
    value = _value(figure)
    return "-" if value is None else write(value)


def _contest(contest: Json | None) -> str:
    if contest is None or contest["win_rate"]["value"] is None:
        return "-"
    return "/".join(f"{100 * contest[figure]['value']:.0f}" for figure in ("win_rate", "lose_rate"))


def _with_half(figure: Json | None, write: _Write) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    text = write(figure["value"])
    return text if figure["low"] is None else f"{text} ±{write((figure['high'] - figure['low']) / 2).lstrip('+')}"


def _n(figures: Sequence[Json | None]) -> str:
    last = figures[-1]
    return "-" if last is None or last["value"] is None or last["n"] is None else f"{last['n']:,}"
