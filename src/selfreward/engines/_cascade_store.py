"""Where keys and values lie, and the model that makes them; see `_cascade_memory`.

Tensor names end in their shape: N new tokens, K key-value heads, L tokens of a store, D head size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from selfreward.engines._cascade import Part, Pass, Rule, active, as_bias


class Store:
    """Keys and values of every layer, shape items, K, places, D; made when a layer's first ones come."""

    def __init__(self, num_layers: int, num_items: int, num_places: int) -> None:
        self.num_items, self.num_places = num_items, num_places
        self._keys: list[torch.Tensor | None] = [None] * num_layers
        self._values: list[torch.Tensor | None] = [None] * num_layers

    @property
    def bytes_per_place(self) -> int:
        """Bytes of one place of one item, in all layers."""
        return sum(
            store.shape[1] * store.shape[3] * store.element_size()
            for store in (*self._keys, *self._values)
            if store is not None
        )

    def write(self, layer: int, place: Any, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> None:
        """Put new keys and values at `place`: an index of this shape's first and third axis."""
        for side, states in ((self._keys, k_NKD), (self._values, v_NKD)):
            store = side[layer]
            if store is None:
                # Places that hold nothing yet may enter a sum with weight 0, and 0 times what lay in memory may be NaN.
                store = side[layer] = states.new_zeros(self.num_items, states.shape[1], self.num_places, states.shape[2])
            store[place[0], :, place[1]] = states

    def whole(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of all items, with the places that hold nothing yet."""
        keys, values = self._keys[layer], self._values[layer]
        assert keys is not None, "nothing is stored yet"
        assert values is not None, "nothing is stored yet"
        return keys, values

    def read(self, layer: int, items: slice, num_places: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of some items, without a copy."""
        keys, values = self.whole(layer)
        return keys[items, :, :num_places], values[items, :, :num_places]

    def resize(self, num_items: int, num_places: int, used: tuple[int, int]) -> None:
        """Make room; the first `used` items and places are kept."""
        for side in (self._keys, self._values):
            for layer, old in enumerate(side):
                if old is not None:
                    new = old.new_zeros(num_items, old.shape[1], num_places, old.shape[3])
                    new[: used[0], :, : used[1]] = old[: used[0], :, : used[1]]
                    side[layer] = new
        self.num_items, self.num_places = num_items, num_places

    def move(self, moves: Sequence[tuple[int, int]], num_places: int) -> None:
        """Item `to` becomes a copy of item `come_from` for each (to, come_from)."""
        if not moves:
            return
        to, come_from = (list(side) for side in zip(*moves, strict=True))
        for side in (self._keys, self._values):
            for store in side:
                if store is not None:
                    store[to, :, :num_places] = store[come_from, :, :num_places]

    def copy_from(self, other: "Store", items: slice, sources: torch.Tensor) -> None:
        """The first places of these items become all places of the other store's items `sources`."""
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for layer, states in enumerate(theirs):
                assert states is not None, "a store that was read has every layer"
                store = mine[layer]
                if store is None:
                    store = mine[layer] = states.new_zeros(self.num_items, states.shape[1], self.num_places, states.shape[3])
                store[items, :, : other.num_places] = states[sources]


@dataclass(frozen=True)
class _Watched:
    """A pass that notes the windows of the layers."""

    work: Pass
    windows: dict[int, int | None]

    def attend(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, rule: Rule) -> torch.Tensor:
        """See Pass."""
        self.windows[layer] = rule.window
        return self.work.attend(layer, q_NHD, k_NKD, v_NKD, rule)


@dataclass(frozen=True)
class Model:
    """What memory needs to know of a model. `last_position`: the last one that it has."""

    model: Any
    num_layers: int
    last_position: int
    arguments: frozenset[str]
    windows: dict[int, int | None] = field(default_factory=dict)
    """Layer -> how many positions back its attention says that it sees; filled while it runs."""

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    def run(self, work: Pass, ids_N: torch.Tensor, positions_N: torch.Tensor, keep_N: torch.Tensor | None) -> torch.Tensor:
        """One pass over new tokens in one row; logits of those numbered `keep_N` (None: all), shape len(keep_N), V."""
        # Models without position embeddings take no position_ids; few old ones compute the logits of all positions.
        optional = {"position_ids": positions_N[None]}
        if keep_N is not None:
            optional["logits_to_keep"] = keep_N
        with active(_Watched(work, self.windows), self.model.config):
            output = self.model(
                input_ids=ids_N[None],
                use_cache=False,
                **{name: value for name, value in optional.items() if name in self.arguments},
            )
        logits_NV: torch.Tensor = output.logits[0]
        return logits_NV if keep_N is None or "logits_to_keep" in self.arguments else logits_NV[keep_N]


class Root:
    """What all sequences begin with; `length` is 0 while there is nothing."""

    def __init__(self) -> None:
        self.length = 0
        self._store: Store | None = None

    def fill(self, store: Store, length: int) -> None:
        """Item 0 of this store is the root."""
        self._store, self.length = store, length

    def parts(self, layer: int, positions_N: torch.Tensor, rule: Rule) -> list[Part]:
        """The root as all new tokens see it; a sliding window may have passed some of it."""
        if self._store is None:
            return []
        keys, values = self._store.read(layer, slice(0, 1), self.length)
        if rule.window is None:
            return [Part(keys, values)]
        place_L = torch.arange(self.length, device=positions_N.device)
        return [Part(keys, values, None, as_bias(positions_N[:, None] - place_L < rule.window)[None])]
