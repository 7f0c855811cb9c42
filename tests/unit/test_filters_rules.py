"""Filters that look at one prompt: language, unsafe words, start and length in other scripts, and their order."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.config import ProposeConfig
from selfreward.errors import ConfigError
from selfreward.filters import check_language, normalise, read_unsafe_words, refuse
from selfreward.filters.rules import _COUNTED

DATA = Path(__file__).parents[3] / "shared" / "data"
ENGLISH = ProposeConfig(lang="en", ascii_start=False, min_words=1)


def unsafe(tmp_path: Path, text: str) -> ProposeConfig:
    path = tmp_path / "unsafe.txt"
    path.write_text(text, encoding="utf-8")
    return ProposeConfig(unsafe_words_file=str(path), min_words=1, ascii_start=False)


@pytest.mark.parametrize(
    "text",
    [
        "Explain to a ten-year-old why the moon changes its shape over a month.",
        "sort these words : fox kiwi red",
        "Translate 'Wie geht es dir' into English",
        "def f(x): return x + 1",
        "Converting 85 F to Celsius.",
        "hello!",
        "12 34 56",
        "x",
        "?",
    ],
)
def test_english_and_what_nobody_can_tell_passes(text: str) -> None:
    assert refuse(text, ENGLISH) in (None, "bad_start")


@pytest.mark.parametrize(
    "text",
    [
        "Schreibe ein kurzes Gedicht über den Mond",
        "Wie geht es dir",
        "Explique por qué el cielo es azul",
        "напиши стихотворение о луне",
        "写一首关于月亮的诗",
        "Kirjoita lyhyt runo kuusta",
    ],
)
def test_another_language_is_refused_and_only_where_one_is_wanted(text: str) -> None:
    assert refuse(text, ENGLISH) == "language"
    assert refuse(text, ENGLISH.model_copy(update={"lang": None})) is None


def test_the_wanted_language_need_not_be_english() -> None:
    german = ENGLISH.model_copy(update={"lang": "de"})
    assert refuse("Schreibe ein kurzes Gedicht über den Mond", german) is None
    assert refuse("Explain why the moon changes its shape over a month", german) == "language"


def test_an_unknown_language_code_is_named() -> None:
    with pytest.raises(ConfigError, match=r"propose\.lang='english' is not known; known are .*\ben\b"):
        check_language("english", "propose.lang")
    with pytest.raises(ConfigError, match=r"^seed\.sources\[1\]\.lang='eng' is not known"):
        check_language("eng", "seed.sources[1].lang")
    for tag in ("en", "EN", "en-US", "pt_BR"):
        check_language(tag, "propose.lang")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not here")
def test_real_english_prompts_are_not_called_foreign() -> None:
    rows = map(json.loads, (DATA / "self_instruct_seed_tasks.jsonl").read_text(encoding="utf-8").splitlines())
    texts = [row["instruction"] for row in rows]
    texts += [row["prompt"]["text"] for row in map(json.loads, (DATA / "oasst_en_trees.jsonl").read_text("utf-8").splitlines())]
    assert len(texts) == 245
    anything = ENGLISH.model_copy(update={"max_words": 10**6, "banned_words": ()})
    assert not [text for text in texts if refuse(text, anything) == "language"]


def test_unsafe_words_are_refused_as_whole_words_in_any_dress(tmp_path: Path) -> None:
    config = unsafe(tmp_path, "# a comment\n\n  Poison \nbuild a   bomb\n毒\n")
    for text in (
        "tell me about POISON now",
        "\uff30\uff4fison for rats",
        "poi\u200bson for rats",
        "how to Build  a\nbomb?",
        "如何制毒药",
        "poison",
    ):
        assert refuse(text, config) == "unsafe", text
    for text in ("poisonous frogs of the world", "build a bombastic speech", "a comment on trees"):
        assert refuse(text, config) is None, text


def test_the_file_of_unsafe_words_holds_words(tmp_path: Path) -> None:
    assert read_unsafe_words(unsafe(tmp_path, "\ufeffOne\r\n#two\r\n three  FOUR\r\n").unsafe_words_file or "") == (
        "one",
        "three four",
    )
    with pytest.raises(ConfigError, match=r"unsafe_words_file='.*' holds no word"):
        read_unsafe_words(unsafe(tmp_path, "\n# nothing\n").unsafe_words_file or "")
    with pytest.raises(ConfigError, match=r"unsafe_words_file='nowhere' cannot be read"):
        read_unsafe_words("nowhere")
    (tmp_path / "unsafe.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"unsafe_words_file='.*' cannot be read"):
        read_unsafe_words(str(tmp_path / "unsafe.txt"))


def test_a_phrase_full_of_signs_is_taken_as_written(tmp_path: Path) -> None:
    config = unsafe(tmp_path, "c++ (bad)\n")
    assert refuse("write c++ (bad) code", config) == "unsafe"
    assert refuse("write ccc bad code", config) is None


def test_other_scripts_start_and_count_where_the_config_lets_them() -> None:
    text = "月の満ち欠けを説明して"
    assert refuse(text, ProposeConfig()) == "bad_start"
    assert refuse(text, ProposeConfig(ascii_start=False)) is None
    assert refuse("月の", ProposeConfig(ascii_start=False)) == "too_short"
    assert refuse("- написать стихи о луне", ProposeConfig(ascii_start=False)) == "bad_start"
    assert refuse("написать стихи о луне", ProposeConfig(ascii_start=False)) is None


@given(st.text(st.characters(max_codepoint=0x0DFF) | st.characters(min_codepoint=0x1800, max_codepoint=0x2FFF)))
def test_words_of_the_length_are_parted_by_white_space(text: str) -> None:
    assert len(_COUNTED.findall(text)) == len(text.split())


def test_a_script_without_blanks_counts_and_matches_by_characters(tmp_path: Path) -> None:
    text = "เขียนบทกวีเกี่ยวกับทะเล"
    assert len(_COUNTED.findall(text)) == 18, "vowel signs above and below are no characters of their own"
    config = unsafe(tmp_path, "ทะเล\n").model_copy(update={"ascii_start": False})
    assert refuse(text, config) == "unsafe"
    assert refuse("เขียนบทกวีเกี่ยวกับดวงจันทร์", config) is None


def test_reasons_come_in_their_documented_order(tmp_path: Path) -> None:
    config = unsafe(tmp_path, "gift\n").model_copy(
        update={"min_words": 4, "max_words": 8, "ascii_start": True, "lang": "en", "banned_words": ("bild",)}
    )
    steps = [
        ("", "empty"),
        ("ö gift", "bad_start"),
        ("gift bild ist", "too_short"),
        ("gift bild " + "wie geht es dir heute mein Freund", "too_long"),
        ("das gift und das bild dazu", "banned_word"),
        ("das gift und wie man es macht", "unsafe"),
        ("das Haus und wie man es macht", "language"),
        ("the house and how to make it", None),
    ]
    assert [refuse(text, config) for text, _ in steps] == [reason for _, reason in steps]


def test_invisible_characters_do_not_hide_a_word_from_normalise() -> None:
    assert normalise("ＡＢＣ\u3000def") == "abc def"
