"""MT-Bench: two-turn questions, answers and single-answer grades in FastChat's file formats, and a table by category. Pure.

Questions, answers and references are JSON lines as FastChat has them: {"question_id", "category", "turns"} and {"question_id",
"answer_id", "model_id", "choices": [{"index", "turns"}], "tstamp"}; grades are {"question_id", "model", "judge", "user_prompt",
"judgment", "score", "turn", "tstamp"}. FastChat writes the score -1 for a grade that it cannot read, and leaves such rows out
of its means; so do these files, with the reason beside it (`failure`). Here a failure is missing data and never a number.
Time stamps are 0 and ids are hashes of what they stand for, so that the same answers give the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfreward.artifacts import write_bytes
from selfreward.errors import DataError
from selfreward.evals.judging import RankedResponse
from selfreward.rubrics.fencing import defuse
from selfreward.sources.places import file_rows
from selfreward.sources.rows import BadRow, Row
from selfreward.statistics import Units, bootstrap_mean
from selfreward.texts import shown
from selfreward.types import Estimate, Judgement

TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
"""FastChat's sampling temperature of each category."""
OTHER_TEMPERATURE = 0.7
REFERENCED = frozenset({"math", "reasoning", "coding"})
"""Categories that FastChat grades with reference answers."""
TAGS = ("first_answer", "first_question", "question", "reference")
"""What parts of an instruction stand between; no text in it can open or close them."""
UNREADABLE = -1


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one or two turns."""

    id: str
    number: int | str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A model's answer to one turn (1 or 2) of a question."""

    question: str
    turn: int
    text: str
    num_tokens: int | None = None
    finish_reason: str | None = None


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file. Raises DataError naming file, line and field."""
    found = []
    for row in _rows(path):
        number, turns = _number(row), _turns(row, row.get("turns"), "turns")
        if len(turns) > 2:
            raise row.fail("turns", f"must hold one or two turns, got {len(turns)}")
        found.append(Question(str(number), number, row.string("category"), turns))
    if len({question.id for question in found}) < len(found):
        raise DataError(f"{path} has a question_id twice; ids must differ")
    if not found:
        raise DataError(f"{path} holds no question")
    return found[:limit]


def read_answers(path: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """A file of FastChat's answers (or references): the model's name and question -> its turns. The first choice counts.

    Raises DataError naming file, line and field, and for a file of several models.
    """
    answers: dict[str, tuple[str, ...]] = {}
    names = set()
    for row in _rows(path):
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise row.fail("choices", f"must be a list of {{index, turns}}, got {shown(choices)}")
        names.add(row.string("model_id"))
        answers[str(_number(row))] = _turns(row, choices[0].get("turns"), "choices[0].turns")
    if len(names) > 1:
        raise DataError(f"{path} holds answers of several models ({', '.join(sorted(names))}); give a file a model")
    if not answers:
        raise DataError(f"{path} holds no answer")
    return names.pop(), answers


def turns_of(questions: Sequence[Question], answers: Mapping[str, tuple[str, ...]]) -> list[Turn]:
    """Answers that are there, as turns, in the order of the questions."""
    return [
        Turn(question.id, place, text)
        for question in questions
        for place, text in enumerate(answers.get(question.id, ())[: len(question.turns)], 1)
    ]


def write_answers(path: Path, name: str, questions: Sequence[Question], turns: Sequence[Turn]) -> None:
    """FastChat's answers. A question that lacks a turn is left out: FastChat has no form for half an answer."""
    by_place = {(turn.question, turn.turn): turn.text for turn in turns}
    rows = []
    for question in questions:
        texts = [by_place.get((question.id, place)) for place in range(1, len(question.turns) + 1)]
        if None not in texts:
            row = {"question_id": question.number, "answer_id": _digest(name, question.id, *map(str, texts)), "model_id": name}
            rows.append({**row, "choices": [{"index": 0, "turns": texts}], "tstamp": 0.0})
    write_lines(path, rows)


