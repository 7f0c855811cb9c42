"""The engine `vllm` against engine `hf` on the demo's model. Needs vLLM (`make test-vllm`); on a CPU its build for CPUs."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfreward.engines import Engine, open_engine
from selfreward.errors import ConfigError, EngineError, ModelError
from selfreward.types import Generation, Message, Request, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here (make test-vllm)"),
]
TASKS = (
    "sort these words : cat apple dog red",
    "list these words in reverse order : cat apple dog red",
    "repeat each word twice : cat dog wolf",
    "give the words backwards : one two three four five",
    "keep only animals : cat apple dog red",
)
GREEDY = Sampling(max_tokens=24, temperature=0)
SAMPLED = Sampling(max_tokens=24, temperature=1.0, top_p=0.95)
SETTINGS = {"eager": True, "cache_gb": 0.25}


def chat(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def answers(engine: Engine, requests: Sequence[Request]) -> dict[str, Generation]:
    replies = list(engine.generate(requests))
    assert len(replies) == len(requests)
    return {reply.request_id: reply for reply in replies}


def make_settings(path: str, **engine: Any) -> Any:
    from selfreward.config import parse_config

    engine = {"threads": 1, "device": "cpu", **engine}
    return parse_config({"name": "test", "model": {"path": path}, "engine": engine})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine("lab", make_settings("lab", name="vllm", vllm=SETTINGS, batch_size=8)) as opened:
        yield opened


@pytest.fixture(scope="module")
def peer() -> Iterator[Engine]:
    with open_engine("lab", make_settings("lab", name="hf", batch_size=8)) as opened:
        yield opened


def test_greedy_replies_equal_those_of_hf(engine: Engine, peer: Engine) -> None:
    requests = [Request(str(i), chat(text), GREEDY, i) for i, text in enumerate(TASKS)]
    requests.append(Request("plain", "sort these words : cat apple", GREEDY, 0))
    requests.append(Request("prefix", chat(TASKS[1]), GREEDY, 0, reply_prefix="red apple"))
    assert answers(engine, requests) == answers(peer, requests)
    assert engine.context_length == peer.context_length


def test_a_seed_decides_a_reply_whatever_its_neighbours_are(engine: Engine) -> None:
    requests = [Request(f"{text}/{seed}", chat(text), SAMPLED, 2**62 + seed) for text in TASKS for seed in range(6)]
    together = answers(engine, requests)
    alone = {name: reply for request in requests[::5] for name, reply in answers(engine, [request]).items()}
    assert alone == {name: together[name] for name in alone}
    texts = {reply.text for name, reply in together.items() if name.startswith(TASKS[1])}
    assert len(texts) > 1, "seeds should differ"
    assert answers(engine, requests[::-1]) == together


def test_sampled_replies_follow_the_settings(engine: Engine) -> None:
    settings = replace(SAMPLED, temperature=2.0, top_p=1.0, top_k=1)
    requests = [Request(str(seed), chat(TASKS[0]), settings, seed) for seed in range(4)]
    greedy = answers(engine, [Request("g", chat(TASKS[0]), GREEDY, 0)])["g"].text
    assert {reply.text for reply in answers(engine, requests).values()} == {greedy}
    hot = [Request(str(seed), chat(TASKS[0]), replace(settings, top_k=0), seed) for seed in range(8)]
    assert len({reply.text for reply in answers(engine, hot).values()}) > 3
    for temperature in (2.5, 0.001):
        with pytest.raises(EngineError, match=f"temperature={temperature}; vLLM takes 0 and 0.01 to 2"):
            engine.generate([Request("a", chat(TASKS[0]), replace(SAMPLED, temperature=temperature), 0)])


def test_stop_strings_end_a_reply_and_are_cut(engine: Engine, peer: Engine) -> None:
    whole = answers(engine, [Request("a", chat(TASKS[1]), GREEDY, 0)])["a"]
    second = whole.text.split()[1]
    requests = [Request("a", chat(TASKS[1]), replace(GREEDY, stop=("nowhere", second)), 0)]
    reply = answers(engine, requests)["a"]
    assert reply.text == whole.text[: whole.text.index(second)]
    assert reply.finish_reason == "stop"
    assert (reply.num_tokens or 0) < (whole.num_tokens or 0)
    assert answers(peer, requests)["a"] == reply


def test_logprobs_are_the_models_own(engine: Engine, peer: Engine) -> None:
    import torch

    from selfreward.chat import encode_example

    requests = [Request(str(i), chat(text), replace(SAMPLED, logprobs=True), i) for i, text in enumerate(TASKS)]
    requests.append(Request("stop", chat(TASKS[1]), replace(GREEDY, logprobs=True, stop=("cat",)), 0))
    model, tokenizer = peer.model, peer.tokenizer  # type: ignore[attr-defined]
    replies, compared = answers(engine, requests), 0
    for request in requests:
        reply = replies[request.id]
        assert reply.token_logprobs is not None
        assert len(reply.token_logprobs) == reply.num_tokens
        if reply.finish_reason == "length" or request.sampling.stop:
            continue
        prompt, answer = encode_example(tokenizer, request.prompt, reply.text)
        ids = [*prompt, *answer]
        compared += 1
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = [float(logits[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]
        assert reply.token_logprobs == pytest.approx(expected, abs=1e-3)
    assert compared > 1


def test_end_tokens_can_be_ignored(engine: Engine) -> None:
    settings = replace(SAMPLED, ignore_eos=True, max_tokens=40)
    reply = answers(engine, [Request("a", chat(TASKS[0]), settings, 0)])["a"]
    assert (reply.num_tokens, reply.finish_reason) == (40, "length")


def test_a_prompt_that_leaves_no_room_is_too_long(engine: Engine, peer: Engine) -> None:
    room = engine.context_length
    requests = [Request("long", "cat " * (room + 5), GREEDY, 0), Request("fits", chat(TASKS[0]), GREEDY, 0)]
    tight = Request("tight", ("cat " * (room - 2)).strip(), replace(GREEDY, max_tokens=50, ignore_eos=True), 0)
    found = answers(engine, [*requests, tight])
    assert found["long"].error == "too_long"
    assert found["long"] == answers(peer, requests)["long"]
    assert found["fits"].finish_reason == "stop"
    assert (found["tight"].num_prompt_tokens or 0) + (found["tight"].num_tokens or 0) == room


def test_control_tokens_in_a_prompt_are_data(engine: Engine, peer: Engine) -> None:
    token = peer.tokenizer.eos_token  # type: ignore[attr-defined]
    requests = [Request("a", chat(f"sort these words : cat {token} dog"), GREEDY, 0)]
    assert answers(engine, requests) == answers(peer, requests)


def test_usage_tells_what_was_read_and_what_was_shared(engine: Engine) -> None:
    engine.take_usage()
    prompt = "sort : " + " ".join(["cat dog"] * 70)
    replies = answers(engine, [Request(str(i), prompt, replace(SAMPLED, max_tokens=4), i) for i in range(6)])
    usage = engine.take_usage()
    assert usage is not None
    assert usage.asked_tokens == sum(reply.num_prompt_tokens or 0 for reply in replies.values())
    assert usage.generated_tokens == sum(reply.num_tokens or 0 for reply in replies.values())
    assert 0 < usage.read_tokens < usage.asked_tokens
    assert usage.decode_seconds > 0
    again = engine.take_usage()
    assert again is not None
    assert again.asked_tokens == 0


def test_who_stops_listening_leaves_no_work_behind(engine: Engine) -> None:
    replies = engine.generate([Request(str(i), chat(TASKS[0]), replace(SAMPLED, ignore_eos=True), i) for i in range(20)])
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    assert answers(engine, [Request("a", chat(TASKS[0]), GREEDY, 0)])["a"].finish_reason == "stop"


def test_choices_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"choices.*engine\.name=hf"):
        engine.generate([Request("a", chat("x"), GREEDY, 0, choices=("1", "2"))])


def test_an_adapter_changes_its_base(tmp_path: Path, engine: Engine) -> None:
    """Rank 2 on one projection, large enough to change what is said; zero weights change nothing."""
    import torch
    from safetensors.torch import save_file

    from selfreward.engines.loading import resolve_model_path

    base = resolve_model_path("lab")
    requests = [Request(str(i), chat(text), GREEDY, 0) for i, text in enumerate(TASKS)]
    plain = answers(engine, requests)
    found = {}
    for size in (0.0, 3.0):
        folder = tmp_path / f"adapter-{size}"
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "bias": "none",
                    "task_type": "CAUSAL_LM", "base_model_name_or_path": base}  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        weights = {}
        for layer in range(5):
            name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
            generator = torch.Generator().manual_seed(layer)
            weights[f"{name}.lora_A.weight"] = torch.randn(2, 128, generator=generator)
            weights[f"{name}.lora_B.weight"] = size * torch.randn(128, 2, generator=generator)
        save_file(weights, folder / "adapter_model.safetensors")
        with open_engine(str(folder), make_settings("lab", name="vllm", vllm=SETTINGS, batch_size=8)) as opened:
            found[size] = answers(opened, requests)
    assert found[0.0] == plain
    assert found[3.0] != plain


def test_closing_ends_its_processes(peer: Engine) -> None:
    others = {child.pid for child in multiprocessing.active_children()}
    opened = open_engine("lab", make_settings("lab", name="vllm", vllm=SETTINGS, batch_size=8))
    reply = answers(opened, [Request("a", chat(TASKS[0]), GREEDY, 0)])
    mine = {child.pid for child in multiprocessing.active_children()} - others
    assert mine
    waiting = opened.generate([Request("b", chat(TASKS[0]), GREEDY, 0)])
    opened.close()
    opened.close()
    assert not mine & {child.pid for child in multiprocessing.active_children()}
    with pytest.raises(EngineError, match="closed"):
        list(waiting)
    with pytest.raises(EngineError, match="closed"):
        opened.generate([])
    assert "HF_HUB_OFFLINE" in os.environ
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
    assert answers(peer, [Request("a", chat(TASKS[0]), GREEDY, 0)]) == reply


PROGRAM = """
import os, signal, sys
from selfreward.config import parse_config
from selfreward.engines import open_engine
from selfreward.engines._vllm_start import descendants
from selfreward.types import Message, Request, Sampling

