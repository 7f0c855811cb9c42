"""Out of memory while replies are generated: the batch is halved, it is said, and the replies are the same."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine_bench import failing, said
from stage_bench import Stages, record
from test_engine_cascade import judge_prompts
from test_engine_choices import SCORES_10, engine_of
from test_engine_hf import answers, ragged_prompts, tiny_model

from selfreward.artifacts import Run, Stage
from selfreward.engines._cascade_memory import Memory
from selfreward.engines._runner import SlotMemory
from selfreward.engines.asking import collect
from selfreward.engines.hf import HfEngine
from selfreward.errors import EngineError
from selfreward.progress import NO_STEPS
from selfreward.types import Counts, Generation, Message, Request, Sampling

ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)
IN_PYTHON = MemoryError()


@contextmanager
def room_for(model: Any, num_rows: int, error: Exception) -> Iterator[None]:
    """A model that has memory for this many rows in one pass."""

    def look(_: Any, args: Any, kwargs: Any) -> None:
        # All new tokens stand in one row: of prompts one each is kept, of replies there is one each.
        kept = kwargs.get("logits_to_keep")
        if (kwargs["input_ids"].shape[1] if kept is None else len(kept)) > num_rows:
            raise error

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: Any) -> HfEngine:
    return HfEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, batch_size=16)


def wanted(count: int = 8, candidates: int = 3) -> list[Request]:
    """Prompts with some candidates each, so that a prompt's rows have to part when few fit."""
    return [
        Request(f"{place}/{index}", prompt, Sampling(12, 0.8), place * 100 + index)
        for place, prompt in enumerate(ragged_prompts(count))
        for index in range(candidates)
    ]


