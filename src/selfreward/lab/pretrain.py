"""Pretraining of M0, the micro-world's base model: a small Llama on the raw corpus.

Deterministic on one machine and thread count. One document a row, rows of like length together; Muon on the weight
matrices, AdamW on the rest; in each phase the learning rates stay at their peak, then fall on a line to 3 % of it.
"""

import itertools
import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfreward.errors import ModelError, TrainingError, UsageError
from selfreward.lab.corpus import BROAD, CHAT_REVIEWS, REVIEWS, Mixture, documents
from selfreward.lab.tokenizer import build_tokenizer
from selfreward.progress import NullProgress, Progress

CONTEXT_LENGTH = 320
POOL_SIZE = 8192
"""Documents drawn at a time, sorted by length and cut into batches."""
LOG_EVERY = 50


@dataclass(frozen=True)
class Phase:
    """One part of the training: its tokens, its mixture of documents, its learning rates as a share of the peaks, and
    the share of the phase over which they decay to `final_share`."""

    tokens: int
    mixture: Mixture
    peak: float
    decay_share: float
    warmup_share: float = 0.01
    final_share: float = 0.03


@dataclass(frozen=True)
class Recipe:
    """Everything that decides M0's weights besides the corpus."""

    phases: tuple[Phase, ...] = (
        Phase(20_000_000, BROAD, 1.0, 0.5),
        Phase(15_000_000, REVIEWS, 0.5, 0.95),
        Phase(6_000_000, CHAT_REVIEWS, 0.3, 0.95),
    )
    batch_tokens: int = 4096
    hidden_size: int = 128
    num_layers: int = 5
    num_heads: int = 4
    intermediate_size: int = 384
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 3e-3
    seed: int = 1


def pretrain(
    output: Path, recipe: Recipe, progress: Progress | None = None, threads: int = 1, start: Path | None = None
) -> dict[str, Any]:
    """Train M0 and write it to `output` as a Hugging Face folder with `pretraining.json` (recipe, loss curve).

    `start`: a folder that the first phases made (its pretraining.json says how many); only the later ones run then. Raises
    TrainingError on a non-finite loss.
    """
    progress = progress or NullProgress()
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(CONTEXT_LENGTH)
    model = _build_model(recipe, tokenizer)
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "phases": []}
    first = 0
    if start is not None:
        if not (start / "pretraining.json").is_file():
            raise ModelError(f"{start} holds no pretraining.json; --from needs a folder that lab pretrain wrote")
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        report["phases"] = json.loads((start / "pretraining.json").read_text(encoding="utf-8"))["phases"]
        first = len(report["phases"])
        if first >= len(recipe.phases):
            raise UsageError(f"{start} went through {first} phases, the recipe has {len(recipe.phases)}: nothing is left to do")
    for index in range(first, len(recipe.phases)):
        report["phases"].append(_run_phase(model, tokenizer, recipe, index, progress))
        _round(model)
    report["recipe"] = asdict(recipe)
    report["tokens"] = sum(phase["tokens"] for phase in report["phases"])
    report["seconds"] = sum(phase["seconds"] for phase in report["phases"])
    _save(model, tokenizer, output, report)
    return report


def _run_phase(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, index: int, progress: Progress
) -> dict[str, Any]:
    """Train through one phase; returns its tokens, steps, seconds and loss curve."""
    phase = recipe.phases[index]
    optimizers = _build_optimizers(model, recipe)
    batches = _batches(tokenizer, recipe, index)
    curve: list[dict[str, float]] = []
    num_tokens, step, started = 0, 0, time.monotonic()
    model.train()
    with progress.task(f"pretraining M0, phase {index + 1} of {len(recipe.phases)} (tokens)", phase.tokens) as advance:
        while num_tokens < phase.tokens:
            ids_BT, num_real = next(batches)
            rate = _rate(num_tokens / phase.tokens, phase)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * rate
            loss = _loss(model, ids_BT, tokenizer.pad_token_id)
            if not torch.isfinite(loss):
                raise TrainingError(f"pretraining loss is {loss.item()} at step {step}; lower Recipe.muon_learning_rate")
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            num_tokens += num_real
            step += 1
            advance(num_real)
            if step % LOG_EVERY == 0:
                curve.append({"step": step, "tokens": num_tokens, "loss": round(loss.item(), 4)})
    return {"tokens": num_tokens, "steps": step, "seconds": round(time.monotonic() - started), "loss_curve": curve}


def _build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=0.0, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=recipe.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adam]


def _round(model: LlamaForCausalLM) -> None:
    """Round the weights as the folder stores them, so that going on from a folder is the same as going on.

    The weights only: the rotary table is no part of the folder, and a rounded one would be another model than is loaded.
    """
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())


def _rate(done: float, phase: Phase) -> float:
    """Learning-rate factor after the share `done` of the phase's tokens."""
    if done < phase.warmup_share:
        return phase.peak * max(done / phase.warmup_share, 0.01)
    if done < 1 - phase.decay_share:
        return phase.peak
    left = max(1 - done, 0.0) / phase.decay_share
    return phase.peak * (phase.final_share + (1 - phase.final_share) * min(left, 1.0))


def _batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, index: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Right-padded rows of like length: (ids_BT, number of real tokens)."""
    vocabulary = tokenizer.get_vocab()
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    seed = 1000 * index + recipe.seed
    stream, rng = documents(seed, recipe.phases[index].mixture), random.Random(seed)
    while True:
        pool = [[bos, *(vocabulary[word] for word in text.split()), eos] for text in itertools.islice(stream, POOL_SIZE)]
        pool.sort(key=len)
        batches = []
        start = 0
        while start < len(pool):
            stop = start + 1
            while stop < len(pool) and len(pool[stop]) * (stop + 1 - start) <= recipe.batch_tokens:
                stop += 1
            batches.append(pool[start:stop])
            start = stop
        rng.shuffle(batches)
        for rows in batches:
            width = len(rows[-1])
            yield torch.tensor([row + [pad] * (width - len(row)) for row in rows]), sum(map(len, rows))


def _loss(model: LlamaForCausalLM, ids_BT: torch.Tensor, pad: int) -> torch.Tensor:
    """Mean next-token loss over the real tokens."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV.reshape(-1, logits_BTV.shape[-1]), ids_BT[:, 1:].reshape(-1), ignore_index=pad
    )


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path, report: dict[str, Any]) -> None:
    """Write the folder beside its final place, then rename: a half-written model is never seen."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.float16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
