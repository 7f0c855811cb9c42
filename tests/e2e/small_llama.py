"""Make a small Llama folder that has seen judge prompts: it scores at random, but it scores.

A model of this size cannot judge. After a minute of training it ends its replies and writes `Score: k`, so that every
stage of a run on real data has something to work on.

    python tests/e2e/small_llama.py TREES.jsonl FOLDER
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfreward.judging import judge_messages, pairwise_messages, propose_prompt
from selfreward.rubrics import load_rubric
from selfreward.types import Message

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 1536


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1,500 tokens with a ChatML template."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|im_end|>", pad_token="<pad>", model_max_length=CONTEXT,
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def conversations(prompts: list[str], replies: list[str], rng: random.Random) -> list[tuple[Message, ...]]:
    """One conversation of every kind that a run holds, with short answers."""
    judge, pairwise = load_rubric("additive", "pointwise"), load_rubric("pairwise", "pairwise")
    propose = load_rubric("self_instruct", "propose")

    def short(texts: list[str]) -> str:
        return " ".join(rng.choice(texts).split()[:12])

    asks = [
        ((Message("user", rng.choice(prompts)[:400]),), short(replies)),
        (judge_messages(judge, rng.choice(prompts)[:300], short(replies)), f"Score: {rng.randint(0, 5)}"),
        (
            pairwise_messages(pairwise, rng.choice(prompts)[:300], short(replies), short(replies)),
            f"Verdict: {rng.choice('AB')}",
        ),
        (propose_prompt(propose, [short(prompts) for _ in range(8)]), short(prompts)),
    ]
    return [(*(messages if not isinstance(messages, str) else ()), Message("assistant", reply)) for messages, reply in asks]


def make(trees: Path, folder: Path, steps: int = 150) -> Path:
    """Write the model folder and return it."""
    rng = random.Random(0)
    torch.manual_seed(0)
    rows = [json.loads(line)["prompt"] for line in trees.read_text(encoding="utf-8").splitlines()]
    prompts = [row["text"] for row in rows]
    replies = [reply["text"] for row in rows for reply in row["replies"]]
    bodies = [load_rubric(name, kind).body for name, kind in
              (("additive", "pointwise"), ("pairwise", "pairwise"), ("self_instruct", "propose"))]  # fmt: skip
    tokenizer = build_tokenizer([*prompts, *replies, *bodies * 20])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = []
        for turns in conversations(prompts, replies, rng):
            text = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
            texts.append(text.removesuffix("\n"))
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=CONTEXT)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
