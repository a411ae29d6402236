"""Who gives way to whom, and how much."""

from __future__ import annotations

import pytest

from lightx2v.core import StageName
from lightx2v.residency.lease import Wish
from tests.unit.ledgers import ask, grant, holder, ledger_of, need, shrinks


@pytest.mark.parametrize(
    ("waiter", "others"),
    [
        ("encode", ("decode", "denoise")),
        ("denoise", ("encode", "decode")),
        ("decode", ("denoise", "encode")),
        ("encode", ("decode", "refine", "denoise")),
        ("denoise", ("encode", "decode", "refine")),
        ("refine", ("denoise", "encode", "decode")),
        ("decode", ("refine", "denoise", "encode")),
    ],
)
def test_within_a_model_the_farthest_next_use_gives_way_first(waiter: StageName, others: tuple[StageName, ...]) -> None:
    resting = [(holder("replica", waiter), 10), *((holder(stage, stage), 10) for stage in sorted(others))]
    ledger = ledger_of(10 * len(resting), (holder("waiter", waiter), 0), *resting)
    ask(ledger, "waiter", need(10 * len(others) + 5))
    assert shrinks(ledger, ledger.advance(0.0)) == [*((stage, 10) for stage in others), ("replica", 5)]


def test_other_models_give_way_first_least_recently_used() -> None:
    names = ("old", "new", "used")
    others = [(holder(name, model=name), 10) for name in names]
    ledger = ledger_of(40, (holder("a"), 0), (holder("own", "encode"), 10), *others)
    ledger.release(grant(ledger, "old", need(10)).id, 10, "e1")
    ask(ledger, "a", need(40))
    assert shrinks(ledger, ledger.advance(0.0)) == [("new", 10), ("used", 10), ("old", 10), ("own", 10)]


@pytest.mark.parametrize(
    ("workspace", "expected"), [(35, [("denoise", 5), ("encode", 30)]), (85, [("denoise", 50), ("encode", 35)])]
)
def test_what_was_only_fetched_ahead_gives_way_before_what_the_plan_keeps(
    workspace: int, expected: list[tuple[str, int]]
) -> None:
    ledger = ledger_of(110, (holder("encode", "encode"), 40), (holder("denoise"), 50), (holder("decode", "decode"), 20))
    for name, wish in {"encode": Wish(40, 0, 10), "denoise": Wish(50, 0, 45)}.items():
        ledger.expect(name, wish)
    ask(ledger, "decode", need(20, workspace=workspace))
    assert shrinks(ledger, ledger.advance(0.0)) == expected
