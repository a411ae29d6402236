"""What the encoder made of the latest prompts, so that one that comes again costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch


class ConditioningCache:
    """At most `limit` bytes of host memory; what was asked for least recently goes first. Several threads may use it.

    It is exact: an encoder does nothing by chance, and nobody changes what is in it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._nbytes = 0
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def find(self, prompt: str) -> torch.Tensor | None:
        with self._lock:
            if prompt in self._known:
                self._known.move_to_end(prompt)
            return self._known.get(prompt)

    def add(self, prompt: str, conditioning: torch.Tensor) -> None:
        """Of a prompt that is not in it. What alone exceeds the limit is not kept."""
        if conditioning.nbytes > self._limit:
            return
        with self._lock:
            self._known[prompt] = conditioning
            self._nbytes += conditioning.nbytes
            while self._nbytes > self._limit:
                self._nbytes -= self._known.popitem(last=False)[1].nbytes
