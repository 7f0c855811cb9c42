"""How many rows may run at a time: `engine.batch_size`, less where memory is short.

`engine.memory_gb` is planned with: what rows keep is known before they begin. A machine that is full all the same shows only
when something does not fit: what was in work is given back and begins again with half the rows. The next call of an engine
begins with the whole batch size again: what work meets must not depend on what was done before it, or a resumed chunk would
be another chunk.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from selfreward.engines.base import Shortage
from selfreward.errors import EngineError

Result = TypeVar("Result")
GIB = 2**30
_SAID = ("not enough memory", "allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


@dataclass(frozen=True)
class Budget:
    """`num_bytes`: most that rows in work may keep (None: no limit); the root, which is there once, and what one pass takes for
    itself do not count. `token_bytes`: keys and values of a token; `row_bytes`: what a row takes besides, logits above all."""

    num_bytes: float | None
    token_bytes: int
    row_bytes: int

    def needs(self, num_tokens: int, num_rows: int) -> int:
        """Bytes that places for so many tokens and so many rows take."""
        return num_tokens * self.token_bytes + num_rows * self.row_bytes

    def allows(self, num_tokens: int, num_rows: int) -> bool:
        """Whether they may be in work at a time."""
        return self.num_bytes is None or self.needs(num_tokens, num_rows) <= self.num_bytes

    def refuse(self, longest: int, most_new: int) -> EngineError:
        """The error for a prompt, `longest` tokens of which are its own, of which not even one row is allowed."""
        assert self.num_bytes is not None, "without a limit everything is allowed"
        return EngineError(
            f"engine.memory_gb={self.num_bytes / GIB:g} is too little for 1 reply of up to {most_new} tokens to a prompt of "
            f"{longest}: it takes {self.needs(longest + most_new, 1) / GIB:.2g} GiB; raise it, or lower the role's max_tokens"
        )


class Fitting:
    """The most rows at a time in one call. `told` takes a Shortage for each halving."""

    def __init__(self, batch_size: int, told: Callable[[Shortage], None]) -> None:
        self._wanted = self.most = batch_size
        self._told = told

    def attempt(self, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """What the work gives, None where the memory does not suffice. The error is gone on return: its traceback would keep
        everything that the work held. Call `halve` then, once nothing refers to what was in work."""
        try:
            return work(*arguments)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def halve(self, num_rows: int, longest: int) -> None:
        """Half as many rows from now on; `longest` is the longest prompt in work. Raises EngineError below one row."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if num_rows <= 1:
            raise EngineError(
                f"no memory for 1 reply at a time to a prompt of {longest} tokens (engine.batch_size={self._wanted}); "
                "lower the max_tokens of the role, use a smaller model or model.dtype, or a machine with more memory"
            )
        self.most = num_rows // 2
        self._told(Shortage(num_rows, self.most, longest))


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has a class for a full GPU, but for a full main memory only a message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _SAID)
