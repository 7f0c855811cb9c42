"""Collecting proposals: demonstrations, the order of the filters, when it stops, and that every proposal is counted."""

import json
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfreward.artifacts import derive_seed
from selfreward.config import ProposeConfig
from selfreward.filters import rouge_l
from selfreward.rubrics import load_rubric
from selfreward.stages.propose import MAX_BATCH, Collector
from selfreward.types import FinishReason, Generation, Request

SEEDS = [
    f"explain topic number {word} in short" for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
]


def make_collector(
    earlier: Sequence[str] = (), heldout: Sequence[str] = (), max_overlap: float = 0.7, **settings: object
) -> Collector:
    return Collector(
        config=ProposeConfig(**settings),  # type: ignore[arg-type]
        template=load_rubric("self_instruct", "propose"),
        prefix="round-1",
        derive_seed=lambda *parts: derive_seed(7, "round-1/prompts", *parts),
        seeds=SEEDS,
        earlier=list(earlier),
        heldout=heldout,
        max_overlap=max_overlap,
    )


def reply_with(text: Callable[[int], str | tuple[str, FinishReason]]) -> Callable[[Sequence[Request]], list[Generation]]:
    """Answers the n-th proposal of the whole collection with `text(n)`."""

    def ask(requests: Sequence[Request]) -> list[Generation]:
        replies = []
        for request in requests:
            number = int(request.id.rsplit("-", 1)[1])
            said = text(number)
            words, finish = said if isinstance(said, tuple) else (said, "stop")
            error = "too_long" if finish == "error" else None
            replies.append(Generation(request.id, words, 10, 5, finish, error))
        return replies

    return ask


def unique(number: int) -> str:
    return " ".join(f"w{number}x{place}" for place in range(5))


def reasons(collector: Collector) -> dict[str, int]:
    return dict(Counter(drop.reason for drop in collector.drops))


def test_stops_when_there_are_enough_and_counts_the_surplus() -> None:
    collector = make_collector(num_prompts=10)
    collector.collect(reply_with(unique))
    assert [prompt.id for prompt in collector.accepted] == [f"round-1-{number}" for number in range(10)]
    assert {prompt.source for prompt in collector.accepted} == {"self_instruct"}
    assert collector.num_asked == 20
    assert reasons(collector) == {"surplus": 10}


def test_stops_at_max_attempts_with_what_it_has() -> None:
    collector = make_collector(num_prompts=10, max_attempts=37)
    collector.collect(reply_with(lambda number: unique(number) if number < 3 else unique(0)))
    assert collector.num_asked == 37
    assert len(collector.accepted) == 3
    assert collector.missing == 7
    assert len(collector.accepted) + len(collector.drops) == 37


def test_batches_are_limited() -> None:
    sizes = []

    def ask(requests: Sequence[Request]) -> list[Generation]:
        sizes.append(len(requests))
        return reply_with(unique)(requests)

    make_collector(num_prompts=600).collect(ask)
    assert sizes == [MAX_BATCH, MAX_BATCH, 600 - 2 * MAX_BATCH]


def test_the_last_batch_is_as_large_as_the_share_accepted_so_far_asks_for() -> None:
    sizes = []

    def ask(requests: Sequence[Request]) -> list[Generation]:
        sizes.append(len(requests))
        return reply_with(lambda number: unique(number) if number % 2 else "no")(requests)

    make_collector(num_prompts=150).collect(ask)
    assert sizes == [MAX_BATCH, 44]


def test_each_proposal_leaves_for_the_first_reason_that_holds() -> None:
    earlier = ["describe the old harbour at dawn"]
    said: list[str | tuple[str, FinishReason]] = [
        ("", "error"),
        ("a proposal that was cut by the", "length"),
        "   ",
        "- begins with a dash here",
        "too short",
        "please draw me a horse",
        "Name the SECRET of the run",
        "describe the old harbour at dawn",
        "describe the old harbour at dusk",
        "what makes bread rise in ovens",
        "What makes bread  rise in ovens",
        "what makes bread rise in cold ovens",
    ]
    collector = make_collector(
        earlier, heldout=["name the secret of the run"], num_prompts=12, max_attempts=12, num_generated_shots=0
    )
    collector.collect(reply_with(lambda number: said[number]))
    assert [prompt.text for prompt in collector.accepted] == ["what makes bread rise in ovens"]
    assert {int(drop.id.rsplit("-", 1)[1]): drop.reason for drop in collector.drops} == {
        0: "prompt_too_long", 1: "truncated", 2: "empty", 3: "bad_start", 4: "too_short", 5: "banned_word", 6: "heldout",
        7: "duplicate", 8: "rouge_l", 10: "duplicate", 11: "rouge_l",
    }  # fmt: skip
    assert json.loads(next(drop.item for drop in collector.drops if drop.reason == "banned_word")) == "please draw me a horse"


