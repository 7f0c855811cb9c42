"""The model that a run starts from, and the engine that generates."""

from typing import Literal

from pydantic import Field

from selfreward.config.section import Section


class ModelConfig(Section):
    """The pretrained model that the run starts from (M0)."""

    path: str = "lab"
    """A local Hugging Face model folder, a hub id (needs `model.allow_download`), or `lab` for the embedded model."""
    allow_download: bool = False
    """Let Transformers fetch `model.path` from the hub; otherwise no network is used."""
    trust_remote_code: bool = False
    """Run Python code shipped inside the model folder. Off unless you trust its author."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights' type for generation; training on CPU always keeps float32 weights."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template. Unset: the tokenizer's own, or a default ChatML one for a base
    model without any. `own`: the tokenizer's own and no default."""


class VllmConfig(Section):
    """How much of the machine vLLM takes. The most replies at a time are `engine.batch_size`."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share each model."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that it takes for weights and cache; of the machine's memory where vLLM runs on a CPU."""
    cache_gb: float | None = Field(default=None, gt=0)
    """Memory of each GPU for keys and values, in GiB; null: what `gpu_memory_utilization` leaves beside the weights."""
    eager: bool = False
    """Run without compiling: starts sooner, generates slower."""


class EngineConfig(Section):
    """Who generates text, and with how much of the machine."""

    name: Literal["hf", "vllm", "scripted"] = "hf"
    """`hf`: any Hugging Face causal LM, CPU or GPU. `vllm`: the models that vLLM knows, on GPUs or with its CPU build; needs
    the extra `vllm`. `scripted`: replies from a table, for tests."""
    vllm: VllmConfig = VllmConfig()
    script: str | None = None
    """For `scripted`: a JSON file of replies, or a built-in table's name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when there is one."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for generation and training; 0: as many as the variable OMP_NUM_THREADS says, without it one a core."""
    batch_size: int = Field(default=256, ge=1)
    """Most replies generated at a time."""
    memory_gb: float | None = Field(default=None, gt=0)
    """For `hf`: most memory, in GiB, that replies in work may take besides the model: keys, values, logits. Fewer than
    `engine.batch_size` run at a time where that is too many. Unset: only `engine.batch_size` counts."""
    chunk_size: int = Field(default=2048, ge=1)
    """Requests handed to the engine in one piece and committed together; a restart redoes at most one chunk."""
