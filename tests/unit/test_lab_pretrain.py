"""The embedded model: its recipe repeats bit for bit, its folder is small, safe, and knows the micro-world."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfreward.artifacts import hash_file
from selfreward.errors import UsageError
from selfreward.lab import model_dir
from selfreward.lab.corpus import BROAD, CHAT_REVIEWS, REVIEWS, Mixture, documents, training_task
from selfreward.lab.pretrain import Phase, Recipe, pretrain
from selfreward.lab.tokenizer import build_tokenizer

TINY = Recipe(
    phases=(Phase(30_000, BROAD, 1.0, 0.5), Phase(10_000, REVIEWS, 0.5, 0.9)),
    batch_tokens=2048, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64,
)  # fmt: skip


def test_recipe_learns_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    first = pretrain(tmp_path / "a", TINY, threads=1)
    second = pretrain(tmp_path / "b", TINY, threads=1)
    assert hash_file(tmp_path / "a" / "model.safetensors") == hash_file(tmp_path / "b" / "model.safetensors")
    assert first["tokens"] == second["tokens"] >= 40_000
    assert [phase["tokens"] >= wanted.tokens for phase, wanted in zip(first["phases"], TINY.phases, strict=True)] == [
        True,
        True,
    ]
    assert not list((tmp_path / "a").glob("*.bin"))


def test_going_on_from_a_phase_is_the_whole_recipe(tmp_path: Path) -> None:
    pretrain(tmp_path / "whole", TINY, threads=1)
    pretrain(tmp_path / "first", replace(TINY, phases=TINY.phases[:1]), threads=1)
    report = pretrain(tmp_path / "both", TINY, threads=1, start=tmp_path / "first")
    assert hash_file(tmp_path / "both" / "model.safetensors") == hash_file(tmp_path / "whole" / "model.safetensors")
    assert len(report["phases"]) == 2
    with pytest.raises(UsageError, match="nothing is left to do"):
        pretrain(tmp_path / "more", TINY, threads=1, start=tmp_path / "both")


@pytest.mark.parametrize("mixture", [BROAD, REVIEWS, CHAT_REVIEWS])
def test_every_corpus_word_has_a_token(mixture: Mixture) -> None:
    tokenizer = build_tokenizer(64)
    vocabulary = tokenizer.get_vocab()
    stream = documents(3, mixture)
    for _ in range(2000):
        assert all(word in vocabulary for word in next(stream).split())


def test_chat_template_ends_answers_with_eos() -> None:
    tokenizer = build_tokenizer(64)
    turns = [{"role": "user", "content": "sort these words : fox"}, {"role": "assistant", "content": "fox"}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<s>", "<|user|>", "sort", "these", "words", ":", "fox", "<|assistant|>", "fox", "<|end|>"]


def test_shipped_folder_is_small_and_safe() -> None:
    folder = model_dir()
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 8 * 2**20
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    report = json.loads((folder / "pretraining.json").read_text())
    assert 1_000_000 <= report["parameters"] <= 3_000_000
    curve = report["phases"][0]["loss_curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]


@pytest.mark.timeout(300)
def test_shipped_model_solves_lessons() -> None:
    """Continued as a lesson, M0 gives the right answer far more often than chance (and than its threads do)."""
    folder = model_dir()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rng = random.Random(99)
    tasks = [training_task(rng) for _ in range(40)]
    right = 0
    for task in tasks:
        text = f"<s> lesson : {task.text} solution :"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        right += tokenizer.decode(out, skip_special_tokens=True).split() == list(task.answer)
    assert right >= 24, f"{right} of {len(tasks)} lessons solved"
