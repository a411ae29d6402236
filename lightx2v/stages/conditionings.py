"""The encodings of the latest prompts: a prompt that comes again costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch


class ConditioningCache:
    """Encodings by prompt, in at most `limit` bytes of host memory. The least recently used goes first.

    A cached encoding is exact: an encoder does nothing by chance, and nobody changes what it returned. Several threads
    may use the cache.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._nbytes = 0
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def find(self, prompt: str) -> torch.Tensor | None:
        """The encoding of this prompt, [tokens, features] on the host; None if it is not known."""
        with self._lock:
            if prompt in self._known:
                self._known.move_to_end(prompt)
            return self._known.get(prompt)

    def add(self, prompt: str, conditioning: torch.Tensor) -> None:
        """Keeps the encoding of a prompt that is not known. One that exceeds the limit alone is not kept."""
        if conditioning.nbytes > self._limit:
            return
        with self._lock:
            self._known[prompt] = conditioning
            self._nbytes += conditioning.nbytes
            while self._nbytes > self._limit:
                self._nbytes -= self._known.popitem(last=False)[1].nbytes
