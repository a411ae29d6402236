"""Which card a request goes to, when several serve its model: the one that is predicted to finish it first."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Card:
    """What was sent to a card and has not ended."""

    id: int
    room: int
    sizes: Mapping[str, int]
    load: float = 0.0
    """Seconds of work."""
    version: int = 0
    warm: OrderedDict[str, int] = field(default_factory=OrderedDict)
    """Bytes of the models whose weights it probably holds, the one that was used last at the end."""

    def use(self, model: str) -> None:
        """Counts a model as resident, and those that were used longest ago no longer, as far as they do not fit."""
        self.warm[model] = self.sizes[model]
        self.warm.move_to_end(model)
        while len(self.warm) > 1 and sum(self.warm.values()) > self.room:
            self.warm.popitem(last=False)


@dataclass(order=True, frozen=True, slots=True)
class _Entry:
    """A card as it was when it got this load; it is out of date once the card has another version."""

    load: float
    card: int
    version: int


class Router:
    """Routes requests by the least predicted finish: the seconds of work that a card has, and those of a switch if it
    does not hold the model. A decision and an end take O(k log n) for n cards of k models each.

    `cards`: bytes for weights, and the bytes of each model, by card. `link`: bytes per second to a card.
    """

    def __init__(self, cards: Mapping[int, tuple[int, Mapping[str, int]]], link: float) -> None:
        self._cards = {card_id: _Card(card_id, room, sizes) for card_id, (room, sizes) in cards.items()}
        self._link = link
        models = {model for card in self._cards.values() for model in card.sizes}
        self._warm: dict[str, list[_Entry]] = {model: [] for model in models}
        self._all: dict[str, list[_Entry]] = {model: [] for model in models}
        for card in self._cards.values():
            self._list(card)

    def route(self, model: str, seconds: float) -> int:
        """The card for a request of `seconds` of work. Raises KeyError if no card serves the model."""
        card, warm = self._first(self._all[model]), self._first(self._warm[model], model)
        if card is None:
            raise KeyError(model)
        if warm is not None and warm.load <= card.load + card.sizes[model] / self._link:
            card = warm
        card.load += seconds
        card.use(model)
        self._list(card)
        return card.id

    def ended(self, card_id: int, seconds: float) -> None:
        """A request that was routed to this card has ended, whatever came of it."""
        card = self._cards[card_id]
        card.load = max(0.0, card.load - seconds)
        self._list(card)

    def _list(self, card: _Card) -> None:
        card.version += 1
        entry = _Entry(card.load, card.id, card.version)
        for model in card.sizes:
            self._push(self._all[model], entry)
        for model in card.warm:
            self._push(self._warm[model], entry)

    def _push(self, heap: list[_Entry], entry: _Entry) -> None:
        """Adds an entry. Sweeps a heap that is mostly out of date: that is rare enough to cost O(1) an entry."""
        heapq.heappush(heap, entry)
        if len(heap) > 4 * len(self._cards) + 64:
            heap[:] = [entry for entry in heap if self._cards[entry.card].version == entry.version]
            heapq.heapify(heap)

    def _first(self, heap: list[_Entry], warm: str = "") -> _Card | None:
        """The card of the least load; of those that hold `warm`, if it names a model."""
        while heap:
            card = self._cards[heap[0].card]
            if card.version == heap[0].version and (not warm or warm in card.warm):
                return card
            heapq.heappop(heap)
        return None
