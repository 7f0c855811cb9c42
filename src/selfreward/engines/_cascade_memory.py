"""Keys and values of sequences that share beginnings, in stores that are made once and written in place.

A family has one root, which all its sequences begin with; each prompt has a slot with what follows the root, and each row
(reply) continues one prompt with tokens of its own. Prompts and rows come and go at any time: those that are there always
stand at the front of their store, so that no step touches others.

Tensor names end in their shape: N new tokens, P prompts, B prompts being read, R rows, G groups of new tokens, W places of a
group, K key-value heads, L tokens of a store, D head size, V vocabulary.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from selfreward.engines import _kernels
from selfreward.engines._cache import FIRST_SLOTS
from selfreward.engines._cascade import FLASH_QUERIES, Grid, Part, Rule, as_bias, look, look_and_weigh
from selfreward.engines._cascade_store import Model, Root, Store
from selfreward.engines._tree import Leaf

MOST_PADDED = 4
"""Places of a pass, padding included, for each token that it may have."""


class Reading:
    """A pass over the tokens of some sequences, each after what its item of the store holds and after the root."""

    def __init__(self, root: "Root", store: Store, first: int, spans: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Sequence i is item `first + i`; `spans[i]` are the places that its new tokens take, (from, to)."""
        self._root, self._store = root, store
        self._items = slice(first, first + len(spans))
        self._num_places = max(end for _, end in spans)
        sizes = [end - start for start, end in spans]
        width = max(sizes)
        start_G = torch.tensor([start for start, _ in spans])
        item_N = torch.repeat_interleave(torch.tensor(sizes))
        lane_N = torch.cat([torch.arange(size) for size in sizes])
        place_N = (start_G[item_N] + lane_N).to(device)
        self._place = ((item_N + first).to(device), place_N)
        self._grid = Grid(None if min(sizes) == width else (item_N * width + lane_N).to(device), len(sizes), width)
        self._query_GW = (start_G[:, None] + torch.arange(width)).to(device)
        self._key_L = torch.arange(self._num_places, device=device)
        self._seen = self._key_L <= self._query_GW[..., None]
        self._bias = as_bias(self._seen)
        self.positions_N = place_N + root.length

    def attend(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, rule: Rule) -> torch.Tensor:
        """See Pass."""
        self._store.write(layer, self._place, k_NKD, v_NKD)
        rule, is_cut = _reach(rule, self._root.length + self._num_places)
        bias = self._bias
        if is_cut:
            assert rule.window is not None
            bias = as_bias(self._seen & (self._query_GW[..., None] - self._key_L < rule.window))
        parts = [Part(*self._store.read(layer, self._items, self._num_places), self._grid, bias)]
        return look(q_NHD, [*self._root.parts(layer, self.positions_N, rule), *parts], rule)


def _reach(rule: Rule, num_positions: int) -> tuple[Rule, bool]:
    """The rule without a window that is wider than all positions; and whether one is left."""
    if rule.window is None or num_positions <= rule.window:
        return Rule(rule.scale, rule.softcap, None), False
    return rule, True


