"""What a ledger has decided so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Decisions since the ledger began. They only grow."""

    grants: int = 0
    shrinks: int = 0
    """Commands to give way that were followed."""
    evictions: int = 0
    """Shrinks after which a holder had no weights left."""
    fetches: int = 0
    recalls: int = 0
