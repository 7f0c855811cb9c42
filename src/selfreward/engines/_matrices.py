"""A model's large matrices, packed for oneDNN, the library of products that PyTorch brings for a CPU.

`torch.nn.Linear` in float32 asks MKL, which lays the weights out anew in every call. oneDNN takes weights that were laid out
once, in a form of its own; measured, its products take a tenth to a third less time (docs/decisions/0009-packed-matrices.md).
For each number of rows that it has not seen it first builds a program, which stays: inputs are filled up to few numbers.
Tensor names end in their shape: N rows, I numbers of a row that goes in, O of one that comes out.
"""

import logging
import platform
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from selfreward.engines._memory import is_out_of_memory
from selfreward.errors import EngineError

_LEAST_WEIGHTS = 2**17
"""Smaller matrices gain less than the call costs more."""
_SIZES_A_DOUBLING = 8
"""Numbers of rows that are used between one and twice as many: at most an eighth of the rows is filling."""
_MACHINES = frozenset({"x86_64", "AMD64"})
_CLOSE = 1e-3
"""How far the trial's products may lie apart; they are up to 60."""
_logger = logging.getLogger("selfreward.engines")


class PackedLinear(torch.nn.Module):
    """Stands for a `torch.nn.Linear` where nothing is trained."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        """Raises RuntimeError where memory is short."""
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.bias = bias_O
        # Not a parameter: PyTorch can neither move nor save what has this form.
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous())

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weights, shape O, I: for models that look at them."""
        return self._packed.to_dense()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Shape ..., I becomes ..., O. RuntimeError where a gradient is asked for: PyTorch would only warn."""
        if states.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("packed matrices have no gradient: call the model inside torch.inference_mode()")
        rows_NI = states.reshape(-1, self.in_features)
        num_rows = len(rows_NI)
        filling = filled(num_rows) - num_rows
        if filling:
            rows_NI = functional.pad(rows_NI, (0, 0, 0, filling))
        products_NO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows_NI, self._packed, self.bias, "none", [], "")
        return products_NO[:num_rows].view(*states.shape[:-1], self.out_features)

    def _save_to_state_dict(self, *_: Any) -> None:
        # Without this a folder would be written that lacks the weights, and nobody would hear of it.
        raise RuntimeError("a model that an engine has taken over cannot be saved: its matrices are packed")


def pack(model: torch.nn.Module) -> None:
    """Replace large float32 matrices on a CPU; a replaced one's weights are let go of.

    Raises EngineError where memory is short.
    """
    if not is_possible():
        return
    # Lists of whole modules would keep the weights of those that were replaced until the end.
    for parent in [module for module in model.modules() if not isinstance(module, torch.nn.Linear)]:
        for name in [name for name, _ in parent.named_children()]:
            child = getattr(parent, name)
            if _is_large(child):
                setattr(parent, name, _packed(child))


def is_possible() -> bool:
    """Whether this machine has what was measured: PyTorch with oneDNN, not switched off, on an x86 processor."""
    library: Any = torch.backends.mkldnn
    return library.is_available() and library.enabled and platform.machine() in _MACHINES and _trial() is None


def filled(num_rows: int) -> int:
    """The least number of rows, not below this one, that inputs are filled up to."""
    step = max(1, (1 << (num_rows - 1).bit_length()) // 2 // _SIZES_A_DOUBLING)
    return -(-num_rows // step) * step


@cache
def _trial() -> str | None:
    """What is wrong with packed products here, told once; None where they are those of the weights.

    The two operations are PyTorch's own but not part of what it promises.
    """
    weight_OI = torch.linspace(-1, 1, 131 * 67).view(131, 67)
    rows_NI, bias_O = torch.linspace(-1, 1, 9 * 67).view(9, 67), torch.linspace(-1, 1, 131)
    try:
        with torch.inference_mode():
            products_NO = PackedLinear(weight_OI, bias_O)(rows_NI)
            apart = (products_NO - (rows_NI @ weight_OI.T + bias_O)).abs().max().item()
        problem = None if apart <= _CLOSE else f"its products are {apart:.2g} apart"
    except (AttributeError, RuntimeError, TypeError) as error:  # an operation that is gone, or takes other arguments
        problem = f"{type(error).__name__}: {error}"
    if problem:
        _logger.warning("matrices are not packed for oneDNN, so large ones are slower: %s", problem)
    return problem


def _packed(linear: torch.nn.Linear) -> PackedLinear:
    try:
        return PackedLinear(linear.weight, linear.bias)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise EngineError(
            f"no memory to lay out a matrix of {linear.out_features} x {linear.in_features} weights for the processor; "
            "free some, or set model.path to a smaller model"
        ) from error


def _is_large(module: torch.nn.Module) -> bool:
    """Whether it is a matrix that gains: exactly PyTorch's own, with nothing hooked to it or put in its place."""
    if type(module) is not torch.nn.Linear or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and weight.numel() >= _LEAST_WEIGHTS