def main():
    os.setsid()
    settings = {"name": "vllm", "threads": 1, "batch_size": 8, "vllm": {"eager": True, "cache_gb": 0.25}}
    engine = open_engine("lab", parse_config({"name": "test", "engine": settings}))
    print("STARTED", *descendants([os.getpid()]), flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, lambda *_: print("HEARD", flush=True))
    os.killpg(os.getpgrp(), signal.SIGINT)
    request = Request("a", (Message("user", "sort these words : cat apple dog red"),), Sampling(24, temperature=0), 0)
    print("SAID", *[reply.text for reply in engine.generate([request])], flush=True)
    engine.close()

if __name__ == "__main__":
    main()
"""


def run_program(tmp_path: Path, word: str) -> tuple[int, list[list[str]]]:
    """Exit code, and the words of its lines."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py"), word], stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


def test_ctrl_c_in_a_terminal_is_the_runs_alone(tmp_path: Path) -> None:
    code, lines = run_program(tmp_path, "interrupt")
    assert (code, lines[-2:]) == (0, [["HEARD"], ["SAID", "apple", "cat", "dog", "red"]])


def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    code, lines = run_program(tmp_path, "kill")
    assert code == -signal.SIGKILL
    started = [int(word) for word in lines[-1][1:]]
    assert len(started) > 1
    deadline = time.monotonic() + 60
    while any(_is_alive(pid) for pid in started):
        assert time.monotonic() < deadline, [pid for pid in started if _is_alive(pid)]
        time.sleep(0.2)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_vllm_cannot_do_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.device=cuda"):
        open_engine("lab", make_settings("lab", name="vllm", vllm=SETTINGS, device="cuda"))
    with pytest.raises(ModelError, match="no model folder"):
        open_engine(str(tmp_path / "nothing"), make_settings("lab", name="vllm"))
