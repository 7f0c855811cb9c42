"""Example prompts of a round: what was asked, answered, voted and paired."""

from dataclasses import dataclass
from typing import Any

from selfreward.artifacts import RunDir, derive_seed, read_rows
from selfreward.config import Config
from selfreward.report.names import SHORT_FAILURES
from selfreward.report.reading import read_judgements, read_record, read_true_scores
from selfreward.types import Completion, Drop, Judgement, PreferencePair, Prompt

NUM_PAIRED, NUM_UNPAIRED = 4, 1
"""Prompts shown that gave a pair, and that gave none."""
REASONS = {
    "tie": "all candidates have the same score",
    "too_few_candidates": "fewer than two candidates have a score",
    "below_margin": "best and worst are closer than pair.min_margin",
    "identical_text": "best and worst candidate are the same words",
}


@dataclass(frozen=True)
class _Round:
    """One round's tables, by id."""

    prompts: dict[str, str]
    candidates: dict[str, list[Completion]]
    judgements: dict[str, Judgement]
    pairs: dict[str, PreferencePair]
    reasons: dict[str, str]
    oracle: dict[str, float]


def last_round(run_dir: RunDir, config: Config) -> int | None:
    """The last round whose pairs are finished."""
    finished = [t for t in range(1, config.num_rounds + 1) if read_record(run_dir.pairs(t)) is not None]
    return finished[-1] if finished else None


def pick_examples(run_dir: RunDir, config: Config, t: int) -> list[dict[str, Any]]:
    """Prompts of round t, drawn by the run's seed so that nobody picked them, with all that became of them."""
    data = _load(run_dir, t)
    drawn = sorted(data.candidates, key=lambda prompt_id: derive_seed(config.random_seed, "example", t, prompt_id))
    paired = [prompt_id for prompt_id in drawn if prompt_id in data.pairs]
    unpaired = [prompt_id for prompt_id in drawn if prompt_id not in data.pairs]
    rest = max(0, NUM_UNPAIRED - len(unpaired))
    chosen = paired[: NUM_PAIRED + rest] + unpaired[: NUM_PAIRED + NUM_UNPAIRED - len(paired[: NUM_PAIRED + rest])]
    return [_example(data, prompt_id) for prompt_id in chosen]


def _load(run_dir: RunDir, t: int) -> _Round:
    candidates: dict[str, list[Completion]] = {}
    for item in read_rows(run_dir.samples(t) / "completions.parquet", Completion):
        candidates.setdefault(item.prompt_id, []).append(item)
    return _Round(
        prompts={item.id: item.text for item in read_rows(run_dir.prompts(t) / "prompts.parquet", Prompt)},
        candidates=candidates,
        judgements={item.completion_id: item for item in read_judgements(run_dir.judgements(t))},
        pairs={item.id: item for item in read_rows(run_dir.pairs(t) / "pairs.parquet", PreferencePair)},
        reasons={drop.id: drop.reason for drop in read_rows(run_dir.pairs(t) / "rejects.parquet", Drop)},
        oracle=read_true_scores(run_dir, t),
    )


def _example(data: _Round, prompt_id: str) -> dict[str, Any]:
    pair = data.pairs.get(prompt_id)
    reason = data.reasons.get(prompt_id, "")
    candidates = [_candidate(data, item, pair) for item in data.candidates[prompt_id]]
    candidates.sort(key=lambda item: (item["score"] is None, -(item["score"] or 0.0)))
    return {
        "id": prompt_id,
        "prompt": data.prompts[prompt_id],
        "paired": pair is not None,
        "reason": REASONS.get(reason, reason),
        "candidates": candidates,
    }


def _candidate(data: _Round, item: Completion, pair: PreferencePair | None) -> dict[str, Any]:
    judgement = data.judgements.get(item.id)
    role = ""
    if pair is not None:
        role = "chosen" if item.id == pair.chosen_id else "rejected" if item.id == pair.rejected_id else ""
    return {
        "text": item.text,
        "tokens": item.num_tokens,
        "role": role,
        "score": judgement.score if judgement else None,
        "oracle": data.oracle.get(item.id),
        "votes": [
            {"score": vote.score, "failure": SHORT_FAILURES.get(vote.failure or "", vote.failure), "text": vote.text}
            for vote in (judgement.votes if judgement else ())
        ],
    }
