"""What a stage spends, over all of its attempts: tokens, seconds, memory. None of it is part of a fingerprint.

A resumed stage adds up: each committed part stores what its work took, and finding the part again gives that back.
"""

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

USAGE = "usage"
UNTOLD = "replies_without_token_counts"
SHORTAGES = "out_of_memory"
COUNTED = (
    "asked_tokens", "read_tokens", "generated_tokens", "untold_tokens", "prefill_seconds", "decode_seconds", "engine_seconds",
    "trained_tokens", "training_seconds", "lost_tokens",
)  # fmt: skip
"""What adds up. `asked_tokens`: prompts, each counted for each of its replies; `read_tokens`: of them what the model really
read, shared beginnings once; `untold_tokens`: the asked ones of engines that do not tell what they read; `engine_seconds`:
from asking to the last reply; `trained_tokens` and `training_seconds`: of all examples over all epochs, and of the steps on
them (with a reference's log-probabilities), without loading and storing models; `lost_tokens`: what a server charged for
answers that could not be read and were asked for again, in none of the others."""
_ENGINE_TELLS = ("read_tokens", "prefill_seconds", "decode_seconds")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Spending:
    """The account of one stage. `shortages`: the most replies at a time after each batch that did not fit into memory."""

    def __init__(self, memory: "PeakMemory | None" = None) -> None:
        """`memory` of the process that spends; None where an account is only read."""
        self.tokens = {"prompt": 0, "generated": 0}
        self.num_untold = 0
        self.earlier_seconds = 0.0
        self.shortages: list[int] = []
        self.usage: dict[str, float] = dict.fromkeys(COUNTED, 0)
        self._memory = memory
        self._peaks: dict[str, Any] = {"peak_rss_bytes": None, "peak_gpu_bytes": None, "peak_of": None}

    def add_tokens(self, prompt: int, generated: int, num_untold: int = 0) -> None:
        """Count tokens that an engine read and wrote, and replies whose tokens no one told. With such replies the record's
        tokens are a lower bound, and its notes say for how many."""
        self.tokens["prompt"] += prompt
        self.tokens["generated"] += generated
        self.num_untold += num_untold

    def add_engine(self, seconds: float, told: Mapping[str, float] | None, asked: int, generated: int) -> None:
        """Count what one call of an engine took: `told` by itself, under the names of `COUNTED`; without that what its replies
        say: tokens `asked` and `generated`."""
        counts = {"asked_tokens": asked, "generated_tokens": generated, "untold_tokens": asked} if told is None else told
        for name, number in counts.items():
            self.usage[name] += number
        self.usage["engine_seconds"] += seconds

    def add_lost(self, tokens: int) -> None:
        """Count tokens of answers that could not be read."""
        self.usage["lost_tokens"] += tokens

    def add_training(self, tokens: int, seconds: float) -> None:
        """Count a finished training."""
        self.usage["trained_tokens"] += tokens
        self.usage["training_seconds"] += seconds

    def mark(self) -> "Mark":
        """Where the account stands now; see `since`."""
        return Mark(dict(self.tokens), self.num_untold, len(self.shortages), dict(self.usage))

    def since(self, mark: "Mark", seconds: float) -> dict[str, str]:
        """What was spent since, as a part's metadata."""
        usage = {name: round(number - mark.usage[name], 6) for name, number in self.usage.items()}
        return {
            **{f"{name}_tokens": str(number - mark.tokens[name]) for name, number in self.tokens.items()},
            UNTOLD: str(self.num_untold - mark.num_untold),
            "seconds": f"{seconds:.3f}",
            SHORTAGES: json.dumps(self.shortages[mark.num_shortages :]),
            USAGE: json.dumps({**usage, **self.peaks()}),
        }

    def add_stored(self, stored: Mapping[str, str]) -> None:
        """Count what an earlier attempt spent on a part: its metadata, as `since` made it."""
        prompt, generated = int(stored["prompt_tokens"]), int(stored["generated_tokens"])
        self.add_tokens(prompt, generated, int(stored[UNTOLD]))
        self.earlier_seconds += float(stored["seconds"])
        self.shortages += json.loads(stored[SHORTAGES])
        if USAGE not in stored:  # a part of a version that did not tell
            self.add_engine(0.0, None, prompt, generated)
            return
        usage = json.loads(stored[USAGE])
        self._peaks = _higher(self._peaks, usage)
        for name in COUNTED:
            self.usage[name] += usage.get(name, 0)  # versions before told fewer

    def record(self) -> dict[str, Any]:
        """For record.json. What no engine told is None, not 0."""
        told: dict[str, Any] = {
            name: round(number, 3) if name.endswith("seconds") else int(number) for name, number in self.usage.items()
        }
        if told["untold_tokens"] and not told["read_tokens"]:
            told |= dict.fromkeys(_ENGINE_TELLS)
        return told | self.peaks()

    def peaks(self) -> dict[str, Any]:
        """The highest of all attempts: `peak_rss_bytes`, `peak_gpu_bytes` (None without a GPU), `peak_of`."""
        return self._peaks if self._memory is None else _higher(self._memory.peak(), self._peaks)


class Mark:
    """A place in an account."""

    def __init__(self, tokens: dict[str, int], num_untold: int, num_shortages: int, usage: dict[str, float]) -> None:
        self.tokens, self.num_untold, self.num_shortages, self.usage = tokens, num_untold, num_shortages, usage


class PeakMemory:
    """The most memory that this process held since the object was made: in RAM, and on its GPU by PyTorch's count.

    Linux can set its high-water mark back. Where that is not possible the mark is that of the whole process so far, and
    `peak_of` says so. PyTorch is asked only where an engine or a training has imported it.
    """

    def __init__(self) -> None:
        self._of: Literal["stage", "process"] = "stage" if _set_mark_back() else "process"
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, Any]:
        """`peak_rss_bytes`, `peak_gpu_bytes` (None without a GPU), `peak_of`: `stage` or `process`."""
        cuda = _cuda()
        on_gpu = None if cuda is None else int(cuda.max_memory_allocated())
        return {"peak_rss_bytes": _mark(), "peak_gpu_bytes": on_gpu, "peak_of": self._of}


def _higher(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The higher of each peak; a mark of a whole process makes both together one of that kind."""
    sizes = {
        name: max((peaks[name] for peaks in (one, other) if peaks[name] is not None), default=None)
        for name in ("peak_rss_bytes", "peak_gpu_bytes")
    }
    kinds = {one["peak_of"], other["peak_of"]} - {None}
    return {**sizes, "peak_of": "process" if "process" in kinds else min(kinds, default=None)}


def _set_mark_back() -> bool:
    """Whether this process's high-water mark of RAM begins anew now."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:  # another system, or one that does not let processes do so: `peak_of` tells
        return False
    return True


def _mark() -> int:
    """The high-water mark of RAM in bytes."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _cuda() -> Any:
    """PyTorch's CUDA module where it is in use, else None. Looked up and not imported: most stages need no PyTorch."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_available() and cuda.is_initialized() else None
