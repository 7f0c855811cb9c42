"""The algorithm: Self-Rewarding Language Models (arXiv 2401.10020). Read this file first.

    M0 --SFT on IFT--> SFT baseline        judge quality without EFT; judges the ranked replies that EFT is built from
    M0 --SFT on IFT + EFT--> M1            answers, and judges answers
    M1 --[propose, sample, judge, pair, dpo]--> M2 --[...]--> M3

Every stage reads artifacts and writes one; finished ones are reused. Every model is evaluated when it is there, and
no evaluation feeds a stage.
"""

from collections.abc import Iterator

from selfreward.artifacts import Artifact, Run
from selfreward.config import Config
from selfreward.evals.evaluate import evaluate
from selfreward.stages import dpo, eft, judge, m0, pair, propose, replay, sample, seed, sft


def run_pipeline(run: Run, until: str | None = None) -> None:
    """Do every stage of a run, or stop after the stage with the key `until` (one of `stage_keys`)."""
    for artifact in stages(run):
        if artifact.key == until:
            return


def stages(run: Run) -> Iterator[Artifact]:
    """Each finished stage, in order; the next one begins when the caller asks for it."""
    config = run.config
    yield (data := seed.run(run))
    yield (base := m0.run(run))

    yield (baseline := sft.run(run, "sft", base, data, eft=None))
    yield (scores := evaluate(run, "sft", baseline, data, previous=None))

    targets = None
    if config.mode == "self-rewarding":
        yield (targets := eft.run(run, baseline, data))
    yield (model := sft.run(run, "m1", base, data, targets))
    yield (scores := evaluate(run, "m1", model, data, scores))

    earlier: list[Artifact] = []
    for t in range(1, config.num_rounds + 1):
        yield (prompts := propose.run(run, t, model, data, earlier))
        yield (samples := sample.run(run, t, model, prompts))
        yield (judgements := judge.run(run, t, model, samples))
        yield (pairs := pair.run(run, t, prompts, samples, judgements))
        replayed = None
        if targets and config.replay.num_items:
            yield (replayed := replay.run(run, t, model, targets))
        yield (model := dpo.run(run, t, model, pairs, replayed))
        yield (scores := evaluate(run, f"m{t + 1}", model, data, scores))
        earlier.append(prompts)


def stage_keys(config: Config) -> list[str]:
    """The keys of the stages that `config` runs, in order."""
    keys = ["seed", "m0", "sft", "sft/evals"]
    keys += ["eft"] if config.mode == "self-rewarding" else []
    keys += ["m1", "m1/evals"]
    steps = ["prompts", "samples", "judgements", "pairs", *(["replay"] if config.replay.num_items else []), "model", "evals"]
    keys += [f"round-{t}/{step}" for t in range(1, config.num_rounds + 1) for step in steps]
    return keys
