"""What a user would pick instead, set up as well as a careful user would: HF `generate` and HF `generate_batch`.

Both begin with token ids and end with token ids, while ours begins and ends with texts: the peers are spared that work. They
use the same sampling and ignore the end token.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from speed.contest import BenchError, Made
from speed.workloads import TEMPERATURE, TOP_P, Workload

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One request as a peer sees it; `place` is its number in the workload."""

    place: int
    ids: tuple[int, ...]
    num_new: int


def rows_of(workload: Workload) -> list[Row]:
    """The workload's requests."""
    pairs = zip(workload.prompt_ids, workload.asked, strict=True)
    return [Row(place, ids, num_new) for place, (ids, num_new) in enumerate(pairs)]


@dataclass(frozen=True, slots=True)
class GenerateSetting:
    """`order`: what the rows are sorted by before they are cut into batches, `new` tokens or `prompt` length. A batch runs
    until its longest reply is done, so the one spares steps, the other padding."""

    batch_size: int
    order: str = "prompt"
    cache: str = "dynamic"

    def __str__(self) -> str:
        return f"batch {self.batch_size}, sorted by {self.order}, {self.cache} cache"


class Generate:
    """HF `generate`, batch by batch, prompts padded on the left."""

    name = "HF generate"

    def __init__(self, model: Any, pad: int, workload: Workload, setting: GenerateSetting) -> None:
        # What a call leaves open is filled in from here: without this the model's end token would count again.
        model.generation_config = GenerationConfig(pad_token_id=pad)
        self._model = model
        self._pad = pad
        self._rows = rows_of(workload)
        self._setting = setting

    @property
    def setting(self) -> str:
        """How it is set up, and the tokens that it makes beyond those asked for, because a batch ends as one."""
        surplus = sum(max(row.num_new for row in batch) - row.num_new for batch in self._batches() for row in batch)
        return f"{self._setting}" + (f", {surplus:,} surplus tokens cut" if surplus else "")

    def run(self) -> Made:
        """See Contestant."""
        return self._run(self._batches())

    def rate_of_some(self, num_rows: int) -> float:
        """New tokens a second over batches that hold at least `num_rows` rows, taken evenly from all full batches."""
        # The last batch may hold fewer rows, which is another batch size.
        batches = [batch for batch in self._batches() if len(batch) == self._setting.batch_size]
        wanted = min(len(batches), math.ceil(num_rows / self._setting.batch_size))
        some = [batches[(2 * number + 1) * len(batches) // (2 * wanted)] for number in range(wanted)]
        return sum(row.num_new for batch in some for row in batch) / self._run(some).seconds

    def close(self) -> None:
        """See Contestant."""
        self._model = None

    def _batches(self) -> list[list[Row]]:
        by_prompt = self._setting.order == "prompt"
        rows = sorted(
            self._rows, key=lambda row: (len(row.ids), row.num_new) if by_prompt else (row.num_new, len(row.ids)), reverse=True
        )
        size = self._setting.batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    @torch.inference_mode()
    def _run(self, batches: Sequence[Sequence[Row]]) -> Made:
        torch.manual_seed(1)
        got = [0] * len(self._rows)
        started = time.perf_counter()
        for batch in batches:
            width = max(len(row.ids) for row in batch)
            ids_BT = torch.tensor([[self._pad] * (width - len(row.ids)) + list(row.ids) for row in batch])
            mask_BT = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in batch])
            out_BT = self._model.generate(ids_BT, attention_mask=mask_BT, generation_config=self._config(batch))
            for row in batch:
                got[row.place] = min(row.num_new, out_BT.shape[1] - width)
        return Made(time.perf_counter() - started, tuple(got))

    def _config(self, batch: Sequence[Row]) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max(row.num_new for row in batch),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            pad_token_id=self._pad,
            use_cache=True,
            cache_implementation=None if self._setting.cache == "dynamic" else self._setting.cache,
        )


