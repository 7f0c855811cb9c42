"""What stands on the report page, as plain values and charts; the template only lays it out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfreward.artifacts import RunDir, read_json
from selfreward.config import Config, PanelMember
from selfreward.report.charts import model_charts, round_score_charts, score_charts, training_charts
from selfreward.report.cost import HEADINGS, cost_cells, cost_notes
from selfreward.report.evaluated import done_stages
from selfreward.report.evaluations import evaluation_parts
from selfreward.report.examples import last_round, pick_examples
from selfreward.report.names import FAILURES, NAMES, interval, number, with_half
from selfreward.report.reading import (
    Json,
    estimate,
    finished_models,
    ran_round,
    read_config,
    read_record,
    stage_folders,
)
from selfreward.report.summary import ORACLE_ROUND_FIGURES
from selfreward.texts import counted

GROUPS = {
    "Answers": ("oracle_mean", "oracle_exact", "greedy_oracle_mean", "greedy_oracle_exact"),
    "Judge, against human ranks": (
        "judge_pairwise", "judge_pairwise_strict", "judge_tied", "judge_scored", "judge_exact_match", "judge_five_best",
        "judge_spearman", "judge_kendall",
    ),
    "Scores given to the held-out ranked responses": ("judge_mean", "parse_failure_rate"),
    "Head-to-head with the model before": ("win_rate", "tie_rate_head_to_head", "lose_rate", "first_position"),
    "Text": ("mean_length", "mean_tokens", "truncated_rate", "distinct_1", "distinct_2"),
}  # fmt: skip
ROUND_ROWS = ("round_judge_mean", "pair_yield", "tie_rate", "round_parse_failure_rate", *ORACLE_ROUND_FIGURES)
TILES = {
    "oracle_mean": "Answers",
    "greedy_oracle_mean": "Greedy answers",
    "judge_pairwise": "Judge",
    "mean_length": "Length",
}
_MORE_IS_BETTER = frozenset({*GROUPS["Answers"], *GROUPS["Judge, against human ranks"]}) - {"judge_tied"}


def build_page(run_dir: RunDir, summary: Json) -> dict[str, Any]:
    """Everything that the template names; `summary` is the run's, as `build_summary` gives it.

    Raises CorruptArtifactError when a finished stage cannot be read.
    """
    config = read_config(run_dir)
    models = summary["models"]
    evaluated = finished_models(run_dir, config.num_rounds)
    document = read_json(run_dir.evals(evaluated[-1]) / "evals.json") if evaluated else None
    low, high = document["judge"]["scale"] if document else (0, 5)
    scale = (float(low), float(high))
    example_round = last_round(run_dir, config)
    return {
        "summary": summary,
        "reason": re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), summary["verdict"]["reason"]),
        "facts": list(_facts(run_dir, config, summary)),
        "tiles": list(_tiles(summary)),
        "figures": _figure_groups(summary),
        **evaluation_parts(run_dir, config, models),
        "model_charts": model_charts(models),
        "score_charts": score_charts(models, scale),
        "round_score_charts": round_score_charts(models, scale),
        "round_rows": list(_round_rows(models)),
        "round_models": [model["model"] for model in models if ran_round(model)],
        "failures": list(_failures(models)),
        "training_charts": training_charts(_histories(run_dir, config)),
        "example_round": example_round,
        "examples": pick_examples(run_dir, config, example_round) if example_round else [],
        "score_top": scale[1],
        "lineage": list(_lineage(run_dir, config)),
        "stages": list(_stages(run_dir, config)),
        "cost_headings": HEADINGS,
        "cost_rows": list(_cost_rows(summary["cost"])),
        "cost_notes": list(cost_notes(summary["cost"])),
        "settings": list(_settings(config)),
        "environment": _environment(run_dir),
        "rules": document["rules"] if document else {},
    }


def _facts(run_dir: RunDir, config: Config, summary: Json) -> Iterator[tuple[str, str]]:
    start = read_record(run_dir.seed)
    if start:
        yield "started", start["started"].replace("T", " ").removesuffix("+00:00") + " UTC"
    base = read_record(run_dir.m0)
    yield "base model", str(base["roles"].get("base", config.model.path)) if base else config.model.path
    yield "rounds", f"{config.num_rounds}, {config.mode}, {config.dpo.method}"
    judges = config.judge.members
    num_votes = sum(judge.num_votes for judge in judges)
    prompts, votes = counted(config.propose.num_prompts, "prompt"), counted(num_votes, "vote")
    yield "each round", f"{prompts} x {counted(config.sample.num_candidates, 'candidate')} x {votes}"
    models = ["the policy itself" if judge.model == "policy" else judge.model for judge in judges]
    yield "judge", models[0] if len(judges) == 1 else " + ".join(map(_seat, models, judges))
    yield "random seed", str(config.random_seed)
    yield "time", duration(summary["seconds"])
    yield "tokens", f"{summary['tokens']['prompt']:,} asked, {summary['tokens']['generated']:,} written"


def _seat(model: str, member: PanelMember) -> str:
    return f"{model} by {member.rubric} (weight {member.weight:g})"


def _tiles(summary: Json) -> Iterator[dict[str, str]]:
    """The main figures: M1, last model, change with its interval."""
    if not summary["difference_of"]:
        return
    rows = {model["model"]: model for model in summary["models"]}
    last, first = summary["difference_of"]
    for figure, title in TILES.items():
        change = summary["differences"].get(figure)
        if change and change["value"] is not None:
            yield {
                "title": title,
                "meaning": NAMES[figure].meaning,
                "before": number(figure, rows[first][figure]["value"]),
                "after": number(figure, rows[last][figure]["value"]),
                "change": number(figure, change["value"], sign=True),
                "interval": interval(figure, change, sign=True),
                "unit": "points" if NAMES[figure].unit == "share" else "",
                "tone": _tone(figure, change),
                "names": f"{first} to {last}",
                "n": str(change["n"]),
            }


def _tone(figure: str, change: Mapping[str, Any]) -> str:
    if figure not in _MORE_IS_BETTER or change["low"] is None:
        return "plain"
    return "good" if change["low"] > 0 else "bad" if change["high"] < 0 else "plain"


def _figure_groups(summary: Json) -> list[dict[str, Any]]:
    """The big table: figures down, models across, then the change; rows without any value are left out."""
    models = summary["models"]
    groups = []
    for title, figures in GROUPS.items():
        rows = [_figure_row(figure, models, summary["differences"].get(figure)) for figure in figures]
        rows = [row for row in rows if any(cell["text"] != "-" for cell in row["cells"])]
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _figure_row(figure: str, models: Sequence[Json], change: Mapping[str, Any] | None) -> dict[str, Any]:
    known = [one for model in models if (one := estimate(model[figure]))]
    return {
        "label": NAMES[figure].label,
        "meaning": NAMES[figure].meaning,
        "cells": [_cell(figure, model[figure]) for model in models],
        "change": number(figure, change["value"], sign=True) if change and change["value"] is not None else "",
        "interval": interval(figure, change, sign=True),
        "tone": _tone(figure, change) if change else "plain",
        "n": known[-1].n if known else 0,
    }


def _cell(figure: str, value: Mapping[str, Any] | None) -> dict[str, str]:
    text, half = with_half(figure, value)
    tip = f"{NAMES[figure].label}: {text} {interval(figure, value)}, n={value['n']}" if value and half else ""
    return {"text": text, "half": half, "tip": tip}


def _round_rows(models: Sequence[Json]) -> Iterator[dict[str, Any]]:
    ran = [model for model in models if ran_round(model)]
    for figure in ROUND_ROWS:
        cells = [_cell(figure, model[figure]) for model in ran]
        if any(cell["text"] != "-" for cell in cells):
            yield {"label": NAMES[figure].label, "meaning": NAMES[figure].meaning, "cells": cells}


def _failures(models: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Judge votes without a score, by reason: in the rounds and on the held-out ranked sets."""
    for reason, name in FAILURES.items():
        if any(reason in m["parse_failures"] or reason in (m["round_parse_failures"] or {}) for m in models):
            yield {
                "reason": name,
                "rounds": [m["round_parse_failures"].get(reason, 0) if ran_round(m) else "-" for m in models],
                "heldout": [m["parse_failures"].get(reason, 0) for m in models],
            }


