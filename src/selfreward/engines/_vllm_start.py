"""Starting vLLM: its arguments, the machine that it may take, and what its processes inherit."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from selfreward.config import Config
from selfreward.engines.adapters import Adapter
from selfreward.environment import num_threads
from selfreward.errors import ConfigError, ModelError
from selfreward.texts import one_line

_GIB = 2**30
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has room for."""


def start(base: str, adapter: Adapter | None, context_length: int, config: Config) -> tuple[Any, Any]:
    """A `vllm.LLM`, and its request for the adapter. Raises ModelError and ConfigError."""
    from vllm import LLM

    _check_device(config)
    settings = config.engine.vllm
    try:
        llm = LLM(
            base,
            dtype=config.model.dtype,
            load_format="safetensors",  # other formats can run code when they are loaded
            trust_remote_code=config.model.trust_remote_code,
            skip_tokenizer_init=True,
            generation_config="vllm",  # no sampling defaults out of the folder
            max_model_len=context_length,
            max_num_seqs=config.engine.batch_size,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs",
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=None if settings.cache_gb is None else int(settings.cache_gb * _GIB),
            enforce_eager=settings.eager,
            use_tqdm_on_load=False,
            **({} if adapter is None else {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room(adapter)}),
        )
        return llm, None if adapter is None else _add_adapter(llm, adapter)
    except SystemExit as error:  # vLLM's processes end themselves so when they are told to
        raise ModelError(f"vLLM was stopped while it opened {base!r}") from error
    except ModelError:
        raise
    except Exception as error:  # foreign code: vLLM raises many classes for a model or machine that does not serve
        raise ModelError(
            f"vLLM cannot open {base!r}: {one_line(error)}; what its processes wrote above may say more; see engine.vllm.* "
            "(memory: gpu_memory_utilization, cache_gb), model.dtype and engine.batch_size"
        ) from error


def _room(adapter: Adapter) -> int:
    """The smallest rank of vLLM's that holds the adapter's. Raises ModelError for one that is larger than all."""
    for rank in _LORA_RANKS:
        if rank >= adapter.rank:
            return rank
    raise ModelError(f"the adapter in {adapter.folder!r} has rank {adapter.rank}; vLLM takes at most {_LORA_RANKS[-1]}")


def _add_adapter(llm: Any, adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    request = LoRARequest("adapter", 1, adapter.folder)
    llm.llm_engine.add_lora(request)
    return request


def _check_device(config: Config) -> None:
    """Raise ConfigError where `engine.*` asks for what this build of vLLM, or this machine, has not."""
    from vllm.platforms import current_platform

    has = current_platform.device_type or "no device"
    if config.engine.device not in ("auto", has):
        raise ConfigError(
            f"engine.device={config.engine.device}, but the installed vLLM works on {has}; set engine.device=auto, or install "
            "its other build"
        )
    wanted = config.engine.vllm.tensor_parallel_size
    if has == "cuda":
        import torch

        if wanted > (number := torch.cuda.device_count()):
            raise ConfigError(f"engine.vllm.tensor_parallel_size={wanted} is above the {number} GPUs of this machine; lower it")


class Guard:
    """Ends vLLM's processes where this one is killed before it could (`_vllm_guard`): only those begun since it was made."""

    def __init__(self) -> None:
        self._before = {child.pid for child in multiprocessing.active_children()}
        self._program: subprocess.Popen[bytes] | None = None

    def watch(self) -> None:
        """Begin: what this process has started since this object was made is watched."""
        begun = [child.pid for child in multiprocessing.active_children() if child.pid and child.pid not in self._before]
        script = Path(__file__).with_name("_vllm_guard.py")
        self._program = subprocess.Popen(  # noqa: S603 - our own file, and numbers
            [sys.executable, "-I", str(script), *map(str, descendants(begun))],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """vLLM's processes have ended."""
        if self._program is not None:
            self._program.kill()
            self._program.communicate()
            self._program = None


def descendants(begun: Sequence[int]) -> list[int]:
    """These processes and all that they started."""
    found = list(begun)
    for pid in found:  # grows while it is walked through
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # the thread has ended
                found += map(int, children.read_text().split())
    return found


@contextmanager
def surroundings(config: Config) -> Iterator[None]:
    """The environment that vLLM's processes inherit, and a mask: Ctrl-C in a terminal reaches every process of a run, and it is
    this one alone that decides what it means (`signals`). While vLLM starts it waits."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # Memory comes back for certain when a process ends; and no fork of a process that has threads.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "OMP_NUM_THREADS": str(num_threads(config.engine.threads)),
    }
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if not config.model.allow_download:
        wanted["HF_HUB_OFFLINE"] = "1"
    wanted |= {name: value for name, value in defaults.items() if name not in os.environ}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    resource_tracker.ensure_running()  # when it starts it lets Ctrl-C through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
