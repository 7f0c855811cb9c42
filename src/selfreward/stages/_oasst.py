"""Seed data from an Open Assistant tree export (`.jsonl`, `.jsonl.gz`): human-ranked first replies -> `SeedData`.

As in the paper (section 3.1): one language, first turns only, the human rank-0 reply as the IFT response, EFT from
other prompts with several ranked replies. Only human-written, reviewed, not deleted messages are used.

One tree serves one purpose. Trees are taken in an order that depends on nothing but their ids, so every run over the
same file holds out the same prompts: first the held-out ranked sets, then the EFT ranked sets, then the held-out
prompts, then IFT. A file with too few trees gives each its share in proportion to the sizes asked for, at least one.
Ranked trees that are left then join the EFT ranked sets, because the judge's filter drops many sets and the `eft` stage
keeps `seed.num_eft` targets at most; with `seed.num_eft=0` there are no such sets.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfreward.artifacts import derive_seed
from selfreward.config import SeedConfig
from selfreward.errors import DataError
from selfreward.filters import normalise
from selfreward.stages._sources import Row, SeedData, read_lines
from selfreward.types import Demonstration, Drop, Prompt, RankedSet

READY = "ready_for_export"
SPLITS = ("ranked_heldout", "ranked_train", "prompts_heldout", "ift")
"""The order in which trees are handed out."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A usable first turn. `replies` and `ranks` are the usable ranked replies, best first, ranks counted from 0;
    `best` is the reply that humans ranked first, None when it is unusable."""

    id: str
    prompt: str
    replies: tuple[str, ...]
    ranks: tuple[int, ...]
    best: str | None

    @property
    def is_ranked(self) -> bool:
        """Whether it holds at least two replies that humans told apart."""
        return len(set(self.ranks)) > 1


def load_oasst(path: Path, config: SeedConfig) -> SeedData:
    """Read an export and split its trees. Each tree is one row: in one split, or dropped with a reason and kept as JSON
    (a first turn; without its replies where the prompt itself is unusable).

    Reasons: `not_ready`, `lang`, `deleted`, `unreviewed`, `synthetic`, `blank` (about the prompt), `duplicate`,
    `no_usable_reply`, `over_limit`. Replies left out are counted in the notes by the same reasons and `unranked`.
    Raises DataError for a malformed row and when a split stays empty.
    """
    if not path.is_file():
        raise DataError(f"Open Assistant export {str(path)!r} is not a file; set seed.path to a .jsonl or .jsonl.gz file")
    trees: list[Tree] = []
    drops: list[Drop] = []
    num_replies_dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for row in read_lines(path):
        parsed = _parse_tree(row, config.lang, num_replies_dropped)
        if isinstance(parsed, Drop):
            drops.append(parsed)
        elif normalise(parsed.prompt) in seen:
            drops.append(_drop(parsed, "duplicate"))
        else:
            seen.add(normalise(parsed.prompt))
            trees.append(parsed)
    splits, left = split_trees(trees, config)
    for name in SPLITS:
        if not splits[name] and not (name == "ranked_train" and config.num_eft == 0):
            raise DataError(f"{path} leaves no tree for {name}: {len(trees)} usable trees, dropped {_by_reason(drops)}")
    drops.extend(_drop(tree, "over_limit" if tree.replies else "no_usable_reply") for tree in left)
    return SeedData(
        ift=tuple(Demonstration(f"ift-{tree.id}", tree.prompt, tree.best or "") for tree in splits["ift"]),
        eft_train=(),
        ranked_train=tuple(_ranked_set(tree, "ranked") for tree in splits["ranked_train"]),
        prompts_heldout=tuple(Prompt(f"heldout-{tree.id}", tree.prompt, "heldout") for tree in splits["prompts_heldout"]),
        ranked_heldout=tuple(_ranked_set(tree, "heldout-ranked") for tree in splits["ranked_heldout"]),
        drops=tuple(drops),
        notes={"replies_dropped": dict(sorted(num_replies_dropped.items()))},
    )


def split_trees(trees: Sequence[Tree], config: SeedConfig) -> tuple[dict[str, list[Tree]], list[Tree]]:
    """Hand the trees out: (split -> trees, trees left over); see the module's docstring.

    `seed.num_eft` counts targets, one for each ranked reply, so it asks for `num_eft / mean replies` sets at least.
    """
    ordered = sorted(trees, key=lambda tree: (derive_seed("oasst", tree.id), tree.id))
    ranked = [tree for tree in trees if tree.is_ranked]
    mean_replies = sum(len(tree.replies) for tree in ranked) / len(ranked) if ranked else 1.0
    wanted = {
        "ranked_heldout": config.num_heldout_ranked,
        "ranked_train": math.ceil(config.num_eft / mean_replies),
        "prompts_heldout": config.num_heldout_prompts,
        "ift": config.num_ift,
    }
    scale = min(1.0, len(trees) / max(sum(wanted.values()), 1))
    fits: dict[str, Callable[[Tree], bool]] = {
        "ranked_heldout": lambda tree: tree.is_ranked,
        "ranked_train": lambda tree: tree.is_ranked,
        "prompts_heldout": lambda tree: True,
        "ift": lambda tree: tree.best is not None,
    }
    splits: dict[str, list[Tree]] = {}
    for name in SPLITS:
        quota = min(wanted[name], max(1, math.floor(wanted[name] * scale)))
        splits[name] = [tree for tree in ordered if fits[name](tree)][:quota]
        taken = {tree.id for tree in splits[name]}
        ordered = [tree for tree in ordered if tree.id not in taken]
    if config.num_eft:
        splits["ranked_train"] += [tree for tree in ordered if tree.is_ranked]
        ordered = [tree for tree in ordered if not tree.is_ranked]
    return splits, ordered


def _parse_tree(row: Row, lang: str, num_replies_dropped: Counter[str]) -> Tree | Drop:
    """One line of the export. Counts the replies that it leaves out."""
    root = row.get("prompt")
    if not isinstance(root, Mapping):
        raise row.fail("prompt", "must be the tree's first message, an object")
    first = Row(row.path, row.line, root, "prompt.")
    tree_id = str(row.value.get("message_tree_id") or first.text("message_id"))
    reason = None if row.value.get("tree_state", READY) == READY else "not_ready"
    reason = reason or _unusable(first, lang)
    if reason:
        message = {key: value for key, value in root.items() if key != "replies"}
        return Drop(tree_id, reason, json.dumps(message, ensure_ascii=False))
    usable: list[tuple[int, str]] = []
    best = None
    for reply in first.rows("replies") if root.get("replies") else []:
        reason = _unusable(reply, lang) or ("unranked" if reply.value.get("rank") is None else None)
        if reason:
            num_replies_dropped[reason] += 1
            continue
        rank = reply.rank("rank")
        usable.append((rank, reply.text("text")))
        if rank == 0 and best is None:
            best = reply.text("text")
    usable.sort(key=lambda item: item[0])
    ranks = sorted({rank for rank, _ in usable})
    return Tree(tree_id, first.text("text"), tuple(t for _, t in usable), tuple(ranks.index(r) for r, _ in usable), best)


def _unusable(message: Row, lang: str) -> str | None:
    """Why a message is left out, or None. Fields that the export does not have count as fine."""
    value: Mapping[str, Any] = message.value
    if value.get("lang", lang) != lang:
        return "lang"
    if value.get("deleted"):
        return "deleted"
    if "review_result" in value and value["review_result"] is not True:
        return "unreviewed"
    if value.get("synthetic"):
        return "synthetic"
    text = message.get("text")
    if not isinstance(text, str):
        raise message.fail("text", f"must be a text, got {type(text).__name__}")
    return None if text.strip() else "blank"


def _ranked_set(tree: Tree, prefix: str) -> RankedSet:
    return RankedSet(f"{prefix}-{tree.id}", tree.prompt, tree.replies, tree.ranks)


def _drop(tree: Tree, reason: str) -> Drop:
    return Drop(tree.id, reason, json.dumps(asdict(tree), ensure_ascii=False))


def _by_reason(drops: Sequence[Drop]) -> dict[str, int]:
    return dict(Counter(drop.reason for drop in drops))