@pytest.mark.parametrize(("num_rows", "error"), [(1, ON_GPU), (2, ON_CPU), (5, IN_PYTHON), (11, ON_GPU)])
def test_replies_are_those_of_a_machine_with_room(engine: HfEngine, num_rows: int, error: Exception) -> None:
    requests = wanted()
    calm = answers(engine, requests)
    assert engine.take_shortages() == []
    with room_for(engine.model, num_rows, error):
        assert answers(engine, requests) == calm
    shortages = engine.take_shortages()
    assert all(shortage.most == shortage.num_rows // 2 < shortage.num_rows <= 16 for shortage in shortages)
    assert all(shortage.num_rows > num_rows for shortage in shortages), "nothing that fits is halved"
    assert 1 <= shortages[-1].most <= num_rows
    assert engine.take_shortages() == [], "told once"


def test_the_next_call_begins_with_the_whole_batch_again(engine: HfEngine) -> None:
    requests = wanted(8)
    with room_for(engine.model, 4, ON_GPU):
        answers(engine, requests)
        first = engine.take_shortages()
        answers(engine, requests)
    assert engine.take_shortages() == first != [], "a resumed chunk meets what an earlier one met"


def test_choices_are_weighed_in_halves_too() -> None:
    engine = engine_of("gpt2-digits", batch_size=16)
    requests = [
        Request(f"r{place}", (Message("user", f"how good is it {'so ' * place}?"),), Sampling(1), 0, "Score: ", SCORES_10)
        for place in range(5)
    ]
    calm = answers(engine, requests)
    with room_for(engine.model, 4, ON_CPU):
        halved = answers(engine, requests)
    assert engine.take_shortages()
    for name, reply in calm.items():
        assert halved[name].choice_logprobs == pytest.approx(reply.choice_logprobs, abs=1e-5)


def test_no_room_for_a_single_reply_is_an_error_that_names_the_settings(engine: HfEngine) -> None:
    with room_for(engine.model, 0, ON_GPU), pytest.raises(EngineError) as caught:
        answers(engine, wanted(2))
    assert "no memory for 1 reply at a time" in str(caught.value)
    assert "engine.batch_size=16" in str(caught.value)
    assert "model.dtype" in str(caught.value)
    assert [shortage.most for shortage in engine.take_shortages()] == [3, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory(engine: HfEngine) -> None:
    with room_for(engine.model, 2, RuntimeError("shapes differ")), pytest.raises(RuntimeError, match="shapes differ"):
        answers(engine, wanted(4))
    assert engine.take_shortages() == []


def told(engine: HfEngine, requests: list[Request]) -> tuple[Any, ...]:
    """Token ids, replies, usage and shortages of one call."""
    engine.take_usage()
    with said() as ids:
        replies = answers(engine, requests)
    return ids, replies, engine.take_usage(), engine.take_shortages()


@pytest.mark.parametrize(("kind", "candidates", "places"), [("llama", 2, 6), ("llama", 9, 64), ("bloom", 2, 6)])
def test_whatever_pass_fails_replies_and_counts_are_those_of_a_calm_run(
    kind: str, candidates: int, places: int, tiny_tokenizer: Any
) -> None:
    """Each forward pass in turn, of reading and of stepping, finds no memory: with few places, which rows leave and enter,
    and with so many rows that one that has ended stays a while. The last two candidates of a prompt end together, so that no
    batch is ever down to a row that cannot be halved."""
    engine = HfEngine(tiny_model(kind, tiny_tokenizer), tiny_tokenizer, places)
    requests = [
        Request(f"{p}/{n}", prompt, Sampling(2 + (5 * p) % 11 - (candidates > 2 and not n), 0.9, ignore_eos=True), 10 * p + n)
        for p, prompt in enumerate(judge_prompts(2, 2))
        for n in range(candidates)
    ]
    with failing(engine.model, frozenset(), ON_GPU) as passes:
        ids, calm, usage, shortages = told(engine, requests)
    assert shortages == []
    assert usage.generated_tokens == sum(len(reply) for reply in ids.values())
    assert len(passes) > 12
    for number in passes:
        with failing(engine.model, frozenset({number}), ON_GPU):
            again, replies, spent, shortages = told(engine, requests)
        assert (again, replies) == (ids, calm), f"pass {number}"
        assert [(shortage.most, shortage.num_rows <= places) for shortage in shortages] == [(shortages[0].num_rows // 2, True)]
        # What was lost was asked and is handed over once, however often it was made; but it was read, and it took time.
        assert (spent.asked_tokens, spent.generated_tokens) == (usage.asked_tokens, usage.generated_tokens), f"pass {number}"
        assert spent.read_tokens >= usage.read_tokens


def test_whatever_pass_over_choices_fails_they_weigh_the_same() -> None:
    engine = engine_of("gpt2-digits", batch_size=16)
    requests = [Request(f"r{p}", prompt, Sampling(1), 0, "Score: ", SCORES_10) for p, prompt in enumerate(judge_prompts(1, 2))]
    with failing(engine.model, frozenset(), ON_CPU) as passes:
        _, calm, usage, _ = told(engine, requests)
    assert len(passes) > 5
    for number in passes:
        with failing(engine.model, frozenset({number}), ON_CPU):
            _, replies, spent, shortages = told(engine, requests)
        assert len(shortages) == 1
        assert spent.asked_tokens == usage.asked_tokens
        for name, reply in calm.items():
            assert replies[name].choice_logprobs == pytest.approx(reply.choice_logprobs, abs=1e-5)


@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_what_did_not_fit_is_given_back_before_less_is_tried(kind: str, number: int, tiny_tokenizer: Any) -> None:
    class Held(list[Any]):
        """Shortages, and how many memories of rows there were when each was told."""

        def append(self, shortage: Any) -> None:
            super().append(sum(issubclass(type(item), Memory | SlotMemory) for item in gc.get_objects()))

    engine = HfEngine(tiny_model(kind, tiny_tokenizer), tiny_tokenizer, batch_size=6)
    gc.collect()
    before = sum(issubclass(type(item), Memory | SlotMemory) for item in gc.get_objects())
    engine._shortages = held = Held()
    with failing(engine.model, frozenset({number}), ON_GPU):
        answers(engine, wanted(4))
    assert list(held) == [before]


class ShortEngine(HfEngine):
    """An engine whose model has room for four rows."""

    def generate(self, requests: Any) -> Iterator[Generation]:
        with room_for(self.model, 4, ON_CPU):
            yield from super().generate(requests)


class Heard:
    """A progress that keeps what it is told to say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Any]:
        yield NO_STEPS

    def say(self, text: str) -> None:
        self.said.append(text)


def sample(run: Run, engine: HfEngine, stop_after: int | None = None) -> Any:
    requests = wanted(16, 1)

    def work(stage: Stage) -> Counts:
        done = 0

        def ask(chunk: Any) -> list[Generation]:
            nonlocal done
            if done == stop_after:
                raise EngineError("the machine was switched off")
            done += 1
            return collect(stage, engine, chunk)

        stage.write_rows("replies", stage.chunks("replies", requests, 8, ask, Generation), Generation)
        return Counts(16, 16)

    return run.stage("round-1/samples", {}, {}, work)


def test_the_record_the_log_and_the_person_hear_of_it(stages: Stages, tiny_tokenizer: Any) -> None:
    model = tiny_model("llama", tiny_tokenizer)
    calm = sample(stages.run(name="calm"), HfEngine(model, tiny_tokenizer, 8))
    run = stages.run(name="short")
    run.progress = heard = Heard()
    made = sample(run, ShortEngine(model, tiny_tokenizer, 8))
    assert record(made)["notes"] == {"out_of_memory": {"num_halved": 2, "smallest_batch": 4}}
    assert "notes" in record(calm)
    assert record(calm)["notes"] == {}
    assert record(made)["outputs"] == record(calm)["outputs"]
    assert len(heard.said) == 2
    assert heard.said[0].startswith("round-1/samples: no memory for 8 replies at a time to prompts of up to ")
    assert "going on with 4 (engine.batch_size=256 is too high" in heard.said[0]
    lines = [json.loads(line) for line in run.dir.log.read_text().splitlines()]
    assert [(line["data"]["num_rows"], line["data"]["most"]) for line in lines if line["level"] == "warning"] == [(8, 4)] * 2


def test_what_was_halved_before_a_restart_stays_in_the_record(stages: Stages, tiny_tokenizer: Any) -> None:
    engine = ShortEngine(tiny_model("llama", tiny_tokenizer), tiny_tokenizer, 8)
    with pytest.raises(EngineError, match="switched off"):
        sample(stages.run(name="short"), engine, stop_after=1)
    stages.close()
    made = sample(stages.run(name="short"), engine)
    assert record(made)["notes"] == {"out_of_memory": {"num_halved": 2, "smallest_batch": 4}}
