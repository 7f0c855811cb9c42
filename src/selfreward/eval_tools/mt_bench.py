"""MT-Bench from a model on: both turns of every question by any engine, then grades by any judge.

OUT/model_answer/NAME.jsonl             the answers, as FastChat writes them
OUT/model_judgment/JUDGE_single.jsonl   a judge's grades of all models graded there
OUT/answers/..., OUT/grades/...         the work, stage by stage, which goes on where it was stopped
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from selfreward.artifacts import Run, Stage, derive_seed, fingerprint, read_json, read_rows, to_plain
from selfreward.config import Config, parse_config
from selfreward.engines import open_engine
from selfreward.engines.base import Engine
from selfreward.errors import UsageError
from selfreward.eval_tools.answering import ask, is_answered
from selfreward.eval_tools.options import BenchOptions
from selfreward.eval_tools.sides import model_label
from selfreward.eval_tools.small import check_names, do_stage, folder_run, without_training
from selfreward.eval_tools.unread import nothing_read
from selfreward.evals.judging import RankedResponse, judge_responses
from selfreward.evals.mt_bench import (
    OTHER_TEMPERATURE,
    REFERENCED,
    TEMPERATURES,
    Question,
    Turn,
    category_table,
    grade_rows,
    graded_items,
    merged_grades,
    read_answers,
    read_questions,
    turns_of,
    write_answers,
    write_lines,
)
from selfreward.judging import judge_messages, judge_settings
from selfreward.preflight import check_judge, check_writer
from selfreward.progress import Progress
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import Player, frozen_player
from selfreward.stages.judge import describe
from selfreward.types import Counts, Drop, Judgement, Message, Request, Sampling

RUBRIC = "mt_bench"
DEFAULTS = ("judge.temperature=0", "eval.num_votes=1", "judge.num_votes=1", "judge.max_tokens=1024")
"""As FastChat grades: one greedy judgement a turn."""


@dataclass
class _Work:
    """What both steps need."""

    options: BenchOptions
    run: Run
    name: str
    questions: list[Question]
    player: Player | None
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The name as a stage's key takes it."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "model"


def run_mt_bench(options: BenchOptions, config: Config, progress: Progress) -> dict[str, Any]:
    """Answer, grade, write FastChat's files; returns the table as plain values.

    Raises UsageError and ConfigError for what cannot work together, DataError for files that cannot be used, ModelError and
    EngineError as engines do.
    """
    if options.judge is None and (options.references or options.rubric):
        raise UsageError("--references and --rubric are for grading: name a --judge")
    if options.temperature is not None and not 0 <= options.temperature < math.inf:  # NaN is neither
        raise UsageError(f"--temperature {options.temperature} must be a number of at least 0")
    config = _settings(options, without_training(config))
    questions = read_questions(options.questions, options.limit)
    rubric = _rubric(options, config)
    references = read_answers(options.references)[1] if options.references else {}
    name, player, given = _model(options, config)
    with folder_run(options.out, config, progress) as run:
        work = _Work(options, run, name, questions, player, given)
        turns, dropped = _answers(work)
        path = options.out / "model_answer" / f"{_file_name(name)}.jsonl"
        write_answers(path, name, questions, turns)
        summary: dict[str, Any] = {
            "model": name,
            "questions": len(questions),
            "answers": str(path),
            "answered_turns": len(turns),
            "dropped": dropped,
            "truncated": sum(turn.finish_reason == "length" for turn in turns),
            "judge": None,
            "problem": None,
        }
        if rubric is not None:
            summary |= _grade(work, rubric, turns, references)
    plain: dict[str, Any] = json.loads(json.dumps(summary, default=to_plain))
    return plain


def _settings(options: BenchOptions, config: Config) -> Config:
    if options.judge is None:
        return config
    check_names(config, {"--judge": options.judge})
    tree = config.model_dump(mode="json")
    tree["judge"] |= {"model": options.judge, "rubric": options.rubric or RUBRIC}
    return parse_config(tree, origin="settings")


def _rubric(options: BenchOptions, config: Config) -> Rubric | None:
    """The rubric and judge, checked; None without a judge."""
    if options.judge is None:
        return None
    rubric = load_rubric(options.rubric or RUBRIC, "pointwise", "--rubric")
    check_judge(config, "--judge", options.judge, rubric)
    return rubric


def _model(options: BenchOptions, config: Config) -> tuple[str, Player | None, Mapping[str, tuple[str, ...]]]:
    """Name and player, or name and the answers that are there."""
    if Path(options.model).is_file():
        name, answers = read_answers(Path(options.model))
        return options.name or name, None, answers
    check_names(config, {"--model": options.model})
    check_writer(config, "--model", options.model)
    return options.name or model_label(options.model, config), frozen_player(options.model, config), {}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _answers(work: _Work) -> tuple[list[Turn], dict[str, int]]:
    """Every turn that has an answer, and how many have none, by reason."""
    if work.player is None:
        turns = turns_of(work.questions, work.given)
        wanted = sum(len(question.turns) for question in work.questions)
        return turns, {"not_in_the_file": wanted - len(turns)} if wanted > len(turns) else {}
    config = work.run.config
    sections = {
        "player": work.player.section,
        "name": work.name,
        "sample": {"max_tokens": config.sample.max_tokens, "top_p": config.sample.top_p},
        "temperature": work.options.temperature,
        "data": fingerprint(work.questions),
    }
    made = do_stage(work.run, f"answers/{work.place}", sections, work.player.inputs, partial(_answer_all, work))
    return read_rows(made.path / "turns.parquet", Turn), dict(read_json(made.path / "record.json")["counts"]["dropped"])


def _answer_all(work: _Work, stage: Stage) -> Counts:
    assert work.player is not None, "asked for with a player only"
    stage.roles = {"policy": work.player.label}
    size = stage.config.engine.chunk_size
    with open_engine(work.player.model, stage.config) as engine:
        first = stage.chunks("first", work.questions, size, partial(_turns, work, stage, engine, {}), Turn)
        known = {turn.question: turn.text for turn in first if is_answered(turn)}
        asked = [question for question in work.questions if len(question.turns) == 2 and question.id in known]
        second = stage.chunks("second", asked, size, partial(_turns, work, stage, engine, known), Turn)
    lost = [question for question in work.questions if len(question.turns) == 2 and question.id not in known]
    place = {question.id: number for number, question in enumerate(work.questions)}
    turns = sorted([*first, *second], key=lambda turn: place[turn.question])
    kept = [turn for turn in turns if is_answered(turn)]
    drops = [Drop(f"{turn.question}/{turn.turn}", str(turn.finish_reason)) for turn in turns if not is_answered(turn)]
    drops += [Drop(f"{question.id}/2", "no_first_answer") for question in lost]
    stage.write_rows("turns", kept, Turn)
    stage.reject(drops)
    return Counts(len(turns) + len(lost), len(kept), Counter(drop.reason for drop in drops))


def _turns(work: _Work, stage: Stage, engine: Engine, known: Mapping[str, str], questions: Sequence[Question]) -> list[Turn]:
    """One turn of these questions: the second where the first answers are known."""
    place = 2 if known else 1
    sample = stage.config.sample
    requests = []
    for question in questions:
        messages = [Message("user", question.turns[0])]
        if place == 2:
            messages += [Message("assistant", known[question.id]), Message("user", question.turns[1])]
        temperature = work.options.temperature
        if temperature is None:
            temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
        sampling = Sampling(sample.max_tokens, temperature, sample.top_p)
        requests.append(Request(f"{question.id}/{place}", tuple(messages), sampling, stage.seed("turn", question.id, place)))
    return [
        Turn(question.id, place, answer.text, answer.num_tokens, answer.finish_reason)
        for question, answer in zip(questions, ask(stage, engine, requests), strict=True)
    ]


def _grade(work: _Work, rubric: Rubric, turns: Sequence[Turn], references: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Judge every turn, write the grades, and build the table."""
    config, judge = work.run.config, work.options.judge or ""
    player = frozen_player(judge, config)
    items = graded_items(work.questions, turns, references)
    sections = {
        "judge": judge_settings(config.judge),
        "num_votes": config.eval.num_votes,
        "rubric": rubric.content_hash,
        "player": player.section,
        "data": fingerprint(items),
    }
    place = f"grades/{work.place}-{fingerprint([player.section, rubric.content_hash])[:8]}"
    made = do_stage(work.run, place, sections, player.inputs, partial(_judge, player, rubric, items))
    graded = read_rows(made.path / "votes.parquet", Judgement)
    label = model_label(judge, config)
    path = work.options.out / "model_judgment" / f"{_file_name(label)}_single.jsonl"
    asked = {item.id: judge_messages(rubric, item.prompt, item.text)[0].content for item in items}
    rows = grade_rows(work.name, (label, rubric.name), work.questions, asked, graded)
    write_lines(path, merged_grades(path, work.name, rows))
    needed = [question for question in work.questions if question.category in REFERENCED]
    votes, told = [vote for item in graded for vote in item.votes], describe(graded)
    failed = votes and all(item.score is None for item in graded)
    seed = partial(derive_seed, config.random_seed, "mt-bench")
    return {
        "judge": label,
        "rubric": rubric.name,
        "rubric_hash": rubric.content_hash,
        "scale": list(rubric.scale),
        "judgments": str(path),
        "votes": told,
        "references": {"needed": len(needed), "given": sum(question.id in references for question in needed)},
        "categories": category_table(work.questions, graded, seed, config.eval.bootstrap_samples),
        "problem": nothing_read(f"{label} gave no grade", rubric, told["failures"], votes) if failed else None,
    }


def _judge(player: Player, rubric: Rubric, items: Sequence[RankedResponse], stage: Stage) -> Counts:
    stage.roles = {"judge": player.label}
    with open_engine(player.model, stage.config) as engine:
        graded = judge_responses(stage, engine, rubric, items)
    drops = [Drop(item.completion_id, "too_few_votes") for item in graded if item.score is None]
    stage.write_rows("votes", graded, Judgement)
    stage.notes |= describe(graded)
    stage.reject(drops)
    return Counts(len(graded), len(graded) - len(drops), Counter(drop.reason for drop in drops))
