"""The Prometheus metrics of one card, through Ray's own endpoint: the figures of GET /v1/residency over time.

Counters start at zero with every coordinator, as Prometheus expects of a process that restarts.
"""

from __future__ import annotations

from collections import Counter as Counts
from dataclasses import asdict

from ray.util.metrics import Counter, Gauge

from deployments.card.transfer import TransferBytes
from lightx2v.residency.lease import Holder
from lightx2v.residency.ledger import Ledger

CARD = ("card",)
STAGE = ("card", "model", "stage")


class CardMetrics:
    """All metrics of one card. Names begin with `lightx2v_`; sizes are bytes."""

    def __init__(self, card_id: str) -> None:
        self._tags = {"card": card_id}
        self._budget = Gauge("lightx2v_budget_bytes", "Memory of the card that can be granted", CARD)
        self._granted = Gauge("lightx2v_granted_bytes", "Memory that is granted", CARD)
        self._waiting = Gauge("lightx2v_waiting_runs", "Runs that wait for memory", CARD)
        self._running = Gauge("lightx2v_running_leases", "Runs that have their memory", CARD)
        self._decisions = {
            "grants": Counter("lightx2v_grants_total", "Runs that were granted memory", CARD),
            "shrinks": Counter("lightx2v_shrinks_total", "Commands to give way that were followed", CARD),
            "evictions": Counter("lightx2v_evictions_total", "Stages that gave up all their weights", CARD),
            "fetches": Counter("lightx2v_fetches_total", "Fetches of weights ahead of their run", CARD),
            "recalls": Counter("lightx2v_recalls_total", "Runs that were asked to end early", CARD),
        }
        self._decided: Counts[str] = Counts()
        self._h2d = Counter("lightx2v_h2d_bytes_total", "Weights copied to the card", STAGE)
        self._d2h = Counter("lightx2v_d2h_bytes_total", "Weights copied back to the host", STAGE)

    def update(self, ledger: Ledger) -> None:
        """Sets the gauges and counters from the ledger, after it changed."""
        self._budget.set(ledger.budget, self._tags)
        self._granted.set(ledger.granted, self._tags)
        self._waiting.set(len(ledger.tickets), self._tags)
        self._running.set(sum(account.active for account in ledger.holders.values()), self._tags)
        decided = Counts(asdict(ledger.counters))
        for name, more in (decided - self._decided).items():
            self._decisions[name].inc(more, self._tags)
        self._decided = decided

    def count(self, holder: Holder, copied: TransferBytes) -> None:
        """Adds the bytes that a stage has copied since the last call."""
        tags = {**self._tags, "model": holder.model, "stage": holder.stage}
        for counter, nbytes in ((self._h2d, copied.h2d), (self._d2h, copied.d2h)):
            if nbytes:
                counter.inc(nbytes, tags)
