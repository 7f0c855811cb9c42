"""The micro-world's oracle as a measure of responses. It never feeds training: evaluations read, nothing reads them."""

from collections.abc import Sequence

from selfreward.evals.head_to_head import Comparison, Contest, by_scores
from selfreward.lab import oracle
from selfreward.types import Completion, EvalOutput, Measure, PreferencePair


def output_measures(outputs: Sequence[EvalOutput]) -> list[Measure]:
    """Mean score and exact share of the held-out responses; outputs without a score have no row.

    Figures: `oracle_mean`, `oracle_exact` (sampled), `greedy_oracle_mean`, `greedy_oracle_exact`; unit = prompt.
    """
    rows = []
    for output in outputs:
        if output.oracle is None:
            continue
        prefix = "greedy_" if output.kind == "greedy" else ""
        rows.append(Measure(f"{prefix}oracle_mean", output.prompt_id, output.oracle, 1))
        rows.append(Measure(f"{prefix}oracle_exact", output.prompt_id, float(output.oracle == oracle.MAX_SCORE), 1))
    return rows


def compare(contest: Contest) -> Comparison:
    """The better score wins; missing where the oracle has no opinion on the prompt."""
    return by_scores(contest.prompt_id, oracle.score(contest.prompt, contest.new), oracle.score(contest.prompt, contest.old))


def round_measures(completions: Sequence[Completion], pairs: Sequence[PreferencePair]) -> list[Measure]:
    """What a round's own judging was worth.

    Figures: `round_oracle_mean` (unit = prompt, weight = its candidates: those of one prompt are alike, so they are no
    independent trials), `pairs_truly_better` and `pairs_truly_worse` (unit = pair; the rest are truly equal); and, for
    looking at single candidates, `candidate_oracle` (unit = completion). Judgement pairs and prompts without a right
    answer have no row.
    """
    rows = []
    by_prompt: dict[str, list[float]] = {}
    for completion in completions:
        value = oracle.score(completion.prompt, completion.text)
        if value is not None:
            rows.append(Measure("candidate_oracle", completion.id, value, 1))
            by_prompt.setdefault(completion.prompt_id, []).append(value)
    for prompt_id, values in by_prompt.items():
        rows.append(Measure("round_oracle_mean", prompt_id, sum(values) / len(values), len(values)))
    for pair in pairs:
        if pair.kind != "answer":
            continue
        prompt = pair.messages[-1].content
        chosen, rejected = oracle.score(prompt, pair.chosen), oracle.score(prompt, pair.rejected)
        if chosen is not None and rejected is not None:
            rows.append(Measure("pairs_truly_better", pair.id, float(chosen > rejected), 1))
            rows.append(Measure("pairs_truly_worse", pair.id, float(chosen < rejected), 1))
    return rows
