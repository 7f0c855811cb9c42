"""The fast ROUGE-L filter gives the verdicts of comparing every text with every other one, to the last text."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward.errors import DataError
from selfreward.filters import RougePool, rouge, words_of
from selfreward.filters._signatures import SignatureTable, fewest_shared, over, signatures

LIMITS = (0.0, 0.3, 0.5, 0.7, 0.7000000000000001, 0.85, 0.999, 1.0)
TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=12).map(" ".join)


def plain_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for left in a:
        previous = 0
        for j, right in enumerate(b):
            above = row[j + 1]
            row[j + 1] = previous + 1 if left == right else max(above, row[j])
            previous = above
    return row[-1]


def plain_exceeds(text: str, pool: Sequence[str], limit: float) -> bool:
    words = words_of(text)
    pairs = ((plain_lcs(words, other), len(words) + len(other)) for other in map(words_of, pool))
    return any(common and 2 * common / total > limit for common, total in pairs)


def plain_admit(texts: Sequence[str], limit: float, pool: Sequence[str] = ()) -> list[bool]:
    kept, verdicts = list(pool), []
    for text in texts:
        verdicts.append(not plain_exceeds(text, kept, limit))
        kept += [text] if verdicts[-1] else []
    return verdicts


class PlainPool:
    """The same by dynamic programming over the whole pool at a time: a row of the table for all of its texts."""

    def __init__(self, num_texts: int, longest: int) -> None:
        self.words = np.full((num_texts, longest), -1)
        self.lengths = np.zeros(num_texts, dtype=int)
        self.size = 0
        self.numbers: dict[str, int] = {}

    def admit(self, text: str, limit: float) -> bool:
        words = [self.numbers.setdefault(word, len(self.numbers)) for word in words_of(text)]
        pool = self.words[: self.size]
        row = np.zeros((self.size, pool.shape[1] + 1), dtype=int)
        for word in words:
            equal = pool == word
            new = np.zeros_like(row)
            for j in range(pool.shape[1]):
                new[:, j + 1] = np.where(equal[:, j], row[:, j] + 1, np.maximum(row[:, j + 1], new[:, j]))
            row = new
        scores = 2 * row[:, -1] / np.maximum(self.lengths[: self.size] + len(words), 1)
        if (scores > limit).any():
            return False
        self.words[self.size, : len(words)] = words
        self.lengths[self.size] = len(words)
        self.size += 1
        return True


def adversarial_texts(number: int, seed: int) -> list[str]:
    """Repeated words, equal lengths, other scripts, empty and one-word texts, and copies with every degree of change."""
    rng = random.Random(seed)
    common = [f"w{i}" for i in range(400)]
    weights = [1 / (i + 1) for i in range(len(common))]

    def make(kind: int) -> str:
        if kind == 0:
            return " ".join(rng.choices("abcd", k=rng.randint(0, 14)))
        if kind == 1:
            return " ".join(rng.choices(common, k=10))
        if kind == 2:
            return "".join(rng.choices("写一首诗关于月亮山水风花雪", k=rng.randint(0, 12)))
        if kind == 3:
            return rng.choice(["", "?!", "one", "ONE", "two", "Où", "one one one", *common[:40]])
        if kind == 4:
            return " ".join([rng.choice(common)] * rng.randint(1, 14))
        return " ".join(rng.choices(common, weights=weights, k=rng.randint(1, 14)))

    texts: list[str] = []
    for _ in range(number):
        if texts and rng.random() < 0.4:
            words = words_of(rng.choice(texts))
            for _ in range(rng.randint(0, 5)):
                place = rng.randint(0, len(words))
                words[place : place + rng.randint(0, 1)] = rng.choices(common, k=rng.randint(0, 1))
            texts.append(" ".join(words[:14]))
        else:
            texts.append(make(rng.randrange(6)))
    return texts


@given(TEXTS, TEXTS)
def test_the_plain_pool_is_the_plain_definition(a: str, b: str) -> None:
    for limit in (0.5, 0.7):
        pool = PlainPool(2, 12)
        assert [pool.admit(a, limit), pool.admit(b, limit)] == plain_admit([a, b], limit)


@pytest.mark.parametrize("max_recent", [3, rouge.MAX_RECENT])
def test_2000_random_texts_get_the_verdicts_of_comparing_them_all(max_recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "MAX_RECENT", max_recent)
    texts = adversarial_texts(2000, seed=1)
    plain = PlainPool(len(texts), 14)
    wanted = [plain.admit(text, 0.7) for text in texts]
    pool = RougePool()
    assert pool.admit(texts, 0.7) == wanted
    assert 800 < sum(wanted) < 1500, "both verdicts are common"
    assert len(pool) == sum(wanted)
    assert len(pool._table) > 500, "the signatures decided most of them"


@given(st.lists(TEXTS, max_size=25), st.lists(TEXTS, max_size=25), st.sampled_from(LIMITS), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_admit_equals_comparing_with_every_text(known: list[str], texts: list[str], limit: float, max_recent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rouge, "MAX_RECENT", max_recent)
        patch.setattr(rouge, "_BLOCK", 7)
        assert RougePool(known).overlapping(texts, limit) == [plain_exceeds(text, known, limit) for text in texts]
        assert RougePool(known).admit(texts, limit) == plain_admit(texts, limit, known)
        closest = RougePool(known).closest(texts)
        assert [bool(score > limit) for score in closest] == RougePool(known).overlapping(texts, limit)


@given(st.lists(st.lists(st.integers(0, 60), max_size=40), min_size=1, max_size=12), st.sampled_from(LIMITS))
@settings(max_examples=150, deadline=None)
def test_no_text_above_the_limit_is_ruled_out(numbers: list[list[int]], limit: float) -> None:
    texts = ["".join(map(chr, text)) for text in numbers]
    table = SignatureTable()
    table.extend(texts[: len(texts) // 2])
    table.extend(texts[len(texts) // 2 :])
    fewest = fewest_shared(80, limit)
    for text, signature in zip(texts, signatures(texts).T, strict=True):
        found = set(table.candidates(len(text), signature, fewest)[0].tolist())
        above = {
            place
            for place, other in enumerate(texts)
            if (common := plain_lcs(text, other)) and 2 * common / (len(text) + len(other)) > limit
        }
        assert above <= found


@given(st.integers(0, 5000), st.floats(0, 1))
def test_fewest_shared_is_the_first_number_over_the_limit(total: int, limit: float) -> None:
    shared = int(fewest_shared(total, limit)[total])
    assert over(np.array(shared), np.array(total), limit)
    assert shared == 1 or not over(np.array(shared - 1), np.array(total), limit)


def test_the_limit_itself_is_not_above_it_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "MAX_RECENT", 0)
    for length, shared in ((10, 7), (20, 14), (40, 28), (150, 105)):  # F1 is shared / length = 0.7
        base = [f"w{i}" for i in range(length)]
        others = [f"x{i}" for i in range(length)]
        pool = RougePool([" ".join(base)])
        at, above = (" ".join(base[:number] + others[number:]) for number in (shared, shared + 1))
        assert pool.overlapping([at, above], 0.7) == [False, True]


def test_words_count_as_often_as_they_stand_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "MAX_RECENT", 0)
    pool = RougePool(["la " * 10])
    assert pool.overlapping(["la", "la " * 5, "la " * 6, "la " * 18, "la " * 19], 0.7) == [False, False, True, True, False]


def test_order_of_words_matters_and_not_only_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "MAX_RECENT", 0)
    words = "sort these nine words by the length they have".split()
    pool = RougePool([" ".join(words)])
    assert pool.overlapping([" ".join(reversed(words)), " ".join(words)], 0.7) == [False, True]


def test_another_limit_can_be_asked_of_the_same_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "MAX_RECENT", 0)
    pool = RougePool(["a b c d e f g h i j"])
    text = ["a b c d e f x y z w"]
    assert [pool.overlapping(text, limit)[0] for limit in (0.7, 0.5, 0.6, 0.59, 1.0)] == [False, True, False, True, False]


def test_texts_of_thousands_of_words_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "MAX_RECENT", 0)
    base = [f"w{i}" for i in range(5000)]
    pool = RougePool([" ".join(base), "a short text of words"])
    changed = base[:3600] + [f"x{i}" for i in range(1400)]
    assert pool.overlapping([" ".join(changed), " ".join(changed[1000:]), "a short text of words"], 0.7) == [True, False, True]


def test_more_different_words_than_characters_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rouge, "_MAX_WORDS", 3)
    pool = RougePool(["one two", "two three"])
    with pytest.raises(DataError, match=r"more than 3 different words; use a smaller pool \(seed\.num_ift"):
        pool.add("four")