class Memory:
    """Root, prompts and rows of one family, and the passes that fill them."""

    def __init__(self, model: Model, root: Sequence[int], most_tokens: int, most_new: int) -> None:
        """Read the root. `most_tokens`: most tokens, of whole prompts, in one pass while reading. `most_new`: most tokens of
        a row."""
        self._model, self._most_tokens, self._most_new = model, most_tokens, most_new
        self.num_read = 0
        self._root = Root()
        if root:
            store = Store(model.num_layers, 1, len(root))
            self._read(store, 0, [root], [0])
            self._root.fill(store, len(root))
        self._prompts = Store(model.num_layers, 0, 0)
        self._own = Store(model.num_layers, 0, 0)
        self._lengths: list[int] = []  # of prompts, behind the root
        self._prompt_of: list[int] = []  # of rows
        self._times: list[int] = []  # tokens of rows
        self._layout: _Layout | None = None

    @property
    def num_rows(self) -> int:
        """Rows there are."""
        return len(self._prompt_of)

    @property
    def bytes_per_token(self) -> int:
        """What the keys and values of one token take in all layers, once a prompt was admitted."""
        return self._prompts.bytes_per_place

    def num_kept(self, num_prompts: int, longest: int, num_rows: int, most_new: int) -> int:
        """Tokens that the stores have places for once so many prompts and rows are in work: stores never shrink."""
        prompts, own = self._prompts, self._own
        return max(num_prompts, prompts.num_items) * max(longest, prompts.num_places) + max(num_rows, own.num_items) * max(
            most_new, own.num_places
        )

    def admit(self, leaves: Sequence[Leaf]) -> torch.Tensor:
        """Read prompts and add a row for each of their requests; logits of the rows' first tokens, shape new rows, V."""
        logits_BV = self.read(leaves, keep=True)
        sizes = [len(leaf.job.requests) for leaf in leaves]
        first = len(self._lengths)
        self._lengths += [len(leaf.job.ids) - self._root.length for leaf in leaves]
        self._prompt_of += [first + number for number, size in enumerate(sizes) for _ in range(size)]
        self._times += [0] * sum(sizes)
        self._layout = None
        return logits_BV.repeat_interleave(torch.tensor(sizes, device=logits_BV.device), dim=0)

    def read(self, leaves: Sequence[Leaf], keep: bool = False) -> torch.Tensor:
        """Read prompts, those with a common stem after it; logits of their next tokens, shape B, V. `keep`: into slots."""
        bodies = [leaf.job.ids[self._root.length :] for leaf in leaves]
        longest = max(map(len, bodies))
        if keep:
            store, first = self._prompts, len(self._lengths)
            if first + len(leaves) > store.num_items or longest > store.num_places:
                size = max(first + len(leaves), store.num_items), max(longest, store.num_places)
                store.resize(*size, (first, max(self._lengths, default=0)))
        else:
            store, first = Store(self._model.num_layers, len(leaves), longest), 0
        return self._read(store, first, bodies, self._read_stems(store, first, leaves))

    def step(self, ids_R: torch.Tensor) -> torch.Tensor:
        """Append one token to every row; logits of the next ones, shape R, V."""
        if self._layout is None:
            self._layout = _Layout(self._prompt_of, self._lengths, self._root.length, self._model.device)
        # Rows that have ended and wait to be taken out stay at their last place and position.
        place = [min(time, self._most_new - 1) for time in self._times]
        self._make_room_for(max(place) + 1)
        work = _Step(self._layout, self._root, self._prompts, self._own, place)
        positions_R = work.positions_R.clamp_(max=self._model.last_position)
        logits_RV = self._model.run(work, ids_R, positions_R, None)
        self._times = [time + 1 for time in self._times]
        return logits_RV

    def take(self, index: Sequence[int]) -> None:
        """Keep `len(index)` rows: new row i is old row `index[i]`. Prompts without rows leave."""
        # Rows without a token of their own may lie behind the store's end: they have nothing to move.
        moves = [(row, old) for row, old in enumerate(index) if row != old and self._times[old]]
        self._own.move(moves, min(max(self._times, default=0), self._most_new))
        self._prompt_of = [self._prompt_of[old] for old in index]
        self._times = [self._times[old] for old in index]
        used = set(self._prompt_of)
        number = {prompt: prompt for prompt in used if prompt < len(used)}
        gaps = iter([prompt for prompt in range(len(used)) if prompt not in used])
        filled = [(next(gaps), prompt) for prompt in sorted(used) if prompt >= len(used)]
        if filled:
            self._prompts.move(filled, max(self._lengths))
            number |= {old: new for new, old in filled}
        lengths = {number[prompt]: self._lengths[prompt] for prompt in used}
        self._lengths = [lengths[prompt] for prompt in range(len(used))]
        self._prompt_of = [number[prompt] for prompt in self._prompt_of]
        self._layout = None

    def _make_room_for(self, num_places: int) -> None:
        """Places for the rows' own tokens."""
        own = self._own
        if num_places > own.num_places or self.num_rows > own.num_items:
            wanted = num_places if num_places <= own.num_places else max(num_places, FIRST_SLOTS, 2 * own.num_places)
            used = (min(own.num_items, self.num_rows), own.num_places)
            own.resize(max(own.num_items, self.num_rows), max(min(wanted, self._most_new), own.num_places), used)

    def _read_stems(self, store: Store, first: int, leaves: Sequence[Leaf]) -> list[int]:
        """Read each stem of several of these leaves once and copy it into their items; how much of each leaf is read."""
        members: dict[int, list[int]] = {}
        for place, leaf in enumerate(leaves):
            members.setdefault(leaf.stem, []).append(place)
        shared = [places for places in members.values() if len(places) > 1 and leaves[places[0]].num_stem > self._root.length]
        done = [0] * len(leaves)
        if not shared:
            return done
        stems = [leaves[places[0]].job.ids[self._root.length : leaves[places[0]].num_stem] for places in shared]
        stem_store = Store(self._model.num_layers, len(stems), max(map(len, stems)))
        self._read(stem_store, 0, stems, [0] * len(stems))
        for number, places in enumerate(shared):
            for place in places:
                done[place] = len(stems[number])
        source = {place: number for number, places in enumerate(shared) for place in places}
        sources = torch.tensor([source.get(place, 0) for place in range(len(leaves))], device=self._model.device)
        # Who has no stem copies one too, and writes over it.
        store.copy_from(stem_store, slice(first, first + len(leaves)), sources)
        return done

    def _read(self, store: Store, first: int, bodies: Sequence[Sequence[int]], done: Sequence[int]) -> torch.Tensor:
        """Read what is not done of each body into item `first + i`, in passes; logits of the last tokens, shape B, V."""
        logits, device = [], self._model.device
        for begin, end in _passes([len(body) - start for body, start in zip(bodies, done, strict=True)], self._most_tokens):
            spans = [(done[i], len(bodies[i])) for i in range(begin, end)]
            for part in _chunks(spans, self._most_tokens):
                work = Reading(self._root, store, first + begin, part, device)
                ids = [token for i, span in enumerate(part) for token in bodies[begin + i][slice(*span)]]
                last_B = torch.tensor(list(accumulate(stop - start for start, stop in part)), device=device) - 1
                out = self._model.run(work, torch.tensor(ids, device=device), work.positions_N, last_B)
                self.num_read += len(ids)
            logits.append(out)
        return torch.cat(logits)


