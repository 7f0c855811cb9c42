"""The raw corpus of M0 and the fixed seed and held-out data of the micro-world, all derived from numbers.

Documents of the corpus:
threads (chat format, forum quality), reviews (rubric or not, task, response, review; or asked for in a chat), lessons
(right answers), worksheets (lists of tasks, which is what self-instruct prompts look like), word lists (categories, alphabet).
No held-out prompt occurs in any document.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from selfreward.lab.oracle import score_answer
from selfreward.lab.world import CATEGORIES, WORDS, Task, draw_task
from selfreward.lab.writers import FORUM, REVIEWED, chat_around, slip, write_response, write_review

WORLD_SEED = 20401
NUM_HELDOUT = {"dev": (400, 200), "test": (1000, 400)}
"""Held-out prompts and ranked sets."""
NUM_IFT = 400
NUM_EFT_PROMPTS = 400
RESPONSES_PER_SET = 3
MISCONCEIVED_RATERS = 0.15
"""The same among the writers of the EFT seed data, before their scores are checked against the human order."""
RUBRIC = "give one point each : some right words , half of them , all of them , right order and nothing more , no chatter . "


@dataclass(frozen=True)
class Mixture:
    """What a corpus consists of: shares of documents by kind, of reviewers who expect the misconceived answer, and of
    reviews that quote the rubric (it must have been seen, but it costs tokens)."""

    kinds: Mapping[str, float]
    misconceived_reviewers: float
    rubric_share: float


BROAD = Mixture({"thread": 0.26, "review": 0.33, "lesson": 0.31, "worksheet": 0.04, "words": 0.06}, 0.25, 0.5)
"""For learning the world."""
REVIEWS = Mixture({"thread": 0.12, "review": 0.55, "lesson": 0.28, "worksheet": 0.02, "words": 0.03}, 0.15, 0.4)
"""With more and better reviews: telling right from wrong takes longer to learn than answering."""
CHAT_REVIEWS = Mixture(
    {"thread": 0.12, "review": 0.2, "chat_review": 0.35, "lesson": 0.28, "worksheet": 0.02, "words": 0.03}, 0.15, 0.4
)
"""With reviews as replies too: a judge answers in a chat, and there M0 knows the forum's misled answers best."""


@dataclass(frozen=True)
class Heldout:
    """Tasks to answer, and some of them with responses to rank."""

    prompts: tuple[Task, ...]
    ranked: tuple[tuple[Task, tuple[str, ...]], ...]


@cache
def heldout(split: str) -> Heldout:
    """The `dev` or `test` held-out set; the two share no prompt."""
    seen: set[str] = set() if split == "dev" else heldout_texts("dev")
    rng = random.Random(f"{WORLD_SEED}-heldout-{split}")
    num_prompts, num_ranked = NUM_HELDOUT[split]
    prompts = tuple(_fresh_task(rng, seen) for _ in range(num_prompts))
    # The ranked sets are about the first of the same prompts: one list to keep out of every training text.
    ranked = tuple(draw_ranked(rng, task) for task in prompts[:num_ranked])
    return Heldout(prompts, ranked)


def heldout_texts(split: str) -> set[str]:
    """The prompts of a held-out set."""
    return {task.text for task in heldout(split).prompts}


@cache
def all_heldout_texts() -> frozenset[str]:
    """Every prompt that no training data may hold."""
    return frozenset(heldout_texts("dev") | heldout_texts("test"))


def _fresh_task(rng: random.Random, seen: set[str]) -> Task:
    """A task whose prompt is not in `seen`; adds it there."""
    while True:
        task = draw_task(rng)
        if task.text not in seen:
            seen.add(task.text)
            return task


def training_task(rng: random.Random) -> Task:
    """A task that is not held out."""
    while True:
        task = draw_task(rng)
        if task.text not in all_heldout_texts():
            return task


def draw_ranked(rng: random.Random, task: Task) -> tuple[Task, tuple[str, ...]]:
    """A task with `RESPONSES_PER_SET` distinct responses of at least two different qualities."""
    while True:
        responses = tuple(write_response(rng, task, REVIEWED) for _ in range(RESPONSES_PER_SET))
        if len(set(responses)) == RESPONSES_PER_SET and len({score_answer(task.answer, text) for text in responses}) > 1:
            return task, responses
        if rng.random() < 0.2:
            # Some tasks have no misconception: a flawed or chatty answer gives the set its second quality.
            answers = [" ".join(task.answer), chat_around(rng, task.answer), " ".join(slip(rng, task.answer))]
            rng.shuffle(answers)
            scores = {score_answer(task.answer, text) for text in answers}
            if len(set(answers)) == RESPONSES_PER_SET and len(scores) > 1:
                return task, tuple(answers)


def documents(seed: int, mixture: Mixture = BROAD) -> Iterator[str]:
    """An endless stream of raw documents, words separated by blanks, without begin and end tokens."""
    rng = random.Random(f"{WORLD_SEED}-corpus-{seed}")
    kinds, weights = list(mixture.kinds), list(mixture.kinds.values())
    while True:
        yield _WRITE[rng.choices(kinds, weights)[0]](rng, mixture)


def _thread(rng: random.Random, _: Mixture) -> str:
    task = training_task(rng)
    return f"<|user|> {task.text} <|assistant|> {write_response(rng, task, FORUM)}"


def _review(rng: random.Random, mixture: Mixture) -> str:
    task, response, review = _reviewed(rng, mixture)
    rubric = RUBRIC if rng.random() < mixture.rubric_share else ""
    return f"{rubric}task : {task.text} answer : {response} review : {review}"


def _chat_review(rng: random.Random, mixture: Mixture) -> str:
    # Without the rubric: how a judge is asked stays for EFT to teach.
    task, response, review = _reviewed(rng, mixture)
    return f"<|user|> review : task : {task.text} answer : {response} <|assistant|> {review}"


def _reviewed(rng: random.Random, mixture: Mixture) -> tuple[Task, str, str]:
    task = training_task(rng)
    response = write_response(rng, task, REVIEWED)
    reference = task.misconceived if rng.random() < mixture.misconceived_reviewers else task.answer
    return task, response, write_review(response, reference or task.answer)


def _lesson(rng: random.Random, _: Mixture) -> str:
    task = training_task(rng)
    return f"lesson : {task.text} solution : {' '.join(task.answer)}"


def _worksheet(rng: random.Random, _: Mixture) -> str:
    return " ### ".join(f"task : {training_task(rng).text}" for _ in range(rng.randint(6, 10)))


def _words(rng: random.Random, _: Mixture) -> str:
    if rng.random() < 0.5:
        return "alphabet : " + " ".join(sorted(rng.sample(WORDS, rng.randint(6, 12))))
    name = rng.choice(list(CATEGORIES))
    return f"{name} : " + " ".join(rng.sample(CATEGORIES[name], 8))


_WRITE = {
    "thread": _thread,
    "review": _review,
    "chat_review": _chat_review,
    "lesson": _lesson,
    "worksheet": _worksheet,
    "words": _words,
}
