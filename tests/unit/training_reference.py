"""The trainings again in plain PyTorch: one sequence at a time, no padding, no TRL; what the adapters are compared with."""

import logging
import math
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from selfreward.config import DpoConfig, SftConfig
from selfreward.engines.loading import load_tokenizer
from selfreward.progress import NullProgress
from selfreward.training import SftExample, TrainContext
from selfreward.training._packing import Packed
from selfreward.training.common import Row, encode_rows, epoch_order
from selfreward.types import Message, PreferencePair

TOWNS = (
    "Name three towns.",
    "How many days are in a week?",
    "Write a short poem about the sea.",
    "List the numbers from 1 to 5.",
)
ANSWERS = ("There are seven days.", "Score: 4", "The north is known for the sea and for its towns.", "1, 2, 3", "a")


def user(text):
    return (Message("user", text),)


def examples(count=6):
    """Conversations of different lengths, with different answers."""
    return [SftExample(f"e{i}", user(TOWNS[i % 4]), ANSWERS[i % 5] + " more" * (i // 5)) for i in range(count)]


def pairs(count=6):
    """Preference pairs; chosen and rejected differ in length both ways."""
    return [
        PreferencePair(f"p{i}", user(TOWNS[i % 4]), ANSWERS[i % 5], ANSWERS[(i + 2) % 5], 4.0, 1.0, f"c{i}", f"r{i}")
        for i in range(count)
    ]


def sft_options(**changes):
    settings = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "batch_size": 4, "micro_batch_size": 2, "num_epochs": 2}
    return SftConfig(**(settings | changes))


def dpo_options(**changes):
    settings = {"learning_rate": 1e-3, "final_learning_rate": 1e-4, "batch_size": 4, "micro_batch_size": 4, "num_epochs": 2}
    return DpoConfig(**(settings | changes))


def context(config, seed=2**62 + 5):
    return TrainContext(config, seed, NullProgress())


def weights(folder):
    """A folder's weights by name."""
    return load_file(Path(folder) / "model.safetensors")


def sequences(inputs):
    """Of each answer in a collated batch: the sequence that attention sees, and the positions in it that are scored."""
    batch = Packed.of(inputs)
    num_prompt_tokens = batch.input_ids.shape[1] - len(batch.targets)
    found, start = {}, 0
    for count, width in batch.blocks:
        for first in range(start, start + count * width, width):
            tokens = batch.slot_tokens[first : first + width][batch.filled[first : first + width]]
            scored = [slot - first + 1 for slot in batch.slot_readers.tolist() if first <= slot < first + width]
            found[batch.owners[tokens[-1] - num_prompt_tokens].item()] = (batch.input_ids[0, tokens].tolist(), scored)
        start += count * width
    return [found[answer] for answer in range(batch.num_answers)]


def token_logps(model, prompt_ids, answer_ids):
    """Log-probability of each answer token, in order: logits at t - 1 predict the token at t."""
    logits = model(torch.tensor([prompt_ids + answer_ids])).logits[0]
    every = torch.log_softmax(logits, dim=-1)
    positions = range(len(prompt_ids) - 1, len(prompt_ids) + len(answer_ids) - 1)
    return torch.stack([every[position, token] for position, token in zip(positions, answer_ids, strict=True)])


def learning_rate(options, step, num_steps):
    """Warm-up, then a cosine from the peak to the final rate."""
    warmup = math.ceil(options.warmup_ratio * num_steps)
    if step < warmup:
        return options.learning_rate * step / warmup
    progress = (step - warmup) / (num_steps - warmup)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    return options.final_learning_rate + (options.learning_rate - options.final_learning_rate) * share


def train(folder, rows, options, seed, loss_of):
    """Per-step losses and final model of a plain loop; `loss_of(model, rows of one step)` is the step's loss."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]  # norms and biases do not decay
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    lengths = [row.length for row in rows]
    num_steps = options.num_epochs * math.ceil(len(rows) / options.batch_size)
    losses = []
    for epoch in range(options.num_epochs):
        order = epoch_order(lengths, options.batch_size, seed, epoch)
        for start in range(0, len(order), options.batch_size):
            batch = [rows[index] for index in order[start : start + options.batch_size]]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, len(losses), num_steps)
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses, model


def train_sft_plainly(folder, items, options, config, seed):
    """SFT: mean NLL over all answer tokens of a step."""
    rows, _ = encode_rows(load_tokenizer(folder, config), items, lambda item: (item.answer,), options.max_length)

    def loss_of(model, batch):
        return -torch.cat([token_logps(model, row.prompt_ids, row.answers[0]) for row in batch]).mean()

    return train(folder, rows, options, seed, loss_of)


def train_dpo_plainly(folder, items, options, config, seed):
    """DPO against a frozen copy of the start, plus NLL per token of the chosen answers."""
    rows, _ = encode_rows(load_tokenizer(folder, config), items, lambda pair: (pair.chosen, pair.rejected), options.max_length)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def loss_of(model, batch):
        total, chosen_logps = 0.0, []
        for row in batch:
            new = [token_logps(model, row.prompt_ids, answer) for answer in row.answers]
            with torch.no_grad():
                old = [token_logps(reference, row.prompt_ids, answer).sum() for answer in row.answers]
            margin = (new[0].sum() - old[0]) - (new[1].sum() - old[1])
            total = total + torch.log1p(torch.exp(-options.beta * margin)) / len(batch)
            chosen_logps.append(new[0])
        return total - options.nll_weight * torch.cat(chosen_logps).mean()

    return train(folder, rows, options, seed, loss_of)


# --- tiny models of other families ----------------------------------------------------------------------------------

VOCABULARY = 96
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}


def make_rows(num_sides, seed=0, longest=50, number=5):
    """Rows of random tokens, in order of length."""
    rng = random.Random(seed)

    def draw():
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))]

    return sorted((Row(draw(), tuple(draw() for _ in range(num_sides))) for _ in range(number)), key=lambda row: row.length)


class Log(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []
        self.logger = logging.Logger("test")
        self.logger.addHandler(self)

    def emit(self, record):
        self.messages.append(record.getMessage())
