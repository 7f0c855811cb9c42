"""estimating/: the work of a run, counted and multiplied. No model is loaded here."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.config import POLICY, parse_config
from selfreward.errors import ConfigError
from selfreward.estimating.calibration import Calibration, need_memory, training_bytes
from selfreward.estimating.costing import stage_cost, total_cost
from selfreward.estimating.rehearsal import Speed
from selfreward.estimating.table import render_estimate
from selfreward.estimating.workload import HIGH, LOW, Assumptions, Job, Planned, Sizes, foreign_players, plan_run

SIZES = Sizes(num_ift=400, num_targets=300, num_ranked=0, num_prompts=50, num_heldout_replies=120)
SURE = Assumptions(accepted=0.5, paired=0.5, target_share=0.5)


def config_of(**settings):
    tree = {
        "name": "estimated",
        "num_rounds": 2,
        "propose": {"num_prompts": 100, "max_attempts": 1000},
        "sample": {"num_candidates": 4, "max_tokens": 40},
        "judge": {"num_votes": 3, "max_tokens": 80},
        "seed": {"num_eft": 1000},
        "eval": {"num_votes": 3, "head_to_head": "none"},
    }
    for name, value in settings.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(tree)


def rows(stages, key, kind):
    """Rows of a kind in one stage, once."""
    (stage,) = [stage for stage in stages if stage.key == key]
    return sum(job.num_rows for job in stage.jobs if job.kind == kind)


def test_the_work_of_every_stage_is_counted():
    stages = plan_run(config_of(), SIZES, SURE)
    assert [(stage.key, stage.times) for stage in stages] == [
        ("sft", 1), ("sft/evals", 1), ("m1", 1), ("m1/evals", 1),
        ("round/prompts", 2), ("round/samples", 2), ("round/judgements", 2), ("round/model", 2), ("round/evals", 2),
    ]  # fmt: skip
    assert rows(stages, "sft", "sft") == 400
    assert rows(stages, "sft", "sft-judging") == 0
    assert (rows(stages, "m1", "sft"), rows(stages, "m1", "sft-judging")) == (400, 300)
    assert rows(stages, "m1/evals", "answer") == 2 * 50, "sampled and greedy"
    assert rows(stages, "m1/evals", "judge") == 3 * 120
    assert rows(stages, "round/prompts", "propose") == 200, "one in two passes"
    assert rows(stages, "round/samples", "answer") == 400
    assert rows(stages, "round/judgements", "judge") == 1200
    assert rows(stages, "round/model", "dpo") == 50, "one prompt in two gives a pair"


def test_settings_change_the_work():
    built = plan_run(config_of(eft={"samples": 2}), replace(SIZES, num_targets=0, num_ranked=90), SURE)
    assert rows(built, "eft", "judge") == 180
    assert rows(built, "m1", "sft-judging") == 45
    assert "eft" not in [stage.key for stage in plan_run(config_of(mode="no-eft"), SIZES, SURE)]
    limited = plan_run(config_of(propose={"max_attempts": 120}), SIZES, SURE)
    assert rows(limited, "round/prompts", "propose") == 120
    contests = plan_run(config_of(eval={"head_to_head": "policy"}), SIZES, SURE)
    assert rows(contests, "sft/evals", "compare") == 0, "nobody to compare with"
    assert rows(contests, "m1/evals", "compare") == 100, "both orders"
    positives = plan_run(config_of(dpo={"method": "positives-only"}), SIZES, SURE)
    assert (rows(positives, "round/model", "dpo"), rows(positives, "round/model", "sft")) == (0, 50)
    replayed = plan_run(config_of(replay={"num_items": 120}), SIZES, SURE)
    assert (rows(replayed, "round/model", "sft-judging"), rows(replayed, "round/model", "sft")) == (120, 50)
    again = plan_run(config_of(replay={"num_items": 120, "method": "pairs", "num_votes": 2}), SIZES, SURE)
    assert rows(again, "round/replay", "judge") == 240
    assert rows(again, "round/model", "sft-judging") == 120, "two judgements a pair of one item in two"
    assert [stage.key for stage in plan_run(config_of(num_rounds=0), SIZES, SURE)][-1] == "m1/evals"


def test_expected_scores_read_once_more_or_write_nothing():
    found, lengths = measured(), Even(20)

    def judging(**judge):
        config = config_of(judge=judge, eval={"num_votes": 1})
        (stage,) = [stage for stage in plan_run(config, SIZES, SURE) if stage.key == "round/judgements"]
        return stage_cost(stage, found, lengths, SURE)

    sampled = judging()
    justified = judging(mode="expected", rubric="additive")
    plain = judging(mode="expected", justify=False, num_votes=1, rubric="additive")
    assert sampled.asked == 1200 * 100
    assert justified.asked == 1200 * (100 + 100 + 20), "the prompt and the justification are read for the scores"
    assert justified.written == sampled.written == 1200 * 20
    assert (plain.asked, plain.written) == (400 * 100, 0)


class Even:
    """Replies of one length."""

    def __init__(self, tokens):
        self.tokens = tokens

    def mean_reply(self, kind, scale):
        return scale * self.tokens


def measured(**more):
    reply = Speed(seconds_read=0.001, seconds_written=0.01, prompt_tokens=100, read_share=0.5, shared=3, rows=64)
    training = Speed(row_tokens=200, seconds_once=0.5, seconds_row=1.0, rows=64)
    return Calibration(
        num_parameters=1000,
        speeds={
            **{(kind, POLICY): reply for kind in ("answer", "judge", "compare", "propose")},
            **{(kind, POLICY): training for kind in ("sft", "sft-judging", "dpo")},
        },
        seconds_each={(kind, POLICY): 2.0 for kind in ("open", "setup", "filter", "figures")},
        **more,
    )


def test_work_times_speed_by_hand():
    found = measured()
    cost = stage_cost(Planned("x", (Job("open", 1), Job("judge", 10, shared=3))), found, Even(20), SURE)
    assert (cost.asked, cost.read, cost.written) == (1000, 500, 200)
    assert cost.seconds == pytest.approx(2 + 500 * 0.001 + 200 * 0.01)
    trained = stage_cost(Planned("x", (Job("dpo", 10, epochs=3),)), found, Even(20), SURE)
    assert (trained.trained, trained.seconds) == (6000, 10 * (0.5 + 3 * 1.0)), "the reference once"
    alone = stage_cost(Planned("x", (Job("judge", 10),)), found, Even(20), SURE)
    assert alone.read == alone.asked, "nobody shares its prompt"


def test_what_an_endpoint_takes_is_told_in_tokens_only():
    config = config_of(
        judge={"model": "endpoint:far"},
        endpoints={"far": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "context_length": 999}},
    )
    assert foreign_players(config) == ["endpoint:far"]
    (stage,) = [stage for stage in plan_run(config, SIZES, SURE) if stage.key == "round/judgements"]
    cost = stage_cost(stage, measured(), Even(20), SURE)
    assert (cost.asked, cost.read, cost.written, cost.seconds) == (120_000, 120_000, 24_000, 0.0)
    assert foreign_players(config_of(judge={"model": "m1"})) == []


@given(st.integers(0, 4), st.integers(1, 500), st.integers(2, 6), st.integers(1, 5), st.sampled_from([0, 60]))
def test_the_range_holds_the_middle(num_rounds, num_prompts, num_candidates, num_votes, num_items):
    config = config_of(
        num_rounds=num_rounds,
        propose={"num_prompts": num_prompts},
        sample={"num_candidates": num_candidates},
        judge={"num_votes": num_votes},
        replay={"num_items": num_items},
    )
    low, middle, high = (
        total_cost(plan_run(config, SIZES, assumed), measured(), Even(20), assumed) for assumed in (LOW, Assumptions(), HIGH)
    )
    assert low.seconds < middle.seconds < high.seconds
    assert low.written <= middle.written <= high.written
    assert middle.asked == pytest.approx(sum_of_stages(config))


def sum_of_stages(config):
    assumed = Assumptions()
    return sum(
        stage.times * stage_cost(stage, measured(), Even(20), assumed).asked for stage in plan_run(config, SIZES, assumed)
    )


def test_a_training_that_cannot_fit_is_refused_before_it_is_tried():
    with pytest.raises(ConfigError, match=r"10,000,000,000,000 parameters: training holds 160\.0 TB .* take a smaller model"):
        need_memory(10**13, measured())
    need_memory(1000, measured())
    need_memory(10**13, measured(on_gpu=True))
    assert training_bytes(10) == 160


def test_the_table_fits_into_80_columns():
    row = {"asked": 1_951_942_000, "read": 871_224_000, "written": 803_068_000, "trained": 628_631_000, "seconds": 400_000.0}
    shown = render_estimate(
        {
            "start_seconds": 3.0,
            "stages": [
                {"stage": "round/judgements", "times": 3, **row},
                {"stage": "m1/evals", "times": 1, **row, "seconds": 0.0},
                {"stage": "sft", "times": 1, **row, "asked": 0},
            ],
            "total": {**row, "low": 1.0, "high": 9e9},
            "memory": {
                "num_parameters": 10**10,
                "where": "RAM",
                "generating": 10**11,
                "training": 10**12,
                "training_state": 10**11,
            },
            "num_finished": 4,
            "assumed": ["answers are as long as the seed's (6 tokens on average), judgements as the seed's judgements"],
            "uncounted": ["endpoint:far"],
            "speeds": [
                {"kind": "judge", "model": "policy", "rows": 9, "is_cut": True, "read": 1.0, "written": None},
                {"kind": "dpo", "model": "policy", "rows": 9, "is_cut": False, "trained": 3.0},
            ],
            "calibration_seconds": 9.9,
            "calibration_share": 0.19,
        }
    )
    assert max(map(len, shown.splitlines())) <= 80
    flat = " ".join(shown.split())
    for text in (
        "round/judgements x 3", "? sft", "time: at least", "93.13 GiB generating",
        "4 stages finished before: not counted", "time of endpoint:far is not known and not counted",
        "judge 1 tokens/s read, - written (9 rows, less than a batch)", "dpo 3 tokens/s trained on (9 rows)",
        "! the rehearsal got 19% of the processor time",
    ):  # fmt: skip
        assert text in flat, text
