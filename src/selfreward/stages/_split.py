"""Candidates -> the five seed tables: who gets a prompt, and which prompts are the same one.

Held-out sets come first, then EFT, then IFT. A prompt that overlaps with one of an earlier group leaves: equal text after
normalising, or a ROUGE-L above `seed.max_overlap`; so does one that overlaps with a prompt that a source holds out,
whether this run takes that one or not. The two held-out tables are one group, because neither is trained on: a
source that names its held-out rows may ask the same prompt in both. EFT targets and the ranked sets for more of them
are one group too. A split takes no row that a later one needs for its share.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from selfreward.config import SeedConfig
from selfreward.filters import RougePool, normalise
from selfreward.stages._pool import RANKED_RESERVE, SPLITS, Candidate, Pool, Reject, SplitName, drop_of

GROUPS: dict[SplitName, str] = {
    "ranked_heldout": "heldout",
    "prompts_heldout": "heldout",
    "eft_train": "eft",
    "ranked_train": "eft",
    "ift": "ift",
}
UNUSED = "unused_heldout"
"""What a source holds out and this run does not use: still no training prompt."""
_BATCH = 256
"""Candidates compared with the other splits at a time."""

Supply = Mapping[frozenset[SplitName], int]


def wanted(pool: Pool, config: SeedConfig) -> dict[SplitName, int]:
    """Items asked for, split by split; 0 where nothing can serve it.

    `seed.num_eft` counts targets, one for each ranked reply: it asks for as many sets as ready targets leave open.
    """
    mean_replies = pool.num_ranked_replies / pool.num_ranked if pool.num_ranked else 1.0
    supply = pool.supply()
    num_ready = sum(number for splits, number in supply.items() if "eft_train" in splits)
    asked: dict[SplitName, int] = {
        "ranked_heldout": config.num_heldout_ranked,
        "prompts_heldout": config.num_heldout_prompts,
        "eft_train": config.num_eft,
        "ranked_train": math.ceil(max(0, config.num_eft - num_ready) / mean_replies),
        "ift": config.num_ift,
    }
    served = frozenset().union(*supply)
    return {split: number if split in served else 0 for split, number in asked.items()}


def share_out(asked: Mapping[SplitName, int], supply: Supply) -> dict[SplitName, int]:
    """How many items each split gets when there are too few: shares in proportion to what is asked, at least one.

    The scarcest set of splits (fewest records that can serve it, for what it asks) is settled first; its records then
    count for no other split.
    """
    quotas: dict[SplitName, int] = dict.fromkeys(asked, 0)
    left = dict(supply)
    open_splits = [split for split in asked if asked[split]]
    while open_splits:
        subsets = [set(c) for n in range(1, len(open_splits) + 1) for c in itertools.combinations(open_splits, n)]
        sizes = [(sum(n for key, n in left.items() if key & subset), sum(asked[s] for s in subset)) for subset in subsets]
        tightest = min(range(len(subsets)), key=lambda i: (sizes[i][0] / sizes[i][1], -len(subsets[i])))
        (have, want), subset = sizes[tightest], subsets[tightest]
        if have >= want:
            return quotas | {split: asked[split] for split in open_splits}
        for split in subset:
            quotas[split] = max(1, asked[split] * have // want)
        open_splits = [split for split in open_splits if split not in subset]
        left = {key: number for key, number in left.items() if not key & subset}
    return quotas


class Splitter:
    """Hands candidates out. `tables` holds what each split got, `overlaps` what left: split -> split it overlaps with."""

    def __init__(self, pool: Pool, config: SeedConfig, reject: Reject) -> None:
        self.tables: dict[SplitName, list[Candidate]] = {split: [] for split in SPLITS}
        self.overlaps: dict[SplitName, Counter[str]] = {split: Counter() for split in SPLITS}
        self.asked = wanted(pool, config)
        self.quotas = share_out(self.asked, pool.supply())
        self._config = config
        self._reject = reject
        self._pool = pool
        self._left = pool.candidates()
        self._taken: dict[SplitName, set[str]] = {split: set() for split in SPLITS}
        self._texts: dict[SplitName, RougePool] = {split: RougePool() for split in SPLITS}

    def split(self) -> None:
        """Fill every split, then let ranked sets that are left join the EFT ones; the rest leaves as `over_limit`."""
        for place, split in enumerate(SPLITS):
            self._fill(split, self.quotas[split], SPLITS[place + 1 :])
        if self.quotas["ranked_train"]:
            self._fill("ranked_train", RANKED_RESERVE * self.asked["ranked_train"], ())
        for item in self._left:
            self._reject(drop_of(item.record, "over_limit"), item.source)
        self._left = []

    def _fill(self, split: SplitName, quota: int, later: Sequence[SplitName]) -> None:
        table = self.tables[split]
        while len(table) < quota:
            batch = self._next(split, min(_BATCH, quota - len(table)), later)
            if not batch:
                return
            gone = {id(item) for item in batch}
            self._left = [item for item in self._left if id(item) not in gone]
            near = self._near(split, batch)
            for item, other in zip(batch, near, strict=True):
                prompt = normalise(item.record.prompt)
                if other:
                    self.overlaps[split][other] += 1
                    self._reject(drop_of(item.record, f"overlaps_{_group(other)}"), item.source)
                elif item.record.split == "auto" and split != "eft_train" and prompt in self._taken[split]:
                    self._reject(drop_of(item.record, "duplicate"), item.source)
                else:
                    table.append(item)
                    self._taken[split].add(prompt)
                    self._texts[split].add(item.record.prompt)

    def _next(self, split: SplitName, number: int, later: Sequence[SplitName]) -> list[Candidate]:
        """The next candidates for a split, except those that a later split cannot spare."""
        spare = {other: sum(other in item.splits for item in self._left) - self.quotas[other] for other in later}
        batch = []
        for item in self._left:
            needed = [other for other in later if other in item.splits]
            if split not in item.splits or any(spare[other] <= 0 for other in needed):
                continue
            for other in needed:
                spare[other] -= 1
            batch.append(item)
            if len(batch) == number:
                break
        return batch

    def _near(self, split: SplitName, batch: Sequence[Candidate]) -> list[str | None]:
        """For each candidate the split whose prompt it repeats, or None. Rows that a source holds out repeat nothing."""
        others = [other for other in SPLITS if GROUPS[other] != GROUPS[split]]
        if GROUPS[split] == "heldout":
            others = list(SPLITS[: SPLITS.index(split)])
        prompts = [item.record.prompt for item in batch]
        close = {
            other: self._texts[other].overlapping(prompts, self._config.max_overlap) if self._config.max_overlap < 1 else []
            for other in others
        }
        unused = self._pool.near_heldout(prompts)
        found: list[str | None] = []
        for index, item in enumerate(batch):
            prompt = normalise(item.record.prompt)
            hits = (other for other in others if prompt in self._taken[other] or (close[other] and close[other][index]))
            hit = next(hits, UNUSED if unused[index] else None)
            found.append(hit if item.record.split != "heldout" else None)
        return found


def _group(split: str) -> str:
    return "heldout" if split == UNUSED else GROUPS[cast(SplitName, split)]


def shared_prompts(tables: Mapping[SplitName, Iterable[str]], limit: float) -> Iterator[tuple[SplitName, SplitName, str]]:
    """Every prompt of a split that overlaps with a split of another group: nothing, when the splits are right."""
    texts = {split: list(prompts) for split, prompts in tables.items()}
    for a, b in itertools.combinations(SPLITS, 2):
        if GROUPS[a] != GROUPS[b] and texts[a]:
            known = set(map(normalise, texts[a]))
            close = RougePool(texts[a]).overlapping(texts[b], limit) if limit < 1 else [False] * len(texts[b])
            for prompt, is_close in zip(texts[b], close, strict=True):
                if is_close or normalise(prompt) in known:
                    yield a, b, prompt