def _histories(run_dir: RunDir, config: Config) -> dict[str, list[Json]]:
    """Training log of every finished model."""
    names = ["sft", "m1", *(f"m{t + 1}" for t in range(1, config.num_rounds + 1))]
    return {
        name.upper(): read_json(run_dir.model_stage(name) / "history.json")
        for name in names
        if read_record(run_dir.model_stage(name)) is not None
    }


def _lineage(run_dir: RunDir, config: Config) -> Iterator[dict[str, str]]:
    """How each model was made: start, data, roles, fingerprint."""
    for name in ("sft", "m1", *(f"m{t + 1}" for t in range(1, config.num_rounds + 1))):
        record = read_record(run_dir.model_stage(name))
        if record is None:
            continue
        notes, roles = record["notes"], dict(record["roles"])
        if name not in ("sft", "m1"):
            t = int(name.removeprefix("m")) - 1
            for folder in (run_dir.prompts(t), run_dir.judgements(t)):
                roles = {**((read_record(folder) or {}).get("roles") or {}), **roles}
        parts = [counted(notes[key], what) for key, what in _DATA.items() if notes.get(key)]
        yield {
            "model": name.upper(),
            "start": str(roles.get("start", roles.get("policy", ""))).upper(),
            "data": ", ".join(parts) or counted(record["counts"]["out"], "example"),
            "method": "SFT" if name in ("sft", "m1") else str(notes.get("method", config.dpo.method)),
            "reference": str(roles.get("reference", "-")).upper(),
            "judge": _role(roles.get("judge")),
            "proposer": _role(roles.get("proposer")),
            "trained": "passed on unchanged" if notes.get("trained") is False else _steps(notes),
            "fingerprint": record["fingerprint"],
        }


