"""Attention in parts: over what all sequences share, over what some share, over each one's own; put together exactly.

Softmax over a row of keys can be taken part by part: each part gives its own result and the logarithm of its sum of
exponentials, and the results are averaged with the softmax of these logarithms (as Hydragen, arXiv 2402.05099, and cascade
attention do). So the keys of a shared beginning are read once for all sequences, as one matrix product.

Registered with Transformers as the attention `selfreward_cascade`; a forward pass holds the new tokens of all sequences in one
row, without padding. Tensor names end in their shape: N new tokens, G groups of a part, W tokens a group, H heads, K
key-value heads, Q queries to a key-value head (its heads times W), L keys, D head size.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

NAME = "selfreward_cascade"
FLASH_QUERIES = 16
"""From this many queries a group on PyTorch's fused CPU kernel beats plain matrix products."""
_LOWEST = -1e30
"""Stands for the logarithm of 0 where a difference of two such must not be NaN."""
_LEAST = 1e-30
"""Stands for a sum of nothing where it is divided by."""
_LN_2 = math.log(2)
_KNOWN = frozenset(
    {
        "scaling", "softcap", "sliding_window", "dropout", "position_ids", "is_causal", "use_cache", "output_attentions",
        "output_router_logits",
    }
)  # fmt: skip
"""Settings of an attention that are heeded here, or mean nothing to it: those of training, caches, masks and experts."""


@dataclass(frozen=True)
class Rule:
    """How a layer weighs keys: factor on the products, tanh cap on them, how many positions back it sees."""

    scale: float
    softcap: float | None
    window: int | None


class Pass(Protocol):
    """One forward pass: knows where keys and values go and what each new token sees."""

    def attend(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, rule: Rule) -> torch.Tensor:
        """Store the new keys and values; what the new tokens see, shape N, H, D."""
        ...


_ACTIVE: ContextVar[Pass] = ContextVar("active pass")


@contextmanager
def active(work: Pass, config: Any) -> Iterator[None]:
    """Inside, the attention of the model with this config belongs to this pass; outside it is the model's own."""
    token, own = _ACTIVE.set(work), config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _ACTIVE.reset(token)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **settings: Any
) -> tuple[torch.Tensor, None]:
    """What Transformers calls in each layer; shapes 1, heads, N, D. Returns shape 1, N, H, D."""
    # What is not known here may change what attention means (sinks, biases): whoever tries it must hear of it.
    strange = sorted(name for name, value in settings.items() if name not in _KNOWN and value is not None)
    if strange:
        raise NotImplementedError(f"attention with {', '.join(strange)}")
    scale = settings.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rule = Rule(scale, settings.get("softcap"), settings.get("sliding_window"))
    q_NHD, k_NKD, v_NKD = (states[0].transpose(0, 1) for states in (query, key, value))
    return _ACTIVE.get().attend(module.layer_idx, q_NHD, k_NKD, v_NKD, rule)[None], None


AttentionInterface.register(NAME, _attention)


@dataclass(frozen=True)
class Grid:
    """Where the new tokens stand when they are laid out as G groups of at most W; `index` counts G * W places and is None
    where every place is taken in turn."""

    index: torch.Tensor | None
    num_groups: int
    width: int

    @classmethod
    def of(cls, places: Sequence[int], num_groups: int, width: int, device: torch.device) -> "Grid":
        """The grid with new token n at place `places[n]`."""
        in_turn = len(places) == num_groups * width and list(places) == list(range(len(places)))
        return cls(None if in_turn else torch.tensor(places, device=device), num_groups, width)

    def lay_out(self, states_NHD: torch.Tensor) -> torch.Tensor:
        """Shape G, W, H, D; places without a token hold 0."""
        _, *shape = states_NHD.shape
        if self.index is None:
            return states_NHD.reshape(self.num_groups, self.width, *shape)
        laid = states_NHD.new_zeros(self.num_groups * self.width, *shape)
        laid[self.index] = states_NHD
        return laid.view(self.num_groups, self.width, *shape)

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """Back from shape G * W, ... to N, ..."""
        return states if self.index is None else states[self.index]


@dataclass(frozen=True)
class Part:
    """Keys and values, shape G, K, L, D, for the new tokens. `bias` (G, W or 1, L) is added to their products: 0 where a key is
    seen, -inf where not; None: all are seen. Without a grid there is one group, all tokens.
    """

    keys: torch.Tensor
    values: torch.Tensor
    grid: Grid | None = None
    bias: torch.Tensor | None = None


