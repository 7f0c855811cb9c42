"""The micro-world: words, operations over word lists, their right answers and the usual mistakes about them.

A task is a sentence such as `reverse this list : fox kiwi red saw`. Most operations have one *misconception*, a
plausible wrong procedure that many writers share; answers made with it are wrong in a systematic way, so the most
common answer to a question need not be the right one. That is what gives a judge something to add.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruits": tuple("apple banana cherry fig grape kiwi lemon mango melon peach pear plum".split()),
    "animals": tuple("bear cat dog fox goat horse lion mouse owl rabbit tiger wolf".split()),
    "colors": tuple("black blue brown gold gray green pink purple red silver white yellow".split()),
    "tools": tuple("axe brush chisel drill hammer knife ladder nail rope saw shovel wrench".split()),
}
WORDS: tuple[str, ...] = tuple(sorted(word for words in CATEGORIES.values() for word in words))
CATEGORY_OF: dict[str, str] = {word: name for name, words in CATEGORIES.items() for word in words}
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth", "fifth")
CONTENT: frozenset[str] = frozenset(WORDS) | frozenset(NUMBERS) | {"and"}
"""Every word that an answer can consist of; anything else in a response is chatter."""
TWO_STEP_SHARE = 0.2
MIN_LIST, MAX_LIST = 3, 5

Answer = tuple[str, ...]
Rule = Callable[[Answer, str], Answer]


@dataclass(frozen=True)
class Operation:
    """One operation. `slot` says what `{x}` in a phrasing stands for; `misconception` None: nobody gets it wrong
    in a systematic way."""

    name: str
    phrasings: tuple[str, ...]
    rule: Rule
    misconception: Rule | None
    slot: str = ""
    min_list: int = MIN_LIST


@dataclass(frozen=True)
class Step:
    """An operation with its slot filled and one of its phrasings chosen."""

    operation: Operation
    phrasing: int
    value: str = ""

    @property
    def text(self) -> str:
        """The phrase as it stands in a task."""
        return self.operation.phrasings[self.phrasing].replace("{x}", self.value)


@dataclass(frozen=True)
class Task:
    """One or two steps over a list of words."""

    steps: tuple[Step, ...]
    words: Answer

    @property
    def text(self) -> str:
        """The prompt."""
        return " then ".join(step.text for step in self.steps) + " : " + " ".join(self.words)

    @property
    def answer(self) -> Answer:
        """The right answer."""
        words = self.words
        for step in self.steps:
            words = step.operation.rule(words, step.value)
        return words

    @property
    def misconceived(self) -> Answer:
        """The usual wrong answer; the right one where no misconception exists. Two-step tasks: the second step is
        forgotten."""
        first = self.steps[0]
        if len(self.steps) > 1:
            return first.operation.rule(self.words, first.value)
        rule = first.operation.misconception or first.operation.rule
        return rule(self.words, first.value)


def _number(value: str) -> int:
    return NUMBERS.index(value)


def _position(value: str) -> int:
    return ORDINALS.index(value)


def _in_category(words: Answer, value: str) -> Answer:
    return tuple(word for word in words if CATEGORY_OF.get(word) == value)


def _not_in_category(words: Answer, value: str) -> Answer:
    return tuple(word for word in words if CATEGORY_OF.get(word) != value)


def _swap_ends(words: Answer, _: str) -> Answer:
    return (words[-1], *words[1:-1], words[0]) if len(words) > 1 else words


def _swap_first_two(words: Answer, _: str) -> Answer:
    return (words[1], words[0], *words[2:]) if len(words) > 1 else words


def _join(words: Answer, _: str) -> Answer:
    return tuple(" and ".join(words).split())


def _join_last(words: Answer, _: str) -> Answer:
    return (*words[:-1], "and", words[-1]) if len(words) > 1 else words


def _count(words: Answer, offset: int) -> Answer:
    return (NUMBERS[min(max(len(words) + offset, 0), len(NUMBERS) - 1)],)


def _nth(words: Answer, position: int) -> Answer:
    return (words[min(position, len(words) - 1)],) if words else ()


OPERATIONS: tuple[Operation, ...] = (
    Operation("copy", ("repeat these words", "copy this list", "say the words again"), lambda w, _: w, None),
    Operation(
        "reverse",
        ("reverse this list", "write these words backwards", "say the list from the end to the start"),
        lambda w, _: w[::-1],
        _swap_ends,
        min_list=4,
    ),
    Operation(
        "sort",
        ("sort these words", "put this list in alphabetical order", "order the words from a to z"),
        lambda w, _: tuple(sorted(w)),
        lambda w, _: (*sorted(w[:-1]), *w[-1:]),
    ),
    Operation(
        "first_n",
        ("give the first {x} words", "take the first {x} of this list", "what are the first {x} words"),
        lambda w, x: w[: _number(x)],
        lambda w, x: w[: _number(x) + 1],
        "number",
    ),
    Operation(
        "last_n",
        ("give the last {x} words", "take the last {x} of this list", "what are the last {x} words"),
        lambda w, x: w[len(w) - min(_number(x), len(w)) :],
        lambda w, x: w[: _number(x)],
        "number",
    ),
    Operation(
        "nth",
        ("what is the {x} word", "give only the {x} word", "name the {x} word of this list"),
        lambda w, x: _nth(w, _position(x)),
        lambda w, x: _nth(w, _position(x) + 1),
        "ordinal",
    ),
    Operation(
        "remove",
        ("remove {x} from this list", "leave out the word {x}", "write the list without {x}"),
        lambda w, x: tuple(word for word in w if word != x),
        lambda w, x: w[1:],
        "member",
    ),
    Operation(
        "keep",
        ("which of these words are {x}", "keep only the {x}", "list the {x} among these words"),
        _in_category,
        lambda w, x: _in_category(w, x)[:1],
        "present",
    ),
    Operation(
        "drop",
        ("which of these words are not {x}", "leave out all {x}", "drop the {x} from this list"),
        _not_in_category,
        lambda w, x: _not_in_category(w, x)[:1],
        "present",
    ),
    Operation(
        "swap_ends",
        ("swap the first and last words", "trade the ends of this list", "let the first and the last word change places"),
        _swap_ends,
        _swap_first_two,
    ),
    Operation(
        "double",
        ("write each word twice", "double every word", "say each of these words two times"),
        lambda w, _: tuple(word for word in w for _ in range(2)),
        lambda w, _: w + w,
    ),
    Operation(
        "append",
        ("add {x} to the end", "put {x} after the last word", "write {x} behind this list"),
        lambda w, x: (*w, x),
        lambda w, x: (x, *w),
        "other",
    ),
    Operation(
        "prepend",
        ("add {x} to the start", "put {x} before the first word", "write {x} in front of this list"),
        lambda w, x: (x, *w),
        lambda w, x: (x, *w[1:]),
        "other",
    ),
    Operation(
        "join",
        ("join these words with and", "put and between the words", "link the list by and"),
        _join,
        _join_last,
    ),
    Operation(
        "count",
        ("how many words are there", "count these words", "give the number of words in this list"),
        lambda w, _: _count(w, 0),
        lambda w, _: _count(w, -1),
    ),
)
_BY_NAME = {operation.name: operation for operation in OPERATIONS}
_FIRST_STEPS = tuple(_BY_NAME[name] for name in ("reverse", "sort", "remove", "drop", "swap_ends"))
_SECOND_STEPS = tuple(_BY_NAME[name] for name in ("first_n", "last_n", "append", "join", "count"))


def draw_task(rng: random.Random) -> Task:
    """A random task: one step, or two with probability `TWO_STEP_SHARE`."""
    if rng.random() < TWO_STEP_SHARE:
        first, second = rng.choice(_FIRST_STEPS), rng.choice(_SECOND_STEPS)
        words = _draw_words(rng, first)
        steps: tuple[Step, ...] = (_fill(rng, first, words), _fill(rng, second, words))
    else:
        operation = rng.choice(OPERATIONS)
        words = _draw_words(rng, operation)
        steps = (_fill(rng, operation, words),)
    return Task(steps, words)


def _draw_words(rng: random.Random, operation: Operation) -> Answer:
    size = rng.randint(operation.min_list, MAX_LIST)
    if operation.slot == "present":
        # At least two words of the category and one other, so that the misconception shows.
        category = rng.choice(list(CATEGORIES))
        others = [word for word in WORDS if CATEGORY_OF[word] != category]
        inside = rng.randint(1, size - 1) if size > 2 else 1
        words = rng.sample(CATEGORIES[category], inside) + rng.sample(others, size - inside)
        rng.shuffle(words)
        return tuple(words)
    return tuple(rng.sample(WORDS, size))


def _fill(rng: random.Random, operation: Operation, words: Answer) -> Step:
    values: Sequence[str] = ("",)
    if operation.slot == "number":
        values = NUMBERS[1:3]
    elif operation.slot == "ordinal":
        values = ORDINALS[: len(words) - 1]
    elif operation.slot == "member":
        values = words[1:]
    elif operation.slot == "present":
        values = sorted({CATEGORY_OF[word] for word in words})
    elif operation.slot == "other":
        values = [word for word in WORDS if word not in words]
    return Step(operation, rng.randrange(len(operation.phrasings)), rng.choice(values))


_SLOTS = {
    "": (),
    "number": NUMBERS[1:],
    "ordinal": ORDINALS,
    "member": WORDS,
    "present": tuple(CATEGORIES),
    "other": WORDS,
}


@cache
def _phrase_table() -> dict[str, Step]:
    """Every phrase of the world -> its step."""
    table: dict[str, Step] = {}
    for operation in OPERATIONS:
        for index in range(len(operation.phrasings)):
            for value in _SLOTS[operation.slot] or ("",):
                step = Step(operation, index, value)
                table[step.text] = step
    return table


def parse_task(text: str) -> Task | None:
    """The task that a prompt states, or None when it is not a sentence of the world."""
    head, colon, tail = text.strip().rpartition(" : ")
    words = tuple(tail.split())
    if not colon or not words or any(word not in CATEGORY_OF for word in words):
        return None
    steps = tuple(_phrase_table().get(phrase) for phrase in re.split(r" then ", head.strip()))
    found = tuple(step for step in steps if step is not None)
    if len(found) != len(steps) or len(found) > 2:
        return None
    return Task(found, words)
