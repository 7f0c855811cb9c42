"""The oracle: the exact score of a response, 0 to 5. It measures and labels seed data; it never feeds training.

| score | response |
|---|---|
| 5 | the right words in the right order and nothing else |
| 4 | the same, with chatter around them |
| 3 | all the right words, in another order or with further words |
| 2 | at least half of the right words |
| 1 | at least one right word |
| 0 | none |

Words count as often as they occur. Chatter is any word that no answer can hold (`world.CONTENT`).
"""

from collections import Counter

from selfreward.lab.world import CONTENT, Answer, parse_task

MAX_SCORE = 5


def score_answer(expected: Answer, response: str) -> int:
    """Score of `response` when `expected` is the right answer."""
    given = tuple(response.split())
    content = tuple(word for word in given if word in CONTENT)
    if given == expected:
        return 5
    if content == expected:
        return 4
    wanted = Counter(expected)
    num_found = (wanted & Counter(content)).total()
    if num_found == len(expected):
        return 3
    if num_found == 0:
        return 0
    return 2 if 2 * num_found >= len(expected) else 1


def score(prompt: str, response: str) -> float | None:
    """Score of `response` to `prompt`; None when the prompt is not a task of the world (nothing is right then)."""
    task = parse_task(prompt)
    if task is None or not task.answer:
        return None
    return float(score_answer(task.answer, response))
