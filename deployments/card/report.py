"""The entry of one card in GET /v1/residency."""

from __future__ import annotations

from dataclasses import asdict
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
        **{f"{name}_total": total for name, total in asdict(ledger.counters).items()},
        "waiting": len(ledger.tickets),
        "stages": [_stage_report(account, ledger, members) for account in ledger.holders.values()],
    }


def _stage_report(account: Account, ledger: Ledger, members: CardMembers) -> dict[str, Any]:
    work = ledger.work(account.holder.id)
    return {
        "model": account.holder.model,
        "stage": account.holder.stage,
        "pid": account.holder.pid,
        "running": account.active,
        "jobs": work.jobs if work else 0,
        "width": members.width(account.holder),
        "context_bytes": account.holder.context,
        "resident_bytes": account.weights,
        "planned_bytes": members.planned(account.holder),
        "reachable_bytes": account.holder.reachable,
    }
