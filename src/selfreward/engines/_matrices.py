"""A model's large matrices, packed for oneDNN, the library of products that PyTorch brings for a CPU.

`torch.nn.Linear` in float32 asks MKL, which lays the weights out anew in every call. oneDNN takes weights that were laid out
once, in a form of its own; measured, its products take a sixth to a third less time (docs/decisions/0009-packed-matrices.md).
For sizes of inputs that it has not seen it first builds a program, which stays: inputs are filled up to few sizes.
"""

import platform

import torch
from torch.nn import functional

_LEAST_WEIGHTS = 2**17
"""Smaller matrices gain less than the call costs more."""
_SIZES_A_DOUBLING = 8
"""Numbers of rows that are used between one and twice as many: at most an eighth of the rows is filling."""
_MACHINES = frozenset({"x86_64", "AMD64"})


class PackedLinear(torch.nn.Module):
    """Stands for a `torch.nn.Linear` where nothing is trained."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Raises RuntimeError where memory is short."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # Not a parameter: PyTorch can neither move nor save what has this form.
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())

    @property
    def weight(self) -> torch.Tensor:
        """A copy of the weights, shape out, in: for models that look at them."""
        return self._packed.to_dense()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Shape ..., in becomes ..., out."""
        rows = states.reshape(-1, self.in_features)
        num_rows = len(rows)
        filling = filled(num_rows) - num_rows
        if filling:
            rows = functional.pad(rows, (0, 0, 0, filling))
        products: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return products[:num_rows].view(*states.shape[:-1], self.out_features)


def pack(model: torch.nn.Module) -> None:
    """Replace large float32 matrices on a CPU; each one's own weights are given back unless the model has them elsewhere.

    Raises RuntimeError where memory is short.
    """
    if not is_possible():
        return
    # A list of all modules would keep the weights of those that were replaced until the end.
    parents = [module for module in model.modules() if not isinstance(module, torch.nn.Linear)]
    for parent in parents:
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and _is_large(child):
                setattr(parent, name, PackedLinear(child))


def is_possible() -> bool:
    """Whether this machine's PyTorch has oneDNN for x86, where it was measured."""
    has_library: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_library and platform.machine() in _MACHINES


def filled(num_rows: int) -> int:
    """The least number of rows, not below this one, that inputs are filled up to."""
    step = max(1, (1 << (num_rows - 1).bit_length()) // 2 // _SIZES_A_DOUBLING)
    return -(-num_rows // step) * step


def _is_large(linear: torch.nn.Linear) -> bool:
    """Whether it is a matrix that gains: exactly PyTorch's own, with nothing hooked to it."""
    if type(linear) is not torch.nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return False
    weight = linear.weight
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and weight.numel() >= _LEAST_WEIGHTS