def graded_items(
    questions: Sequence[Question], turns: Sequence[Turn], references: Mapping[str, tuple[str, ...]]
) -> list[RankedResponse]:
    """What a judge is asked about each turn, ids `<question>/<turn>`; see the rubric `mt_bench` for the tags."""
    by_place = {(turn.question, turn.turn): turn.text for turn in turns}
    items = []
    for question in questions:
        known = references.get(question.id, ()) if question.category in REFERENCED else ()
        for place, asked in enumerate(question.turns, 1):
            text = by_place.get((question.id, place))
            if text is None:
                continue
            parts = [("first_question", question.turns[0]), ("first_answer", by_place[question.id, 1])] if place == 2 else []
            parts.append(("question", asked))
            parts += [("reference", known[place - 1])] if len(known) >= place else []
            instruction = "\n".join(f"<{tag}>\n{defuse(value, TAGS)}\n</{tag}>" for tag, value in parts)
            items.append(RankedResponse(f"{question.id}/{place}", instruction, defuse(text, TAGS)))
    return items


def grade_rows(
    name: str, judge: tuple[str, str], questions: Sequence[Question], asked: Mapping[str, str], graded: Sequence[Judgement]
) -> list[dict[str, Any]]:
    """FastChat's grades, a row a vote; `asked` maps an item to the text that the judge was given."""
    numbers = {question.id: question.number for question in questions}
    rows = []
    for item in graded:
        question, _, turn = item.completion_id.rpartition("/")
        for vote in item.votes:
            rows.append(
                {
                    "question_id": numbers[question],
                    "model": name,
                    "judge": list(judge),
                    "user_prompt": asked[item.completion_id],
                    "judgment": vote.text,
                    "score": UNREADABLE if vote.score is None else vote.score,
                    "turn": int(turn),
                    "tstamp": 0.0,
                    "failure": vote.failure,
                }
            )
    return rows


def merged_grades(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The grades of a file, with those of the model `name` replaced by these: one file holds a judge's grades of all models."""
    others = [row.value for row in _rows(path) if row.value.get("model") != name] if path.is_file() else []
    return sorted([*others, *rows], key=lambda row: str(row.get("model")))


def category_table(
    questions: Sequence[Question], graded: Sequence[Judgement], seed: Callable[[str], int], samples: int
) -> list[dict[str, Any]]:
    """A row a category in the order of the questions, then `all`: score of each turn and of both, with intervals.

    A question is the unit: both its turns are drawn together. A turn without a score is missing.
    """
    scores = {item.completion_id: item.score for item in graded}
    names = list(dict.fromkeys(question.category for question in questions))
    rows = []
    for category in [*names, "all"]:
        chosen = [question for question in questions if category in (question.category, "all")]
        row: dict[str, Any] = {"category": category, "questions": len(chosen)}
        for label, places in (("first", (1,)), ("second", (2,)), ("both", (1, 2))):
            row[label] = _mean(chosen, scores, places, seed(f"{category}/{label}"), samples)
        row["missing"] = sum(
            scores.get(f"{question.id}/{place}") is None for question in chosen for place in range(1, len(question.turns) + 1)
        )
        rows.append(row)
    return rows


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def _mean(
    questions: Sequence[Question], scores: Mapping[str, float | None], places: Sequence[int], seed: int, samples: int
) -> Estimate:
    units: dict[str, tuple[float, float]] = {}
    for question in questions:
        values = [value for place in places if (value := scores.get(f"{question.id}/{place}")) is not None]
        if values:
            units[question.id] = (sum(values) / len(values), float(len(values)))
    given: Units = units
    return bootstrap_mean(given, seed, samples)


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(f"{path} is no file here")
    for row in file_rows(path, lambda value: "question_id" in value)():
        if isinstance(row, BadRow):
            raise row.error
        yield row


def _number(row: Row) -> int | str:
    number = row.get("question_id")
    if not isinstance(number, int | str) or isinstance(number, bool):
        raise row.fail("question_id", f"must be a whole number or a text, got {shown(number)}")
    return number


def _turns(row: Row, value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise row.fail(key, f"must be a list of texts, got {shown(value)}")
    return tuple(value)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", errors="surrogatepass")).hexdigest()[:22]
