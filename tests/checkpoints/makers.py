"""The states of a part as another maker's file has them: under its own names, layers joined that it has in one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightx2v.weights.names import Rows, Table, expand


def as_makers(states: Mapping[str, torch.Tensor], table: Table) -> dict[str, torch.Tensor]:
    """`states`, by the names of `table` wherever it has one."""
    paths = {".".join(name.split(".")[:end]) for name in states for end in range(1, name.count(".") + 2)}
    made, taken = {}, set()
    for theirs, ours in expand(table, paths).items():
        for end in ("", ".weight", ".bias"):
            if all(f"{one.path}{end}" in states for one in ours):
                made[f"{theirs}{end}"] = torch.cat([_part(states[f"{one.path}{end}"], one) for one in ours])
                taken |= {f"{one.path}{end}" for one in ours}
    return made | {name: state for name, state in states.items() if name not in taken}


def _part(state: torch.Tensor, rows: Rows) -> torch.Tensor:
    return state.chunk(rows.parts)[rows.part]
