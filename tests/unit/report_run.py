"""A run directory made by hand, as the stages leave it, for the tests of the report."""

import json
from collections import Counter
from dataclasses import asdict

from selfreward.artifacts import RunDir, write_json, write_rows
from selfreward.config import parse_config
from selfreward.evals.figures import estimate_all
from selfreward.types import (
    Completion,
    Drop,
    EvalOutput,
    Judgement,
    Measure,
    Message,
    PreferencePair,
    Prompt,
    Vote,
)


def config_of(root, **settings):
    tree = {"name": root.name, "run_dir": str(root.parent), "eval": {"oracle": True, "head_to_head": "oracle"}, **settings}
    return parse_config(tree)


def write_start(root, config):
    """config.json, environment.json and the stages before the rounds."""
    run_dir = RunDir(root)
    write_json(run_dir.config, config)
    write_json(run_dir.environment, {"python": "3.11.9", "versions": {"torch": "2.13.0"}, "commit": None, "cpu": "test"})
    write_record(run_dir.seed, num_in=30, num_out=28, dropped={"duplicate": 2})
    write_record(run_dir.m0, roles={"base": "lab"}, num_in=1, num_out=1)
    for folder, key in ((run_dir.sft, "sft"), (run_dir.m1, "m1")):
        write_training(folder, roles={"start": "m0", "trained": key})
    if config.mode == "self-rewarding":
        write_record(run_dir.eft, num_in=10, num_out=10)
    return run_dir


def write_record(folder, *, num_in=0, num_out=0, dropped=None, roles=None, notes=None, seconds=1.5, tokens=(100, 20)):
    dropped = dropped or {}
    drops = [Drop(f"{reason}/{index}", reason) for reason, count in dropped.items() for index in range(count)]
    if not (folder / "rejects.parquet").exists():
        write_rows(folder / "rejects.parquet", drops, Drop)
    record = {
        "stage": folder.name,
        "fingerprint": f"{abs(hash_text(str(folder))):016x}"[:16],
        "sections": {},
        "inputs": {},
        "random_seed": 0,
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": seconds,
        "tokens": {"prompt": tokens[0], "generated": tokens[1]},
        "counts": {"in": num_in, "out": num_out, "dropped": dropped},
        "roles": roles or {},
        "notes": notes or {},
        "outputs": {},
        "versions": {},
        "commit": None,
    }
    write_json(folder / "record.json", record)


def hash_text(text):
    value = 0
    for char in text:
        value = (value * 131 + ord(char)) % 2**61
    return value


def write_training(folder, roles, losses=(2.0, 1.5, 1.25), dpo=False):
    history = [{"step": step + 1, "loss": loss, "lr": 1e-3, "grad_norm": 1.0} for step, loss in enumerate(losses)]
    if dpo:
        history = [
            row | {"dpo_loss": row["loss"], "nll": 1.0, "rewards/margins": 0.1 * row["step"], "rewards/accuracies": 0.5}
            for row in history
        ]
    write_json(folder / "history.json", history)
    write_record(folder, num_in=10, num_out=10, roles=roles, notes={"trained": True, "num_steps": len(losses)})


def write_evals(run_dir, name, measures, *, outputs=(), votes=None, head_to_head=None, extra=None):
    """An evaluation with these measures, its figures estimated as the evaluation stage does.

    `votes`: ranked set -> one list of scores or failure names for each of its responses.
    """
    folder = run_dir.evals(name)
    figures = {key: asdict(value) for key, value in estimate_all(measures, lambda figure: hash_text(figure), 500).items()}
    write_rows(folder / "measures.parquet", measures, Measure)
    write_rows(folder / "outputs.parquet", list(outputs), EvalOutput)
    responses = [(f"{key}/{index}", scores) for key, items in (votes or {}).items() for index, scores in enumerate(items)]
    write_rows(folder / "votes.parquet", [judgement_of(*response) for response in responses], Judgement)
    judge = {"rubric": "lab_additive", "rubric_hash": "0" * 16, "scale": [0, 5], "sets": len(votes or {})}
    document = {
        "model": name,
        "figures": figures | (extra or {}),
        "judge": judge,
        "head_to_head": head_to_head,
        "rules": {"ties": "A tie counts 1/2.", "orders": "Whole orders."},
    }
    write_json(folder / "evals.json", document)
    write_record(folder, num_in=2, num_out=2, roles={"policy": name, "judge": name})


