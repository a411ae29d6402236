"""How much memory lives at a time, counted on the meta device, where it costs none."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightx2v.models.component import Component

META = torch.device("meta")
CUDNN = 2.4 / 1.5
"""Measured at 1024 x 1024 in bf16: a decode's peak on a GPU over its live tensors."""


ACROSS = (torch.ops.aten.copy_, torch.ops.aten.index, torch.ops.aten.index_put_)
"""May have operands on the host and on a device."""


class LiveBytes(TorchDispatchMode):
    """Counts what lives on the meta device beside a component's own states; `peak` is the most at any time."""

    def __init__(self, component: Component) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {state.untyped_storage()._cdata for state in component.module.state_dict().values()}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuses what a GPU would, and not all of it is refused here: operands on two devices."""
        if len({leaf.device for leaf in tree_leaves((args, kwargs)) if _is_operand(leaf)}) > 1:
            assert function.overloadpacket in ACROSS, f"{function} of tensors on the host and on the device"
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device == META:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


def _is_operand(leaf: Any) -> bool:
    """A tensor of no dimensions counts as a number anywhere."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0
