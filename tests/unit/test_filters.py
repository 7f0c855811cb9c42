"""Proposal filters: each rule at its edge, ROUGE-L against a plain dynamic programme."""

import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward.config import ProposeConfig
from selfreward.filters import RougePool, normalise, refuse, rouge_l, words_of

CONFIG = ProposeConfig()
WORDS = st.lists(st.sampled_from(["red", "fox", "runs", "to", "the", "42", "house"]), max_size=12)


def plain_rouge_l(a: list[str], b: list[str]) -> float:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    if not common:
        return 0.0
    precision, recall = common / len(b), common / len(a)
    return 2 * precision * recall / (precision + recall)


@given(WORDS, WORDS)
@settings(max_examples=200, deadline=None)
def test_rouge_l_equals_the_plain_definition(a: list[str], b: list[str]) -> None:
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(plain_rouge_l(a, b), abs=1e-9)


def test_words_are_lower_case_letters_and_digits() -> None:
    assert words_of("Don't stop_it, 3 TIMES!") == ["don", "t", "stop", "it", "3", "times"]
    assert words_of("Où est le café?") == ["où", "est", "le", "café"]
    assert words_of("写一首诗 now") == ["写", "一", "首", "诗", "now"]
    assert words_of("मुझे हिन्दी में एक कविता लिखो") == ["मुझे", "हिन्दी", "में", "एक", "कविता", "लिखो"]
    assert words_of("บทกวี") == ["บ", "ท", "ก", "วี"]
    assert words_of("ﬁve １２ か\u3099") == ["five", "12", "が"]
    assert words_of("1\ufe0f\u20e3, \u0301 x_y") == ["1", "x", "y"], "pictures and marks on nothing"


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("éäßõ\u0301\u0308कषिेी्กวีกั각が")))
def test_how_unicode_writes_a_text_does_not_change_its_words(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words_of(unicodedata.normalize(form, text)) == words_of(text)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_runs_of_letters_and_digits(text: str) -> None:
    assert words_of(text) == re.findall("[a-z0-9]+", text.lower())


def test_other_forms_of_a_prompt_are_near_copies() -> None:
    text = "Résumé à l'été où naît l'âme"
    assert rouge_l(text, unicodedata.normalize("NFD", text)) == 1.0
    pair = ("मुझे हिन्दी में एक कविता लिखो", "मुझे हिन्दी में एक कहानी लिखो")
    assert rouge_l(*pair) == pytest.approx(5 / 6)


def test_rouge_l_has_no_words_no_likeness() -> None:
    assert rouge_l("???", "!!!") == 0.0
    assert rouge_l("", "one two") == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("- write a short poem", "bad_start"),
        ("'Write a short poem'", "bad_start"),
        ("écris un poème court", "bad_start"),
        ("write a poem", "too_short"),
        ("write a short poem", None),
        ("word " * 150, None),
        ("word " * 151, "too_long"),
        ("Draw a cat for me", "banned_word"),
        ("then GO  to the shop", "banned_word"),
        ("describe this image.", "too_short"),
        ("please describe this image.", "banned_word"),
        ("imagine a mapped profile here", None),
        ("list nine goto statements now", None),
    ],
)
def test_each_rule(text: str, reason: str | None) -> None:
    assert refuse(text, CONFIG) == reason


def test_no_banned_words_bans_nothing() -> None:
    assert refuse("draw a map of a picture", CONFIG.model_copy(update={"banned_words": ()})) is None


def test_rouge_limit_itself_is_allowed() -> None:
    base = "a b c d e f g h i j"
    at_limit = "a b c d e f g x y z"  # LCS 7 of 10 and 10: F1 is exactly 0.7
    assert rouge_l(base, at_limit) == 0.7
    assert RougePool([base]).admit([at_limit], 0.7) == [True]
    assert RougePool([base]).admit(["a b c d e f g h y z"], 0.7) == [False]


def test_admitted_texts_join_the_pool() -> None:
    pool = RougePool(["sort these four words now"])
    first = "write about the sea and wind"
    assert pool.admit([first, "Write about the SEA and wind!", "count to ten very slowly"], 0.7) == [True, False, True]
    assert len(pool) == 3
    assert pool.admit(["count to ten very slowly"], 0.7) == [False]


def test_admit_does_not_depend_on_how_texts_are_batched() -> None:
    texts = [f"{verb} the {noun} in the {place}" for verb in ("paint", "sell") for noun in ("car", "tree") for place in "xyz"]
    whole, single = RougePool(), RougePool()
    assert whole.admit(texts, 0.7) == [single.admit([text], 0.7)[0] for text in texts]


@given(st.lists(WORDS, max_size=8), st.lists(WORDS, max_size=40), st.sampled_from([0.05, 0.5, 0.7, 2 / 3, 0.8, 1.0]))
@settings(max_examples=200, deadline=None)
def test_overlapping_is_closest_above_the_limit(pool: list[list[str]], texts: list[list[str]], limit: float) -> None:
    kept = RougePool(" ".join(words) for words in pool)
    asked = [" ".join(words) for words in texts]
    assert kept.overlapping(asked, limit) == [bool(score > limit) for score in kept.closest(asked)]


def test_normalise_sees_through_case_blanks_and_width() -> None:
    assert normalise("  Write\n a\tPOEM ") == normalise("write a poem") == normalise("\uff37rite a poem")
    assert normalise("write a poem") != normalise("write a poem!")


def test_vocabulary_larger_than_the_surrogate_range_keeps_words_apart() -> None:
    pool = RougePool([" ".join(f"w{i}" for i in range(0xD7F0 + 40))])
    assert pool.closest([f"w{0xD7F0 + 39} zzz"])[0] > 0
    assert pool.closest(["other words entirely"])[0] == 0


def test_a_large_pool_is_fast() -> None:
    pool = RougePool(f"write {i} words about {i * 7} and {i * 13} then list {i % 9} more" for i in range(3000))
    started = time.perf_counter()
    pool.closest([f"tell me {i} stories of {i * 3} people and places" for i in range(512)])
    assert time.perf_counter() - started < 5
