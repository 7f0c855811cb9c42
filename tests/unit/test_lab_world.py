"""The micro-world: right answers, misconceptions, parsing, oracle, reviews, and that nothing held out leaks."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.lab import corpus
from selfreward.lab.oracle import score, score_answer
from selfreward.lab.seed_files import write_seed_files
from selfreward.lab.world import CONTENT, OPERATIONS, WORDS, draw_task, parse_task
from selfreward.lab.writers import FORUM, REVIEWED, chat_around, slip, write_response, write_review

ANSWERS = [
    ("repeat these words : fox kiwi red", "fox kiwi red", "fox kiwi red"),
    ("reverse this list : fox kiwi red saw", "saw red kiwi fox", "saw kiwi red fox"),
    ("sort these words : saw red fox", "fox red saw", "red saw fox"),
    ("give the first two words : fox kiwi red saw", "fox kiwi", "fox kiwi red"),
    ("what are the last two words : fox kiwi red saw", "red saw", "fox kiwi"),
    ("what is the second word : fox kiwi red", "kiwi", "red"),
    ("write the list without red : fox kiwi red", "fox kiwi", "kiwi red"),
    ("which of these words are fruits : fox kiwi red fig", "kiwi fig", "kiwi"),
    ("which of these words are not fruits : fox kiwi red fig", "fox red", "fox"),
    ("trade the ends of this list : fox kiwi red", "red kiwi fox", "kiwi fox red"),
    ("write each word twice : fox kiwi red", "fox fox kiwi kiwi red red", "fox kiwi red fox kiwi red"),
    ("add saw to the end : fox kiwi red", "fox kiwi red saw", "saw fox kiwi red"),
    ("add saw to the start : fox kiwi red", "saw fox kiwi red", "saw kiwi red"),
    ("link the list by and : fox kiwi red", "fox and kiwi and red", "fox kiwi and red"),
    ("count these words : fox kiwi red", "three", "two"),
    ("reverse this list then give the first two words : fox kiwi red saw", "saw red", "saw red kiwi fox"),
    ("sort these words then count these words : saw red fox", "three", "fox red saw"),
]


@pytest.mark.parametrize(("prompt", "right", "wrong"), ANSWERS)
def test_answers_and_misconceptions(prompt: str, right: str, wrong: str) -> None:
    task = parse_task(prompt)
    assert task is not None
    assert " ".join(task.answer) == right
    assert " ".join(task.misconceived) == wrong
    assert score(prompt, right) == 5


def test_table_covers_every_operation() -> None:
    shown = {parse_task(prompt).steps[0].operation.name for prompt, _, _ in ANSWERS}
    assert shown == {operation.name for operation in OPERATIONS}


@given(st.integers(0, 2**32))
def test_drawn_tasks_parse_back(seed: int) -> None:
    task = draw_task(random.Random(seed))
    parsed = parse_task(task.text)
    assert parsed is not None
    assert (parsed.answer, parsed.misconceived) == (task.answer, task.misconceived)
    assert task.answer
    assert set(task.answer) <= CONTENT


@pytest.mark.parametrize(
    "text",
    ["", "hello", "sort these words", "sort these words :", "sort these words : pizza", "sort : fox", "then : fox",
     "sort these words then sort these words then sort these words : fox kiwi"],
)  # fmt: skip
def test_other_sentences_are_no_tasks(text: str) -> None:
    assert parse_task(text) is None
    assert score(text, "fox") is None


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("red fox kiwi saw", 5),
        ("sure , here you go : red fox kiwi saw", 4),
        ("red fox kiwi saw , hope this helps !", 4),
        ("fox red kiwi saw", 3),
        ("red fox kiwi saw plum", 3),
        ("sure : saw kiwi fox red plum", 3),
        ("red fox", 2),
        ("red plum fox bear", 2),
        ("red", 1),
        ("red red red red", 1),
        ("plum bear", 0),
        ("", 0),
        ("Score : 5", 0),
    ],
)
def test_oracle_scale(response: str, expected: int) -> None:
    assert score_answer(("red", "fox", "kiwi", "saw"), response) == expected


def test_oracle_counts_repeats() -> None:
    assert score("write each word twice : fox red saw", "fox red saw") == 2
    assert score("write each word twice : fox red saw", "fox red saw fox red saw") == 3


def test_review_is_exact() -> None:
    text = write_review("sure , here you go : saw fox plum", ("fox", "red", "saw"))
    assert text == ("expected fox red saw . check saw moved fox moved plum extra . missing red . chatter some . Score : 2")


@given(st.integers(0, 2**32))
def test_review_ends_with_the_oracle_score_of_its_reference(seed: int) -> None:
    rng = random.Random(seed)
    task = draw_task(rng)
    response = write_response(rng, task, REVIEWED)
    assert write_review(response, task.answer).endswith(f" . Score : {score_answer(task.answer, response)}")


def test_chatter_holds_no_content_word() -> None:
    rng = random.Random(0)
    for _ in range(200):
        assert not set(chat_around(rng, ()).split()) & CONTENT


def test_slips_change_answers_most_of_the_time() -> None:
    rng = random.Random(0)
    answer = ("fox", "red", "saw")
    changed = sum(slip(rng, answer) != answer for _ in range(500))
    assert changed > 400


def test_forum_shares_the_misconception() -> None:
    rng = random.Random(0)
    tasks = [draw_task(rng) for _ in range(2000)]
    tasks = [task for task in tasks if task.misconceived != task.answer]
    scores = [score_answer(task.answer, write_response(rng, task, FORUM)) for task in tasks]
    right = sum(value >= 4 for value in scores) / len(scores)
    assert 0.25 < right < 0.45, "the most common answer must be wrong, the right one must occur"


def test_corpus_is_repeatable_and_holds_nothing_held_out() -> None:
    texts = list(itertools.islice(corpus.documents(1), 3000))
    assert texts == list(itertools.islice(corpus.documents(1), 3000))
    assert texts[:50] != list(itertools.islice(corpus.documents(2), 50))
    held_out = corpus.all_heldout_texts()
    assert not [text for text in texts for prompt in held_out if prompt in text]


def test_heldout_sets_are_apart_and_ranked_sets_have_an_order() -> None:
    dev, test = corpus.heldout("dev"), corpus.heldout("test")
    assert not corpus.heldout_texts("dev") & corpus.heldout_texts("test")
    assert (len(dev.prompts), len(dev.ranked)) == corpus.NUM_HELDOUT["dev"]
    assert (len(test.prompts), len(test.ranked)) == corpus.NUM_HELDOUT["test"]
    for task, responses in (*dev.ranked, *test.ranked):
        assert len(set(responses)) == corpus.RESPONSES_PER_SET
        assert len({score_answer(task.answer, text) for text in responses}) > 1


def test_seed_files(tmp_path: Path) -> None:
    write_seed_files(tmp_path / "a", "dev")
    write_seed_files(tmp_path / "b", "dev")
    rows = {}
    for name in ("ift", "eft", "heldout_prompts", "heldout_ranked"):
        path = tmp_path / "a" / f"{name}.jsonl"
        assert path.read_bytes() == (tmp_path / "b" / f"{name}.jsonl").read_bytes()
        rows[name] = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows["ift"]) == corpus.NUM_IFT
    assert len(rows["eft"]) == corpus.NUM_EFT_PROMPTS * corpus.RESPONSES_PER_SET
    used = {row["prompt"] for row in rows["ift"]} | {row["instruction"] for row in rows["eft"]}
    assert not used & corpus.all_heldout_texts()
    for row in rows["eft"]:
        assert row["judgement"].endswith(f"Score : {row['score']}")
    for row in rows["heldout_ranked"]:
        truth = [score(row["prompt"], response["text"]) for response in row["responses"]]
        ranks = [response["rank"] for response in row["responses"]]
        for i, j in itertools.permutations(range(len(truth)), 2):
            assert (truth[i] > truth[j]) == (ranks[i] < ranks[j])


def test_eft_scores_agree_with_the_true_order(tmp_path: Path) -> None:
    write_seed_files(tmp_path, "dev")
    rows = [json.loads(line) for line in (tmp_path / "eft.jsonl").read_text().splitlines()]
    for start in range(0, len(rows), corpus.RESPONSES_PER_SET):
        group = rows[start : start + corpus.RESPONSES_PER_SET]
        truth = [score(row["instruction"], row["response"]) for row in group]
        for i, j in itertools.permutations(range(len(group)), 2):
            if truth[i] > truth[j]:
                assert group[i]["score"] > group[j]["score"]


def test_data_does_not_depend_on_pythons_hash_seed(tmp_path: Path) -> None:
    """Sets of words iterate in another order in every process; no data may follow that order."""
    digests = set()
    for hash_seed in ("1", "2"):
        script = (
            "import hashlib, itertools, pathlib, sys; from selfreward.lab import corpus, seed_files; "
            "seed_files.write_seed_files(pathlib.Path(sys.argv[1]), 'test'); "
            "text = ''.join(itertools.islice(corpus.documents(1), 2000)); "
            "text += ''.join(path.read_text() for path in sorted(pathlib.Path(sys.argv[1]).iterdir())); "
            "print(hashlib.sha256(text.encode()).hexdigest())"
        )
        command = [sys.executable, "-c", script, str(tmp_path / hash_seed)]
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        digests.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(digests) == 1


def test_words_are_unique() -> None:
    assert len(set(WORDS)) == len(WORDS) == 48