def look(q_NHD: torch.Tensor, parts: Sequence[Part], rule: Rule) -> torch.Tensor:
    """What the new tokens see in all parts together, shape N, H, D."""
    return _merged([look_at(q_NHD, part, rule) for part in parts])[0]


def look_and_weigh(q_NHD: torch.Tensor, parts: Sequence[Part], rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """What `look` gives, and the logarithm of the sum of exponentials, shape N, H."""
    output, logs_XNH = _merged([look_at(q_NHD, part, rule) for part in parts])
    return output, logs_XNH[0] if len(parts) == 1 else logs_XNH.logsumexp(0)


def _merged(found: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The results of X parts put together, shape N, H, D, and their logarithms, shape X, N, H."""
    logs_XNH = torch.stack([logs for _, logs in found])
    if len(found) == 1:
        return found[0][0], logs_XNH
    weight = logs_XNH.softmax(0).to(found[0][0].dtype)[..., None]
    total: torch.Tensor = found[0][0] * weight[0]
    for (output, _), part_weight in zip(found[1:], weight[1:], strict=True):
        total = torch.addcmul(total, output, part_weight)
    return total, logs_XNH


def look_at(q_NHD: torch.Tensor, part: Part, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """One part's result, shape N, H, D, and the logarithm of its sum of exponentials, shape N, H."""
    _, num_heads, size = q_NHD.shape
    num_kv = part.keys.shape[1]
    shared = num_heads // num_kv  # query heads a key-value head
    q_GWHD = q_NHD[None] if part.grid is None else part.grid.lay_out(q_NHD)
    groups, width = q_GWHD.shape[:2]
    # Query heads of one key-value head are like more queries to it.
    q_GKQD = q_GWHD.reshape(groups, width, num_kv, shared, size).permute(0, 2, 3, 1, 4).reshape(groups, num_kv, -1, size)
    bias = part.bias
    if bias is not None:
        bias = (bias.repeat(1, shared, 1) if shared > 1 and bias.shape[1] > 1 else bias)[:, None]
    output, logs = _weigh(q_GKQD, part, bias, rule)
    value_size = output.shape[-1]
    output = output.reshape(groups, num_kv, shared, width, value_size).permute(0, 3, 1, 2, 4)
    output = output.reshape(groups * width, num_heads, value_size)
    logs = logs.reshape(groups, num_kv, shared, width).permute(0, 3, 1, 2).reshape(groups * width, num_heads)
    return (output, logs) if part.grid is None else (part.grid.pick(output), part.grid.pick(logs))


def _weigh(q_GKQD: torch.Tensor, part: Part, bias: torch.Tensor | None, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of queries to the keys of their group: result (G, K, Q, D) and logarithm (G, K, Q)."""
    has_kernel = q_GKQD.device.type == "cpu" and rule.softcap is None and rule.window is None
    if has_kernel and q_GKQD.shape[2] >= FLASH_QUERIES and part.values.shape[-1] == q_GKQD.shape[-1]:
        mask = None if bias is None else bias.to(q_GKQD.dtype)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, logs = flash(q_GKQD, part.keys, part.values, 0.0, False, attn_mask=mask, scale=rule.scale)
        return output, logs
    # Powers of 2 are half the work of powers of e; the change of base hides in the scale.
    if rule.softcap is None:
        products = ((q_GKQD * (rule.scale / _LN_2)) @ part.keys.transpose(-1, -2)).float()
    else:
        products = torch.tanh(((q_GKQD * (rule.scale / rule.softcap)) @ part.keys.transpose(-1, -2)).float())
        products *= rule.softcap / _LN_2
    if bias is not None:
        products += bias
    # A token may see nothing of a part (a sliding window has passed it): then its sum is 0 and no difference may be NaN.
    highest = products.amax(-1, keepdim=True).clamp_(min=_LOWEST)
    products.sub_(highest).exp2_()
    total = products.sum(-1, keepdim=True).clamp_(min=_LEAST)
    logs = (highest + total.log2()).squeeze(-1) * _LN_2
    if part.values.dtype is torch.float32:
        return (products @ part.values).div_(total), logs
    # In 16 bits a sum over many keys may overflow before it is divided.
    return products.div_(total).to(part.values.dtype) @ part.values, logs


def as_bias(seen: torch.Tensor) -> torch.Tensor:
    """0 where a key is seen, -inf where not."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
