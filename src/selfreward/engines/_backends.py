"""How a model's memory is kept: `cascade`, where beginnings are shared, or `slots`, for models whose attention is their own.

Which one serves is decided once, by running both ways of reading a few tokens: equal logits are the proof. Tensor names end in
their shape: B prompts, R rows, V vocabulary.
"""

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers.cache_utils import DynamicCache

from selfreward.engines._cache import can_use_slots
from selfreward.engines._cascade_memory import Memory
from selfreward.engines._cascade_store import Model
from selfreward.engines._runner import PREFILL_TOKENS, SlotMemory, SlotRunner
from selfreward.engines._tree import Job, Leaf
from selfreward.errors import ModelError
from selfreward.types import Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_16 = 0.1
"""How far logits may lie apart, as a share of the largest one, for the two ways to be the same."""
_logger = logging.getLogger("selfreward.engines")


class Session(Protocol):
    """The memory of the rows of one family in progress."""

    @property
    def num_read(self) -> int:
        """Prompt tokens read so far."""
        ...

    def admit(self, leaves: Sequence[Leaf]) -> torch.Tensor:
        """Read prompts and add a row for each of their requests; logits of the rows' first tokens, shape new rows, V."""
        ...

    def step(self, ids_R: torch.Tensor) -> torch.Tensor:
        """Append one token to every row; logits of the next ones, shape R, V."""
        ...

    def take(self, index: Sequence[int]) -> None:
        """Keep `len(index)` rows: new row i is old row `index[i]`."""
        ...

    def num_kept(self, num_prompts: int, longest: int, num_rows: int, most_new: int) -> int:
        """Tokens that there are places for once so many prompts, of up to `longest` tokens of their own, and rows of up to
        `most_new` are in work."""
        ...

    def read(self, leaves: Sequence[Leaf]) -> torch.Tensor:
        """Read prompts and forget them; logits of their next tokens, shape B, V."""
        ...


class Backend:
    """Opens sessions for one model. Everything here belongs into `torch.inference_mode`."""

    def __init__(self, model: "PreTrainedModel", pad_token_id: int, context_length: int) -> None:
        """`context_length`: positions that the model has. Raises ModelError for a model without HF's caches."""
        arguments = frozenset(inspect.signature(model.forward).parameters)
        if "past_key_values" not in arguments:
            raise ModelError(f"engine.name=hf needs a model that takes past_key_values; {type(model).__name__} does not")
        self._most_tokens = PREFILL_TOKENS[model.device.type]
        self._slots = SlotRunner(model, pad_token_id, context_length)
        num_layers = len(DynamicCache(config=model.config).layers)
        self._model = Model(model, num_layers, context_length - 1, arguments)
        self.problem = self._try_cascade(model)
        """Why beginnings cannot be shared; None where they are."""
        with torch.inference_mode():
            self.bytes_per_token = _bytes_per_token(model)
        """Keys and values of one token in all layers."""
        if self.problem:
            _logger.warning("prompts of one call share nothing but equal prompts: %s (%s)", self.problem, type(model).__name__)

    @property
    def can_join(self) -> bool:
        """Whether rows may join a session that has rows already."""
        return self.problem is None

    def open(self, root: Sequence[int], most_new: int) -> Session:
        """A session for prompts that begin with `root`; at most `most_new` tokens a row follow."""
        if self.problem is None:
            return Memory(self._model, root, self._most_tokens, most_new)
        return SlotMemory(self._slots, most_new)

    def _try_cascade(self, model: Any) -> str | None:
        """None where attention in parts gives what the model's own does; else the reason why not to use it."""
        if not can_use_slots(model.config):
            return "its memory is more than keys and values"
        prompts = _samples(model)
        with torch.inference_mode():
            wanted = torch.cat([model(input_ids=prompt[None], use_cache=False).logits[0, -1:] for prompt in prompts])
            try:
                found = self._through_cascade(prompts)
                apart = (found.float() - wanted.float()).abs().max().item()
            except Exception as error:  # noqa: BLE001 - foreign code: each model fails in its own way; it is told
                return f"attention in parts fails with {type(error).__name__}: {error}"
        limit = _TOLERANCE.get(wanted.dtype, _TOLERANCE_16) * max(1.0, wanted.abs().max().item())
        if self._model.windows != (layers := _windows(model)):
            return f"its layers see {sorted(set(map(str, layers.values())))} positions back, which its attention does not say"
        # Logits that are not finite are an error of their own, told where replies are drawn.
        if apart <= limit or not torch.isfinite(wanted).all():
            return None
        return f"attention in parts gives other logits, {apart:.2g} apart"

    def _through_cascade(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of the prompts' next tokens: a root, a stem, leaves of two lengths, and two tokens that come one by one."""
        nobody = (Request("probe", "", Sampling(max_tokens=2), 0),)
        leaves = [Leaf(Job(tuple(prompt.tolist()[:-2]), nobody), 4, 6, 0) for prompt in prompts]
        memory = Memory(self._model, leaves[0].job.ids[:4], self._most_tokens, 2)
        memory.admit(leaves)
        for place in (-2, -1):
            logits = memory.step(torch.stack([prompt[place] for prompt in prompts]))
        return logits


def _windows(model: Any) -> dict[int, int | None]:
    """Layer -> how many positions back it sees, as Transformers' own cache takes it from the config; None: all."""
    layers = DynamicCache(config=model.config).layers
    return {number: getattr(layer, "sliding_window", None) or None for number, layer in enumerate(layers)}


def _bytes_per_token(model: Any) -> int:
    """Bytes of one token's keys and values in all layers that keep some."""
    cache, (prompt, _) = DynamicCache(config=model.config), _samples(model)
    model(input_ids=prompt[None, :2], past_key_values=cache, use_cache=True)
    kept = [states for layer in cache.layers for states in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(states.numel() * states.element_size() // 2 for states in kept if states is not None)


def _samples(model: Any) -> list[torch.Tensor]:
    """Two short token sequences of different lengths that begin alike."""
    size = model.get_input_embeddings().num_embeddings
    places = torch.arange(12, device=model.device)
    first = (places * 7919 + 13) % size
    second = torch.where(places < 6, first, (places * 104729 + 5) % size)[:10]
    return [first, second]
