"""Turns of callers who share a server: start-time fair queueing.

P. Goyal, H. M. Vin, H. Cheng: Start-time Fair Queueing (SIGCOMM 1996). A request's start tag is the finish tag of its
caller's last one, or the present virtual time if that is later. Whoever serves the least start tag first gives every
caller that waits the same share of the time, however many requests each of them has.
"""

from __future__ import annotations


class Turns:
    """The tags of the callers of a server. Virtual time is the start tag of what is being served."""

    def __init__(self) -> None:
        self._now = 0.0
        self._finish: dict[str, float] = {}

    def peek(self, caller: str) -> float:
        """The start tag that a request of this caller would get now."""
        return max(self._now, self._finish.get(caller, 0.0))

    def take(self, caller: str, cost: float) -> float:
        """The start tag of a request of this caller. `cost`: seconds of the server, or another unit for all alike."""
        start = self.peek(caller)
        self._finish[caller] = start + cost
        return start

    def serve(self, start: float) -> None:
        """Notes the start tag of what is being served. Virtual time never goes back."""
        self._now = max(self._now, start)
        self._finish = {caller: finish for caller, finish in self._finish.items() if finish > self._now}

    def rest(self) -> None:
        """Notes that nothing waits or is served: no caller has a debt any more."""
        self.serve(max(self._finish.values(), default=self._now))
