"""A cache of the encodings of the latest prompts, so that a repeated prompt is not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch


class ConditioningCache:
    """Encodings by prompt, in at most `limit` bytes of host memory. The least recently used is dropped first.

    A cached encoding is exact: encoders are deterministic, and their output is never changed. The cache is thread-safe.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._nbytes = 0
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def find(self, prompt: str) -> torch.Tensor | None:
        """The encoding of a prompt, [tokens, features] on the host; None if it is not cached."""
        with self._lock:
            if prompt in self._known:
                self._known.move_to_end(prompt)
            return self._known.get(prompt)

    def add(self, prompt: str, conditioning: torch.Tensor) -> None:
        """Caches the encoding of a prompt that is not cached yet, unless it exceeds the limit by itself."""
        if conditioning.nbytes > self._limit:
            return
        with self._lock:
            self._known[prompt] = conditioning
            self._nbytes += conditioning.nbytes
            while self._nbytes > self._limit:
                self._nbytes -= self._known.popitem(last=False)[1].nbytes
