"""Batches that do not fit into memory are halved until they do, and whoever asks hears of it.

What a batch held is given back before a smaller one is tried. The next call of an engine begins with the whole batch size
again: what work meets must not depend on what was done before it, or a resumed chunk would be another chunk.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from selfreward.engines._runner import AnyJob, cut_batches
from selfreward.engines.base import Shortage
from selfreward.errors import EngineError

Result = TypeVar("Result")


class Fitting:
    """Runs the batches of one call. `told` takes a Shortage for each halving."""

    def __init__(self, batch_size: int, told: Callable[[Shortage], None]) -> None:
        self._wanted = self._most = batch_size
        self._told = told

    def run(
        self, work: Callable[[Sequence[AnyJob]], list[Result]], batch: Sequence[AnyJob]
    ) -> Iterator[tuple[Sequence[AnyJob], list[Result]]]:
        """(what ran together, what the work gave for it), until the batch is done.

        Raises EngineError where not even one row fits.
        """
        waiting = [batch]
        while waiting:
            part = waiting.pop(0)
            if _num_rows(part) > self._most:
                waiting[:0] = _split(part, self._most)
                continue
            done = self._try(work, part)
            if done is None:
                self._halve(part)
                waiting.insert(0, part)
            else:
                yield part, done

    def _try(self, work: Callable[[Sequence[AnyJob]], list[Result]], part: Sequence[AnyJob]) -> list[Result] | None:
        """What the work gives, None where the memory does not suffice. The error is gone on return: its traceback would keep
        everything that the batch held."""
        try:
            return work(part)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        return None

    def _halve(self, part: Sequence[AnyJob]) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        num_rows, longest = _num_rows(part), max(len(job.ids) for job in part)
        if num_rows == 1:
            raise EngineError(
                f"no memory for 1 reply at a time to a prompt of {longest} tokens (engine.batch_size={self._wanted}); "
                "lower the max_tokens of the role, use a smaller model or model.dtype, or a machine with more memory"
            )
        self._most = num_rows // 2
        self._told(Shortage(num_rows, self._most, longest))


def _num_rows(batch: Sequence[AnyJob]) -> int:
    return sum(len(job.requests) for job in batch)


def _split(batch: Sequence[AnyJob], most: int) -> list[list[AnyJob]]:
    """The batch in pieces of at most `most` rows, in order; a prompt with more rows is read once for each piece of them."""
    jobs = [job.rows(start, start + most) for job in batch for start in range(0, len(job.requests), most)]
    return cut_batches(jobs, most)


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """PyTorch has a class for a full GPU, but for a full main memory only a message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "not enough memory" in str(error) or "allocate memory" in str(error)
