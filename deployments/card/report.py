"""The entry of one card in GET /v1/residency."""

from __future__ import annotations

from typing import Any

from deployments.card.members import CardMembers
from deployments.card.transfer import TransferBytes
from lightx2v.residency.account import Account
from lightx2v.residency.ledger import Ledger


def card_report(ledger: Ledger, members: CardMembers, transferred: TransferBytes) -> dict[str, Any]:
    """The figures of the card and of each stage on it; all sizes are bytes."""
    return {
        "budget_bytes": ledger.budget,
        "granted_bytes": ledger.granted,
        "peak_granted_bytes": ledger.peak_granted,
        "h2d_bytes_total": transferred.h2d,
        "d2h_bytes_total": transferred.d2h,
        "grants_total": ledger.grants_total,
        "shrinks_total": ledger.shrinks_total,
        "evictions_total": ledger.evictions_total,
        "fetches_total": ledger.fetches_total,
        "waiting": ledger.waiting,
        "stages": [_stage_report(account, members) for account in ledger.holders.values()],
    }


def _stage_report(account: Account, members: CardMembers) -> dict[str, Any]:
    return {
        "model": account.holder.model,
        "stage": account.holder.stage,
        "pid": account.holder.pid,
        "running": account.active,
        "context_bytes": account.holder.context,
        "resident_bytes": account.weights,
        "planned_bytes": members.planned(account.holder),
        "reachable_bytes": account.holder.reachable,
    }
