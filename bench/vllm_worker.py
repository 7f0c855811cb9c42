"""vLLM on a CPU as a peer of `bench/speed`: run by the interpreter of the virtual environment that has it.

On standard input comes one line, the job: {"model": FOLDER, "threads": N, "sampling": {"temperature": T, "top_p": P},
"requests": [{"prompt_ids": [...], "max_tokens": N, "seed": N}, ...]}. The model is loaded and warmed up, which may take a
minute and is not counted; then `BENCH {"setting": "..."}` is written to standard output. For each further line all requests
are done once, end tokens ignored, and `BENCH {"seconds": S, "num_tokens": [...]}` is written. The end of the input ends it.

Set up as a careful user would, by what was measured (docs/performance.md): prefix caching on, compiled, all cores that were
asked for. Every run begins with an empty prefix cache, as a new round of a run does. Requests have no seeds of their own, which
spares vLLM a random generator for each; requests with one prompt and one length are one request with several samples.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

MARK = "BENCH "
CACHE_BYTES = 4 << 30
WARM_UP = 4
"""Requests of the warm-up."""


def main() -> int:
    """Serve until the input ends."""
    options = _options()
    out = _own_output()
    job = json.loads(sys.stdin.readline())
    _set_environment(options, job["threads"])
    from vllm import LLM

    llm = LLM(
        job["model"],
        dtype="float32",
        load_format="safetensors",
        skip_tokenizer_init=True,
        generation_config="vllm",
        enable_prefix_caching=True,
        kv_cache_memory_bytes=CACHE_BYTES,
        max_num_seqs=options.seqs,
        max_num_batched_tokens=options.batched_tokens,
        block_size=options.block_size,
        enforce_eager=options.eager,
        use_tqdm_on_load=False,
    )
    groups = _groups(job["requests"])
    _run(llm, groups[:WARM_UP], job)
    _say(out, {"setting": _setting(options)})
    for _ in sys.stdin:
        llm.reset_prefix_cache()
        _say(out, _run(llm, groups, job))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="vLLM as a peer of bench/speed; asked over pipes.")
    parser.add_argument("--seqs", type=int, default=256, help="most sequences at a time")
    parser.add_argument("--batched-tokens", type=int, default=4096, help="most tokens of a step")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a page; only whole pages are shared")
    parser.add_argument("--bind", default="nobind", help="VLLM_CPU_OMP_THREADS_BIND")
    parser.add_argument("--processes", type=int, default=1, choices=(0, 1), help="VLLM_ENABLE_V1_MULTIPROCESSING")
    parser.add_argument("--eager", action="store_true", help="no compilation")
    return parser.parse_args()


def _own_output() -> TextIO:
    """Standard output for our lines alone: what libraries and their processes print goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _set_environment(options: argparse.Namespace, threads: int) -> None:
    """Before vLLM is imported."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": options.bind,
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(options.processes),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _groups(requests: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[int]]]:
    """Requests with one prompt and one length: (the first of them, the places of all)."""
    places: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault((tuple(request["prompt_ids"]), request["max_tokens"]), []).append(place)
    return [(requests[group[0]], group) for group in places.values()]


def _run(llm: Any, groups: Sequence[tuple[dict[str, Any], list[int]]], job: dict[str, Any]) -> dict[str, Any]:
    """Do these requests once: seconds, and the new tokens of every request of the job (0 for one that is not among them)."""
    from vllm import SamplingParams

    num_tokens = [0] * len(job["requests"])
    started = time.perf_counter()
    replies = llm.generate(
        [{"prompt_token_ids": request["prompt_ids"]} for request, _ in groups],
        [
            SamplingParams(
                n=len(places), max_tokens=request["max_tokens"], ignore_eos=True, detokenize=False, **job["sampling"]
            )
            for request, places in groups
        ],
        use_tqdm=False,
    )
    seconds = time.perf_counter() - started
    for (_, places), reply in zip(groups, replies, strict=True):
        for place, sample in zip(places, reply.outputs, strict=True):
            num_tokens[place] = len(sample.token_ids)
    return {"seconds": seconds, "num_tokens": num_tokens}


def _setting(options: argparse.Namespace) -> str:
    import vllm

    how = "eager" if options.eager else "compiled"
    return f"vLLM {vllm.__version__}, {how}, {options.seqs} sequences, pages of {options.block_size}, prefix caching"


def _say(out: TextIO, answer: dict[str, Any]) -> None:
    print(MARK + json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