class _Layout:
    """How rows stand to their prompts; stays the same from step to step while no row comes or goes."""

    def __init__(self, prompt_of: Sequence[int], lengths: Sequence[int], num_root: int, device: torch.device) -> None:
        """Row r continues prompt `prompt_of[r]`; `lengths` are the prompts', behind the root."""
        lanes = [0] * len(lengths)
        lane_of = []
        for prompt in prompt_of:
            lane_of.append(lanes[prompt])
            lanes[prompt] += 1
        width = max(lanes)
        places = [prompt * width + lane for prompt, lane in zip(prompt_of, lane_of, strict=True)]
        self.grid = Grid.of(places, len(lengths), width, device)
        self.num_rows, self.longest = len(prompt_of), max(lengths)
        length_P = torch.tensor(lengths, device=device)
        key_L = torch.arange(self.longest, device=device)
        self.key_positions_L = key_L + num_root
        self.seen_prompt = (key_L < length_P[:, None])[:, None]
        self.is_uneven = min(lengths) < self.longest
        self.start_R = (length_P + num_root)[torch.tensor(prompt_of, device=device)]
        self.length_P, self.none_P = np.array(lengths), np.zeros(len(lengths), np.int64)
        # Threads take rows in blocks: prompts, which are mostly sorted by length, are dealt to them in turns.
        prompt_R = np.array(prompt_of)
        self.rows = (np.lexsort((prompt_R, prompt_R % torch.get_num_threads())), prompt_R)
        """Row numbers in the order to take them, and each row's prompt."""

    @cached_property
    def bias_prompt(self) -> torch.Tensor | None:
        """What each prompt's rows do not see of it; None where all prompts are equally long."""
        return as_bias(self.seen_prompt) if self.is_uneven else None


