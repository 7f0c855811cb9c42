"""Write the micro-world's seed data in selfreward's ordinary seed file formats.

The oracle labels this data, as human ranks would; it is fixed, whatever the run's seed is.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from selfreward.lab.corpus import (
    MISCONCEIVED_RATERS,
    NUM_EFT_PROMPTS,
    NUM_IFT,
    WORLD_SEED,
    all_heldout_texts,
    draw_ranked,
    heldout,
    training_task,
)
from selfreward.lab.oracle import score_answer
from selfreward.lab.world import Task
from selfreward.lab.writers import DEMONSTRATORS, write_response, write_review


def write_seed_files(folder: Path, split: str) -> None:
    """Write ift, eft, heldout_prompts and heldout_ranked `.jsonl` to `folder`; `split` is `dev` or `test`.

    No held-out prompt of either split occurs in ift or eft, and no prompt of ift in eft (asserted).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{WORLD_SEED}-seed-data")
    seen = set(all_heldout_texts())
    ift = list(_demonstrations(rng, seen))
    eft = list(_evaluations(rng, seen))
    data = heldout(split)
    ift_prompts, eft_prompts = {row["prompt"] for row in ift}, {row["instruction"] for row in eft}
    assert not ift_prompts & eft_prompts, "IFT and EFT share prompts"
    assert not (ift_prompts | eft_prompts) & all_heldout_texts(), "seed data holds held-out prompts"
    _write(folder / "ift.jsonl", ift)
    _write(folder / "eft.jsonl", eft)
    _write(folder / "heldout_prompts.jsonl", ({"prompt": task.text} for task in data.prompts))
    _write(folder / "heldout_ranked.jsonl", (_ranked_row(task, responses) for task, responses in data.ranked))


def _demonstrations(rng: random.Random, seen: set[str]) -> Iterator[dict[str, Any]]:
    """IFT: careful answers by people who mostly share the misconceptions."""
    for _ in range(NUM_IFT):
        task = _new_task(rng, seen)
        yield {"prompt": task.text, "response": write_response(rng, task, DEMONSTRATORS)}


def _evaluations(rng: random.Random, seen: set[str]) -> Iterator[dict[str, Any]]:
    """EFT: each set is reviewed by one rater, some of whom hold the misconception; kept where the order of the scores
    agrees with the human order, as in the paper (section 3.1)."""
    num_kept = 0
    while num_kept < NUM_EFT_PROMPTS:
        task, responses = draw_ranked(rng, _new_task(rng, seen))
        misconceived = rng.random() < MISCONCEIVED_RATERS
        reference = (task.misconceived or task.answer) if misconceived else task.answer
        truth = [score_answer(task.answer, text) for text in responses]
        given = [score_answer(reference, text) for text in responses]
        if not _orders_agree(truth, given):
            continue
        num_kept += 1
        for text, score in zip(responses, given, strict=True):
            review = write_review(text, reference)
            yield {"instruction": task.text, "response": text, "judgement": review, "score": score}


def _orders_agree(truth: Sequence[int], given: Sequence[int]) -> bool:
    """Whether every pair that the truth orders is ordered alike by the given scores."""
    pairs = [(i, j) for i in range(len(truth)) for j in range(len(truth)) if truth[i] > truth[j]]
    return all(given[i] > given[j] for i, j in pairs)


def _new_task(rng: random.Random, seen: set[str]) -> Task:
    while True:
        task = training_task(rng)
        if task.text not in seen:
            seen.add(task.text)
            return task


def _ranked_row(task: Task, responses: Sequence[str]) -> dict[str, Any]:
    scores = [score_answer(task.answer, text) for text in responses]
    better = sorted(set(scores), reverse=True)
    ranked = [{"text": text, "rank": better.index(score)} for text, score in zip(responses, scores, strict=True)]
    return {"prompt": task.text, "responses": ranked}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