@dataclass(frozen=True, slots=True)
class BatchSetting:
    """`num_rows` at a time; a page holds `page_size` tokens, and only whole pages are shared; `forks`: the replies to one
    prompt are asked for as one request with several return sequences."""

    num_rows: int = 16
    max_tokens: int = 512
    page_size: int = 32
    forks: bool = False

    def __str__(self) -> str:
        forks = ", forks" if self.forks else ""
        return f"{self.num_rows} rows, {self.max_tokens} tokens a batch, pages of {self.page_size}{forks}"


class GenerateBatch:
    """HF `generate_batch`: continuous batching over pages that share prefixes.

    It runs through the manager that `generate_batch` itself uses, because only there each request has its own length. Starting
    and stopping the manager is not counted.
    """

    name = "HF generate_batch"

    def __init__(self, model: Any, pad: int, workload: Workload, setting: BatchSetting) -> None:
        model.generation_config = GenerationConfig(pad_token_id=pad)
        self._model = model
        self._pad = pad
        self._rows = rows_of(workload)
        longest = max(len(row.ids) + row.num_new for row in self._rows)
        # One page more for each row than its tokens fill, and a tenth on top: the scheduler keeps some free.
        self._num_blocks = math.ceil(1.1 * setting.num_rows * (math.ceil(longest / setting.page_size) + 1))
        self._setting = setting

    @property
    def setting(self) -> str:
        """How it is set up."""
        return f"{self._setting}, {self._num_blocks} blocks"

    def run(self) -> Made:
        """See Contestant. BenchError for a request that failed."""
        return self._run(self._rows)

    def rate_of_some(self, num_rows: int) -> float:
        """New tokens a second over about `num_rows` rows, taken evenly, all replies to a prompt together."""
        prompts = sorted({row.ids for row in self._rows})
        chosen = set(prompts[:: max(1, round(len(self._rows) / num_rows))])
        some = [row for row in self._rows if row.ids in chosen]
        return sum(row.num_new for row in some) / self._run(some).seconds

    def close(self) -> None:
        """See Contestant."""
        self._model = None

    def _groups(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows with one prompt and one length, longest prompts first."""
        by_key: dict[tuple[tuple[int, ...], int], list[Row]] = {}
        for row in rows:
            by_key.setdefault((row.ids, row.num_new), []).append(row)
        # As `generate_batch` sorts when it shares prefixes.
        return iter(sorted(by_key.values(), key=lambda group: group[0].ids, reverse=True))

    def _run(self, rows: Sequence[Row]) -> Made:
        groups = list(self._groups(rows))
        num_replies = {len(group) for group in groups}
        forks = self._setting.forks and len(num_replies) == 1
        got = [0] * len(self._rows)
        number = max(num_replies) if forks else 1
        with self._model.continuous_batching_context_manager(
            generation_config=self._config(number), continuous_batching_config=self._batching(), warmup=False
        ) as manager:
            started = time.perf_counter()
            waiting: dict[str, list[Row]] = {}
            for group in groups:
                for asked in [group] if forks else [[row] for row in group]:
                    name = manager.add_request(list(asked[0].ids), max_new_tokens=asked[0].num_new)
                    waiting[name] = list(asked)
            for _ in range(len(rows)):
                result = self._next(manager)
                row = waiting[result.request_id.split("__")[0]].pop()
                got[row.place] = len(result.generated_tokens)
            seconds = time.perf_counter() - started
        return Made(seconds, tuple(got))

    @staticmethod
    def _next(manager: Any) -> Any:
        while True:
            result = manager.get_result(timeout=1)
            if result is not None and result.error is not None:
                raise BenchError(f"generate_batch failed: {result.error}")
            if result is not None and result.is_finished():
                return result
            if result is None and not manager.is_running():
                raise BenchError("generate_batch ended before all replies were there")

    def _config(self, num_replies: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max(row.num_new for row in self._rows),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            pad_token_id=self._pad,
            eos_token_id=NO_TOKEN,
            num_return_sequences=num_replies,
        )

    def _batching(self) -> ContinuousBatchingConfig:
        return ContinuousBatchingConfig(
            page_size=self._setting.page_size,
            num_blocks=self._num_blocks,
            max_batch_tokens=self._setting.max_tokens,
            max_requests_per_batch=self._setting.num_rows,
            seed=1,
        )


Tell = Callable[[str], None]


SHORT_SECONDS = 10
"""A try that takes less is done twice, and the better one counts: a disturbed try must not cost a peer its best setting."""


class Search:
    """Keeps the fastest setting of those tried. `rate` gives a setting's new tokens a second."""

    def __init__(self, rate: Callable[[Any], float], tell: Tell) -> None:
        self._rate = rate
        self._tell = tell
        self._tried: dict[Any, float] = {}

    def best(self, settings: Sequence[Any]) -> Any:
        """The fastest of these and all tried before; none is measured again."""
        for setting in settings:
            if setting not in self._tried:
                started = time.perf_counter()
                rate = self._rate(setting)
                if time.perf_counter() - started < SHORT_SECONDS:
                    rate = max(rate, self._rate(setting))
                self._tried[setting] = rate
                self._tell(f"tuning: {setting}: {self._tried[setting]:,.0f} tokens/s")
        return max(self._tried, key=lambda setting: self._tried[setting])

    def best_size(self, settings: Sequence[Any], name: str, most: int) -> Any:
        """As `best`, and on to half or twice the size `name` (`most` at most) while the best one lies at an end."""
        best = self.best(settings)
        sizes = [getattr(setting, name) for setting in settings]
        low, high = min(sizes), max(sizes)
        while (size := getattr(best, name)) == low > 1 or size == high < most:
            if size == low > 1:
                size = low = low // 2
            else:
                size = high = min(2 * high, most)
            best = self.best([replace(best, **{name: size})])
        return best


def best_generate(model: Any, pad: int, workload: Workload, sizes: Sequence[int], num_rows: int, tell: Tell) -> Generate:
    """The fastest of the batch sizes, with the better order where lengths differ, and the better cache."""

    def rate(setting: GenerateSetting) -> float:
        return Generate(model, pad, workload, setting).rate_of_some(num_rows)

    ragged = len(set(workload.asked)) > 1
    sizes = sorted({min(size, len(workload.requests)) for size in sizes})
    settings = [GenerateSetting(size, order) for size in sizes for order in (("new", "prompt") if ragged else ("prompt",))]
    Generate(model, pad, workload, settings[0]).rate_of_some(1)  # the first call of a process is slower
    search = Search(rate, tell)
    best = search.best_size(settings, "batch_size", len(workload.requests))
    return Generate(model, pad, workload, search.best([replace(best, cache="static")]))


def best_batch(model: Any, pad: int, workload: Workload, sizes: Sequence[int], num_rows: int, tell: Tell) -> GenerateBatch:
    """The fastest setting: rows at a time first, then tokens a batch, then pages, then forks where replies allow them."""

    def rate(setting: BatchSetting) -> float:
        return GenerateBatch(model, pad, workload, setting).rate_of_some(num_rows)

    sizes = sorted({min(size, len(workload.requests)) for size in sizes})
    GenerateBatch(model, pad, workload, BatchSetting(sizes[0])).rate_of_some(1)
    search = Search(rate, tell)
    best = search.best_size([BatchSetting(size) for size in sizes], "num_rows", len(workload.requests))
    best = search.best([replace(best, max_tokens=most) for most in (128, 2048)])
    best = search.best([replace(best, page_size=size) for size in (16, 128)])
    if len(set(workload.asked)) == 1:
        best = search.best([replace(best, forks=True)])
    return GenerateBatch(model, pad, workload, best)