class _Step:
    """A pass over one new token a row."""

    def __init__(self, layout: _Layout, root: Root, prompts: Store, own: Store, place: Sequence[int]) -> None:
        """Row r's token goes to its place `place[r]`."""
        self._layout, self._root, self._prompts, self._own = layout, root, prompts, own
        device = layout.start_R.device
        self._num_places = max(place) + 1
        self._rows = slice(0, layout.num_rows)
        self._place_R = torch.tensor(place, device=device)
        self._count_R = np.array(place) + 1
        self._is_even = min(place) == max(place)
        # One place for all rows is a slice; others need an index.
        self._place: Any = (self._rows, place[0]) if self._is_even else (torch.arange(len(place), device=device), self._place_R)
        self._key_L = torch.arange(self._num_places, device=device)
        self.positions_R = layout.start_R + self._place_R

    @cached_property
    def _seen(self) -> torch.Tensor:
        return (self._key_L <= self._place_R[:, None])[:, None]

    @cached_property
    def _bias(self) -> torch.Tensor | None:
        return None if self._is_even else as_bias(self._seen)

    def attend(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, rule: Rule) -> torch.Tensor:
        """See Pass."""
        layout = self._layout
        self._own.write(layer, self._place, k_NKD, v_NKD)
        rule, is_cut = _reach(rule, self._root.length + layout.longest + self._num_places)
        before = self._root.parts(layer, self.positions_R, rule)
        if not is_cut and rule.softcap is None and _kernels.can_attend(q_NHD, k_NKD, v_NKD):
            return self._attend_compiled(layer, q_NHD, before, rule)
        bias_prompt, bias_own = self._through(rule.window) if is_cut else (layout.bias_prompt, self._bias)
        own = Part(*self._own.read(layer, self._rows, self._num_places), Grid(None, layout.num_rows, 1), bias_own)
        return look(q_NHD, [*before, self._of_prompts(layer, bias_prompt), own], rule)

    def _attend_compiled(self, layer: int, q_NHD: torch.Tensor, before: list[Part], rule: Rule) -> torch.Tensor:
        """What `attend` gives, by compiled loops; `before` are the parts in front of the prompts."""
        layout = self._layout
        prompts, own = self._prompts.whole(layer), self._own.whole(layer)
        # Many queries to the same keys are a matrix product; the loops would read a prompt again for each.
        shared = q_NHD.shape[1] // prompts[0].shape[1]
        is_wide = layout.num_rows * shared >= FLASH_QUERIES * layout.grid.num_groups
        if is_wide:
            before = [*before, self._of_prompts(layer, layout.bias_prompt)]
        seen = look_and_weigh(q_NHD, before, rule) if before else _kernels.nothing(q_NHD)
        lengths = layout.none_P if is_wide else layout.length_P
        return _kernels.attend(q_NHD, seen, (*prompts, lengths), (*own, self._count_R), layout.rows, rule.scale)

    def _of_prompts(self, layer: int, bias: torch.Tensor | None) -> Part:
        layout = self._layout
        return Part(*self._prompts.read(layer, slice(0, layout.grid.num_groups), layout.longest), layout.grid, bias)

    def _through(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What of prompts and own tokens a sliding window still shows each row."""
        assert window is not None
        layout = self._layout
        position_GW = layout.grid.lay_out(self.positions_R[:, None, None])[..., 0, 0]
        in_prompt = position_GW[..., None] - layout.key_positions_L < window
        in_own = (self._place_R[:, None] - self._key_L < window)[:, None]
        return as_bias(in_prompt & layout.seen_prompt), as_bias(in_own & self._seen)


def _passes(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Cut sequences into passes of at most `most` tokens, a longer one alone: (first, behind the last) of each.

    Attention lays sequences out as wide as the longest one; that may take some padding, not many times the tokens.
    """
    passes: list[tuple[int, int]] = []
    num_tokens, longest = most, 0
    for number, size in enumerate(sizes):
        count = number - passes[-1][0] if passes else 0
        if num_tokens + size > most or (count + 1) * max(longest, size) > MOST_PADDED * most:
            passes.append((number, number))
            num_tokens, longest = 0, 0
        passes[-1] = (passes[-1][0], number + 1)
        num_tokens, longest = num_tokens + size, max(longest, size)
    return passes


def _chunks(spans: Sequence[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """A pass as it is; a single sequence that is too long for one in pieces."""
    start, end = spans[0]
    if len(spans) > 1 or end - start <= most:
        return [list(spans)]
    return [[(piece, min(piece + most, end))] for piece in range(start, end, most)]