_DATA = {
    "num_ift": "IFT pair",
    "num_eft": "EFT target",
    "num_answer_pairs": "answer pair",
    "num_judgement_pairs": "judgement pair",
}


def _role(value: Any) -> str:
    text = str(value or "-")
    return text.upper() if text.removeprefix("m").isdigit() or text == "sft" else text


def _steps(notes: Mapping[str, Any]) -> str:
    if not {"num_steps", "first_loss", "final_loss"} <= notes.keys():
        return "-"
    return f"{counted(notes['num_steps'], 'step')}, loss {notes['first_loss']:.3f} to {notes['final_loss']:.3f}"


def _stages(run_dir: RunDir, config: Config) -> Iterator[dict[str, Any]]:
    """Every stage with its counts, drops by reason, cost and fingerprint; then what `selfreward eval` added."""
    for key, folder in [*stage_folders(run_dir, config), *done_stages(run_dir).items()]:
        record = read_record(folder)
        if record is None:
            yield {"key": key, "done": False}
            continue
        dropped = sorted(record["counts"]["dropped"].items(), key=lambda item: -item[1])
        tokens = sum(record["tokens"].values())
        yield {
            "key": key,
            "done": True,
            "in": f"{record['counts']['in']:,}",
            "out": f"{record['counts']['out']:,}",
            "dropped": [f"{reason} {count:,}" for reason, count in dropped],
            "seconds": duration(record["seconds"]),
            "tokens": f"{tokens:,}" if tokens else "-",
            "fingerprint": record["fingerprint"],
        }


def _cost_rows(cost: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row a finished stage, and the total."""
    for row in cost["stages"]:
        yield [row["stage"], *cost_cells(row)]
    if cost["stages"]:
        yield ["all", *cost_cells(cost["total"])]


def _settings(config: Config) -> Iterator[dict[str, Any]]:
    """Every setting, flat, with a mark where it differs from the default."""
    given, default = (dict(_flat(tree.model_dump(mode="json"))) for tree in (config, Config(name="default")))
    for key, value in given.items():
        changed = key != "name" and (key not in default or value != default[key])
        yield {"key": key, "value": str(value), "changed": changed}


def _flat(tree: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty section has none."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _environment(run_dir: RunDir) -> list[tuple[str, str]]:
    """environment.json, flat."""
    if not run_dir.environment.is_file():
        return []
    flat = []
    for key, value in read_json(run_dir.environment).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat += [(f"{key} {name}".strip(), str(item)) for name, item in inner]
    return flat


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
