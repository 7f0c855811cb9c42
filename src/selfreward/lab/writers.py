"""Writers of the micro-world: who answers tasks and who reviews answers, well or badly.

Forum writers share the misconceptions, slip at random and chat. Reviewers write the answer that they expect, walk
through the response word by word, and end with a score; some of them hold the misconception too.
"""

import random
from collections import Counter
from dataclasses import dataclass

from selfreward.lab.oracle import score_answer
from selfreward.lab.world import CONTENT, NUMBERS, WORDS, Answer, Task

OPENINGS = ("sure , here you go :", "the answer is", "i think it is", "well , that would be")
CLOSINGS = (", hope this helps !", ", have a nice day !", ", let me know if you need more !")
BODY = "task : {task} answer : {response}"


@dataclass(frozen=True)
class Habits:
    """How a group of writers errs: shares of misconceived answers, of random slips, and of chatter."""

    misconceived: float
    slips: float
    chatter: float


FORUM = Habits(misconceived=0.6, slips=0.12, chatter=0.25)
"""Threads of the raw corpus."""
DEMONSTRATORS = Habits(misconceived=0.75, slips=0.08, chatter=0.25)
"""The human IFT answers: more careful than the forum, and more often misled. They are the human bottleneck."""
REVIEWED = Habits(misconceived=0.4, slips=0.25, chatter=0.3)
"""Responses that reviewers were given: a wider mix, so that every score occurs."""


def write_response(rng: random.Random, task: Task, habits: Habits) -> str:
    """One response to a task by a writer with these habits."""
    words = task.misconceived if rng.random() < habits.misconceived else task.answer
    if rng.random() < habits.slips:
        words = slip(rng, words)
    return chat_around(rng, words) if rng.random() < habits.chatter else " ".join(words)


def chat_around(rng: random.Random, words: Answer) -> str:
    """The words with an opening, a closing or both."""
    kind = rng.randrange(3)
    opening = rng.choice(OPENINGS) if kind != 1 else ""
    closing = rng.choice(CLOSINGS) if kind != 0 else ""
    return " ".join(f"{opening} {' '.join(words)} {closing}".split())


def slip(rng: random.Random, words: Answer) -> Answer:
    """One or two random mistakes: a word lost, added, replaced, or two exchanged; or something unrelated."""
    if rng.random() < 0.15:
        return tuple(rng.sample(WORDS, rng.randint(1, 4)))
    items = list(words)
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(4)
        place = rng.randrange(len(items)) if items else 0
        if kind == 0 and len(items) > 1:
            del items[place]
        elif kind == 1 and items:
            items[place] = rng.choice(NUMBERS[1:7]) if items[place] in NUMBERS else rng.choice(WORDS)
        elif kind == 2 and len(items) > 1:
            other = rng.randrange(len(items))
            items[place], items[other] = items[other], items[place]
        else:
            items.insert(place, rng.choice(WORDS))
    return tuple(items)


def write_review(response: str, reference: Answer) -> str:
    """The review of a response by someone who holds `reference` for the right answer.

    Form: `expected E ... . check R same|moved|extra ... . missing M ... . chatter none|some . Score : k`.
    `same`: at its place; `moved`: expected elsewhere; `extra`: not expected (any more).
    """
    given = response.split()
    content = tuple(word for word in given if word in CONTENT)
    left = Counter(reference)
    marks = []
    for place, word in enumerate(content):
        if left[word] <= 0:
            mark = "extra"
        else:
            mark = "same" if place < len(reference) and reference[place] == word else "moved"
            left[word] -= 1
        marks.append(f"{word} {mark}")
    missing = " ".join(sorted(left.elements(), key=reference.index)) or "none"
    chatter = "some" if len(given) > len(content) else "none"
    parts = (
        f"expected {' '.join(reference)}",
        f"check {' '.join(marks) or 'none'}",
        f"missing {missing}",
        f"chatter {chatter}",
        f"Score : {score_answer(reference, response)}",
    )
    return " . ".join(parts)