def measures_of(**figures):
    """figure -> values; unit i is `u<i>`; a value may be (value, weight)."""
    rows = []
    for figure, values in figures.items():
        for index, value in enumerate(values):
            number, weight = value if isinstance(value, tuple) else (value, 1)
            rows.append(Measure(figure, f"u{index}", float(number), float(weight)))
    return rows


def vote(index, score, failure=None, text=None):
    text = text if text is not None else (f"Reasons. Score: {score}" if score is not None else "no verdict here")
    return Vote(index, text, score, failure, 12, "length" if failure == "truncated" else "stop")


def judgement_of(response_id, scores):
    """`scores`: numbers, or names of failures."""
    votes = tuple(vote(i, s) if not isinstance(s, str) else vote(i, None, s) for i, s in enumerate(scores))
    valid = [one.score for one in votes if one.score is not None]
    return Judgement(response_id, votes, sum(valid) / len(valid) if valid else None)


def write_round(run_dir, t, prompts, *, judge=None, prompt_drops=None):
    """`prompts`: prompt text -> candidates [(text, [score or failure name, ...])]; pairs are max over min."""
    items = [Prompt(f"r{t}-p{index}", text, "self_instruct") for index, text in enumerate(prompts)]
    completions, judgements, pairs, drops = [], [], [], []
    for item, candidates in zip(items, prompts.values(), strict=True):
        scored = []
        for index, (text, scores) in enumerate(candidates):
            completion = Completion(f"{item.id}/{index}", item.id, item.text, index, text, len(text.split()), "stop")
            judgement = judgement_of(completion.id, scores)
            completions.append(completion)
            judgements.append(judgement)
            if judgement.score is not None:
                scored.append((completion, judgement.score))
        drops += _pair(item, scored, pairs)
    write_rows(run_dir.prompts(t) / "prompts.parquet", items, Prompt)
    dropped = prompt_drops or {}
    write_record(
        run_dir.prompts(t), num_in=len(items) + sum(dropped.values()), num_out=len(items), dropped=dropped,
        roles={"proposer": f"m{t}"}, notes={"num_attempts": len(items) + sum(dropped.values()), "stopped_by": "num_prompts"},
    )  # fmt: skip
    write_rows(run_dir.samples(t) / "completions.parquet", completions, Completion)
    write_record(run_dir.samples(t), num_in=len(completions), num_out=len(completions), roles={"policy": f"m{t}"})
    unscored = [one for one in judgements if one.score is None]
    write_rows(run_dir.judgements(t) / "judgements.parquet", judgements, Judgement)
    unjudged = [Drop(one.completion_id, "too_few_votes", json.dumps([vote.failure for vote in one.votes])) for one in unscored]
    write_rows(run_dir.judgements(t) / "rejects.parquet", unjudged, Drop)
    write_record(
        run_dir.judgements(t), num_in=len(judgements), num_out=len(judgements) - len(unscored),
        dropped={"too_few_votes": len(unscored)} if unscored else {}, roles={"policy": f"m{t}", "judge": judge or f"m{t}"},
    )  # fmt: skip
    write_rows(run_dir.pairs(t) / "pairs.parquet", pairs, PreferencePair)
    write_rows(run_dir.pairs(t) / "rejects.parquet", drops, Drop)
    reasons = Counter(drop.reason for drop in drops)
    write_record(run_dir.pairs(t), num_in=len(items), num_out=len(pairs), dropped=dict(reasons))
    write_training(
        run_dir.model(t),
        roles={"policy": f"m{t}", "reference": f"m{t}", "trained": f"m{t + 1}"},
        losses=(0.6931, 0.6, 0.55),
        dpo=True,
    )


def _pair(item, scored, pairs):
    """Adds the prompt's pair, or returns its drop."""
    if len(scored) < 2:
        return [Drop(item.id, "too_few_candidates")]
    chosen, rejected = max(scored, key=lambda one: one[1]), min(scored, key=lambda one: one[1])
    if chosen[1] == rejected[1]:
        return [Drop(item.id, "tie")]
    messages = (Message("user", item.text),)
    ids = (chosen[0].id, rejected[0].id)
    pairs.append(PreferencePair(item.id, messages, chosen[0].text, rejected[0].text, chosen[1], rejected[1], *ids))
    return []
