"""Preference pairs (paper section 2.3): the best-judged candidate of a prompt over its worst-judged one.

In: the round's prompts, completions and judgements. Out: pairs.parquet, at most one pair a prompt. Dropped prompts:
`too_few_candidates` (fewer than two have a score), `tie` (all scores equal), `below_margin` (the best is not more than
`pair.min_margin` above the worst), `identical_text` (best and worst are the same words).
"""

import json
from collections import Counter
from collections.abc import Sequence

from selfreward.artifacts import Artifact, Run, Stage, read_rows
from selfreward.types import Completion, Counts, Drop, Judgement, Message, PreferencePair, Prompt

Scored = tuple[Completion, float]


def run(run: Run, t: int, prompts: Artifact, samples: Artifact, judgements: Artifact) -> Artifact:
    """Make the round's pairs. Each prompt is one item, also when none of its completions could be used."""

    def work(stage: Stage) -> Counts:
        completions = read_rows(samples.path / "completions.parquet", Completion)
        scores = {item.completion_id: item.score for item in read_rows(judgements.path / "judgements.parquet", Judgement)}
        candidates: dict[str, list[Scored]] = {item.id: [] for item in read_rows(prompts.path / "prompts.parquet", Prompt)}
        for item in completions:
            score = scores.get(item.id)
            if score is not None:
                candidates[item.prompt_id].append((item, score))
        made = {
            prompt_id: make_pair(prompt_id, scored, stage.config.pair.min_margin) for prompt_id, scored in candidates.items()
        }
        pairs = [item for item in made.values() if isinstance(item, PreferencePair)]
        drops = [
            Drop(prompt_id, reason, json.dumps({item.id: score for item, score in candidates[prompt_id]}))
            for prompt_id, reason in made.items()
            if isinstance(reason, str)
        ]
        stage.write_rows("pairs", pairs, PreferencePair)
        stage.reject(drops)
        stage.notes["num_pairs"] = len(pairs)
        return Counts(len(made), len(pairs), Counter(drop.reason for drop in drops))

    # How many pairs are enough does not change the pairs.
    sections = {"pair": run.config.pair.model_dump(mode="json", exclude={"min_pairs"})}
    return run.stage(f"round-{t}/pairs", sections, {"prompts": prompts, "samples": samples, "judgements": judgements}, work)


def make_pair(prompt_id: str, candidates: Sequence[Scored], min_margin: float) -> PreferencePair | str:
    """The pair of one prompt, or the reason why there is none. Among equal scores the lower index counts."""
    if len(candidates) < 2:
        return "too_few_candidates"
    ordered = sorted(candidates, key=lambda item: item[0].index)
    chosen, high = max(ordered, key=lambda item: item[1])
    rejected, low = min(ordered, key=lambda item: item[1])
    if high == low:
        return "tie"
    if high - low <= min_margin:
        return "below_margin"
    if chosen.text.strip() == rejected.text.strip():
        return "identical_text"
    return PreferencePair(
        id=prompt_id,
        messages=(Message("user", chosen.prompt),),
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_score=high,
        rejected_score=low,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
    )