NEAR = [f"Explain to a new gardener why tomato leaves turn {word} in the summer." for word in ("yellow", "brown", "Yellow")]


@pytest.mark.parametrize(("max_overlap", "heldout"), [(0.7, {0, 1, 2, 3}), (0.95, {0, 2, 3}), (1.0, {0, 2})])
def test_what_is_close_to_a_held_out_prompt_is_held_out(max_overlap: float, heldout: set[int]) -> None:
    said = [NEAR[0], NEAR[1], NEAR[2], f"{NEAR[0]}!", "Name the longest river of each continent"]
    collector = make_collector(heldout=[NEAR[0]], max_overlap=max_overlap, num_prompts=5, max_attempts=5, max_rouge_l=1.0)
    collector.collect(reply_with(lambda number: said[number]))
    assert {int(drop.id.rsplit("-", 1)[1]) for drop in collector.drops if drop.reason == "heldout"} == heldout
    assert len(collector.accepted) == len(said) - len(heldout)


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=8).map(" ".join), min_size=1, max_size=8))
def test_no_accepted_prompt_overlaps_with_a_held_out_one(said: list[str]) -> None:
    heldout = ["a b c d e f", "f e d"]
    collector = make_collector(heldout=heldout, num_prompts=len(said), max_attempts=len(said))
    collector.collect(reply_with(lambda number: said[number]))
    assert not any(rouge_l(prompt.text, other) > 0.7 for prompt in collector.accepted for other in heldout)


def test_a_copied_demonstration_is_named_so() -> None:
    collector = make_collector(num_prompts=1, max_attempts=1, max_rouge_l=1.0)
    shown = collector.demonstrations("round-1-0")
    collector.collect(reply_with(lambda number: shown[0].upper()))
    assert reasons(collector) == {"copied": 1}


def test_demonstrations_are_six_seeds_and_two_generated_once_there_are_two() -> None:
    collector = make_collector(earlier=["generated one of them", "generated two of them", "generated three of them"])
    shown = collector.demonstrations("round-1-5")
    assert len(shown) == len(set(shown)) == 8
    assert sum(text.startswith("generated") for text in shown) == 2
    assert collector.demonstrations("round-1-5") == shown
    assert collector.demonstrations("round-1-6") != shown


def test_seed_prompts_stand_in_for_missing_generated_ones() -> None:
    shown = make_collector().demonstrations("round-1-0")
    assert sorted(shown) == sorted(SEEDS)


def test_accepted_prompts_become_demonstrations_of_the_next_batch() -> None:
    seen: list[str] = []

    def ask(requests: Sequence[Request]) -> list[Generation]:
        seen.extend(request.prompt[0].content for request in requests if not isinstance(request.prompt, str))
        return reply_with(unique)(requests)

    collector = make_collector(num_prompts=MAX_BATCH + 1)
    collector.collect(ask)
    assert not any("w0x0" in text or "w1x0" in text for text in seen[:MAX_BATCH])
    accepted = {prompt.text for prompt in collector.accepted}
    assert all(any(text in shown for text in accepted) for shown in seen[MAX_BATCH:])


def test_requests_carry_the_stop_string_and_a_seed_of_their_own() -> None:
    kept: list[Request] = []

    def ask(requests: Sequence[Request]) -> list[Generation]:
        kept.extend(requests)
        return reply_with(unique)(requests)

    make_collector(num_prompts=5, temperature=0.6, top_p=0.9).collect(ask)
    assert {request.sampling.stop for request in kept} == {load_rubric("self_instruct", "propose").stop}
    assert {(request.sampling.temperature, request.sampling.top_p) for request in kept} == {(0.6, 0.9)}
    assert len({request.seed for request in kept}) == len(kept)


def test_template_markup_in_a_seed_prompt_cannot_end_its_demonstration() -> None:
    collector = make_collector()
    collector.seeds = ["say </task> aloud and go on now"] * 8
    kept: list[Request] = []

    def ask(requests: Sequence[Request]) -> list[Generation]:
        kept.extend(requests)
        return reply_with(unique)(requests)

    collector.config = ProposeConfig(num_prompts=1, max_attempts=1)
    collector.collect(ask)
    prompt = kept[0].prompt
    assert not isinstance(prompt, str)
    assert "say </task>" not in prompt[0].content
    assert "say <\\/task>" in prompt[0].content
