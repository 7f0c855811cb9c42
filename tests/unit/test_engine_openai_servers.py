"""The engine `openai` against servers that people run: vLLM's and `transformers serve`, started here on the demo's model.

They run in whatever interpreter has them: this one, or that of `.venv-vllm` (`make bench-vllm` makes it).
"""

import functools
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfreward.config import EndpointConfig
from selfreward.engines.loading import resolve_model_path
from selfreward.engines.openai import OpenAIEngine
from selfreward.errors import EngineError
from selfreward.types import Generation, Message, Request, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1200)]
OTHER = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
CONTEXT = 320
START_S = 600
TASKS = (
    "sort these words : cat apple dog red",
    "list these words in reverse order : cat apple dog red",
    "repeat each word twice : cat dog wolf",
)
GREEDY = Sampling(max_tokens=24, temperature=0)


def interpreter() -> str:
    """One that has vLLM, and with it what `transformers serve` needs. Skips without one."""
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    if OTHER.is_file():
        return str(OTHER)
    pytest.skip("no interpreter here has vLLM (make bench-vllm)")


@functools.cache
def model() -> str:
    return resolve_model_path("lab")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(name: str, words: list[str], port: int) -> Iterator[str]:
    """The URL of a server's API, once it answers. What it says is shown where it does not come up."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)  # another interpreter must not find this one's packages
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(words, stdout=said, stderr=said, env=environment)
        try:
            for _ in range(START_S):
                if server.poll() is not None:
                    said.seek(0)
                    pytest.fail(f"{name} ended with {server.returncode}: {said.read().decode()[-3000:]}")
                if _is_up(port):
                    break
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def vllm_url() -> Iterator[str]:
    port = free_port()
    words = f"-m vllm.entrypoints.openai.api_server --model {model()} --served-model-name tiny --host 127.0.0.1 --port {port}"
    words += (
        f" --dtype float32 --max-model-len {CONTEXT} --kv-cache-memory-bytes {2**28} --generation-config vllm --enforce-eager"
    )
    with running("vLLM", [interpreter(), *words.split()], port) as url:
        yield url


@pytest.fixture(scope="module")
def transformers_url() -> Iterator[str]:
    port = free_port()
    program = Path(interpreter()).with_name("transformers")
    words = f"serve {model()} --host 127.0.0.1 --port {port} --device cpu --dtype float32"
    with running("transformers serve", [str(program), *words.split()], port) as url:
        yield url


def ask(url: str, requests: list[Request], name: str = "tiny", **settings: Any) -> dict[str, Generation]:
    endpoint = EndpointConfig(base_url=url, model=name, context_length=CONTEXT, timeout_s=300, max_retries=0, **settings)
    with OpenAIEngine("near", endpoint) as engine:
        return {reply.request_id: reply for reply in engine.generate(requests)}


def chat(name: str, text: str, sampling: Sampling = GREEDY, seed: int = 0) -> Request:
    return Request(name, (Message("user", text),), sampling, seed)


@functools.cache
def expected() -> dict[str, Generation]:
    """What engine `hf` says to the tasks."""
    from selfreward.config import parse_config
    from selfreward.engines import open_engine

    config = parse_config({"name": "test", "engine": {"threads": 1, "device": "cpu"}})
    with open_engine(model(), config) as engine:
        return {reply.request_id: reply for reply in engine.generate([chat(text, text) for text in TASKS])}


def test_vllm_answers_as_hf_does(vllm_url: str) -> None:
    replies = ask(vllm_url, [chat(text, text) for text in TASKS], max_concurrency=2)
    assert replies.keys() == expected().keys()
    for name, reply in replies.items():
        # vLLM leaves the space before the first word of a tokenizer of whole words.
        assert replace(reply, text=reply.text.removeprefix(" ")) == expected()[name]


def test_vllm_repeats_what_a_seed_gave(vllm_url: str) -> None:
    settings = Sampling(max_tokens=24, temperature=1.5, top_p=1.0)
    requests = [chat(f"{seed}", TASKS[1], settings, seed) for seed in range(8)]
    first = ask(vllm_url, requests, send_seed=True)
    assert len({reply.text for reply in first.values()}) > 1
    assert ask(vllm_url, requests[::-1], send_seed=True, max_concurrency=1) == first


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_vllm_tells_log_probabilities(vllm_url: str, api: str) -> None:
    settings = Sampling(max_tokens=24, temperature=0, logprobs=True)
    request = chat("a", TASKS[0], settings) if api == "chat" else Request("a", TASKS[0], settings, 0)
    reply = ask(vllm_url, [request], api=api)["a"]
    assert reply.token_logprobs is not None
    assert len(reply.token_logprobs) == reply.num_tokens
    assert all(value <= 1e-6 for value in reply.token_logprobs)


def test_vllm_refuses_what_is_too_long(vllm_url: str) -> None:
    replies = ask(vllm_url, [chat("long", "cat " * CONTEXT), chat("short", TASKS[0])])
    assert (replies["long"].finish_reason, replies["long"].error) == ("error", "too_long")
    assert replies["short"].finish_reason == "stop"


def test_vllm_cuts_at_stop_strings(vllm_url: str) -> None:
    whole = expected()[TASKS[1]].text
    second = whole.split()[1]
    reply = ask(vllm_url, [chat("a", TASKS[1], Sampling(24, temperature=0, stop=(second,)))])["a"]
    assert (reply.text.strip(), reply.finish_reason) == (whole[: whole.index(second)].strip(), "stop")


def test_a_model_that_vllm_does_not_serve_is_named(vllm_url: str) -> None:
    with pytest.raises(EngineError, match=r"status 404.*endpoints\.near\.base_url.*endpoints\.near\.model"):
        ask(vllm_url, [chat("a", TASKS[0])], name="other")


def test_transformers_serve_answers_as_hf_does(transformers_url: str) -> None:
    replies = ask(transformers_url, [chat(text, text) for text in TASKS], name=model(), max_concurrency=2)
    assert {name: reply.text for name, reply in replies.items()} == {name: reply.text for name, reply in expected().items()}


def test_transformers_serve_tells_no_log_probabilities(transformers_url: str) -> None:
    settings = Sampling(max_tokens=24, temperature=0, logprobs=True)
    reply = ask(transformers_url, [chat("a", TASKS[0], settings)], name=model())["a"]
    assert reply.token_logprobs is None
