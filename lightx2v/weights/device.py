"""The memory of one device: slabs of bytes, a limit that holds, and a count of what was moved."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from lightx2v.errors import OutOfMemory
from lightx2v.weights.emulated_card import EmulatedCard
from lightx2v.weights.host_copy import HostCopy, OnDisk, Source
from lightx2v.weights.host_memory import total_host_memory
from lightx2v.weights.layout import Layout

LIBRARY_BYTES = 128 << 20
"""Bytes that cuBLAS and similar libraries take through torch's allocator at their first use, and keep."""

RATE_BYTES = 32 << 20
RATE_SHAPE = (4096, 4096, 8192)
"""Rows, inner size and columns of the product whose rate is measured. It is large enough to reach the full rate and
takes little memory beside a CUDA context. A product of 2048 to a side is a third slower, and a plan from that rate
streams a third too much (measured: 9.1 GB a step where 6.8 are hidden)."""

RATE_SCRATCH = 512 << 20
"""Bytes that measuring the rates may take, with some to spare."""

EFFICIENCY = 0.8
"""The rate of a whole model, attention and all else included, as a share of the rate of matrix products: 609 to 613 of
748 TFLOP/s (H100, compiled, klein-9B at 1024x1024 with and without references)."""

PAGE = 2 << 20
"""Bytes of the pages in which the driver hands out memory."""

STACK_LIMIT = 0
"""CU_LIMIT_STACK_SIZE of the driver's interface."""

STACK_BYTES = 64
"""Bytes of a GPU thread's stack. By default the driver sets 1024 aside in every process for every thread that the GPU
can hold (264 MiB on an H100), although a kernel that needs more gets it when it is launched."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in a device's work that other work can wait for. Without an event it has passed."""

    event: torch.cuda.Event | None = None


class Device(ABC):
    """Slabs are uint8 tensors on `torch_device`; weights only ever travel towards them."""

    torch_device: torch.device
    h2d_bytes: int = 0
    """Weight bytes copied to the device: units, LoRAs and layers that are kept on the host. Activations (embedded
    prompts, latents, pictures) are not among them."""
    d2h_bytes: int = 0
    """Weight bytes copied back to the host. Nothing does that; the count is there so that it can be seen."""

    @abstractmethod
    def allocate(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes], not initialised. Raises OutOfMemory."""

    @abstractmethod
    def free(self, slab: torch.Tensor) -> None:
        """Gives up a slab of `allocate`; the caller drops its references."""

    @abstractmethod
    def run_limits(self, growth: int, nbytes: int) -> AbstractContextManager[None]:
        """Allows `growth` more bytes of slabs and `nbytes` bytes of activations. Their sum is the limit inside. Raises
        OutOfMemory where it is exceeded."""

    @contextmanager
    def growth(self, nbytes: int) -> Iterator[None]:
        """Allows `nbytes` more bytes of slabs outside of a run. Waits for nothing at its end."""
        yield

    @contextmanager
    def memory_errors(self) -> Iterator[None]:
        """Raises OutOfMemory in place of torch's own error."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{self.torch_device}: a run exceeded its memory: {error}") from error

    @abstractmethod
    def total(self) -> int:
        """Bytes of memory that the device has."""

    @abstractmethod
    def trim(self) -> None:
        """Returns freed memory to the driver, so that other processes can have it."""

    def cost(self, nbytes: int) -> int:
        """Device bytes that an allocation of `nbytes` occupies."""
        return nbytes

    def overlap_bytes(self, flops: float) -> int:
        """Weight bytes that the link carries while `flops` operations compute; 0 where the rates are unknown."""
        return 0

    def host_source(self, layout: Layout, lazy: bool) -> Source:
        """The host's side of the weights in `layout`: read from disk for every use if `lazy`, or else kept as a copy.
        Raises OutOfMemory and InvalidCheckpoint."""
        return OnDisk(layout) if lazy else HostCopy(layout, self.pinned)

    @property
    def pinned(self) -> bool:
        """Whether host copies should be page-locked for it."""
        return self.torch_device.type == "cuda"

    @abstractmethod
    def copy(self, host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        """Copies host bytes into a slab that is free after the moment `after`, while other work computes. Returns the
        moment of arrival. Copies arrive in the order in which they were asked for."""

    def bring(self, host: torch.Tensor) -> torch.Tensor:
        """uint8 [host.nbytes] on the device: a copy of host bytes within the workspace of a run, for what is launched
        next. Freed with its last reference."""
        slab = torch.empty(host.nbytes, dtype=torch.uint8, device=self.torch_device)
        self.wait(self.copy(host, slab, self.now()))
        return slab

    @abstractmethod
    def now(self) -> Moment:
        """The moment at which all that was launched so far has been computed."""

    @abstractmethod
    def wait(self, moment: Moment) -> None:
        """Makes what is launched next compute after `moment`. The host does not wait."""


class CpuDevice(Device):
    """Host memory as a device, within the byte budget of `card` if there is one. The card cannot see torch's
    activations, so the workspace that a run declares is taken from it instead."""

    def __init__(self, card: EmulatedCard | None = None) -> None:
        self.torch_device = torch.device("cpu")
        self._card = card

    def allocate(self, nbytes: int) -> torch.Tensor:
        self._take(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    def free(self, slab: torch.Tensor) -> None:
        self._give(slab.nbytes)

    @contextmanager
    def run_limits(self, growth: int, nbytes: int) -> Iterator[None]:
        self._take(nbytes)
        try:
            yield
        finally:
            self._give(nbytes)

    def copy(self, host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        self.h2d_bytes += host.nbytes
        slab.copy_(host)
        return Moment()

    def now(self) -> Moment:
        return Moment()

    def wait(self, moment: Moment) -> None:
        return None

    def total(self) -> int:
        return total_host_memory()

    def trim(self) -> None:
        return None

    def _take(self, nbytes: int) -> None:
        if self._card is not None and nbytes:
            self._card.take(nbytes)

    def _give(self, nbytes: int) -> None:
        if self._card is not None and nbytes:
            self._card.give(nbytes)


class CudaDevice(Device):
    """One GPU, through torch's allocator, which is limited to the bytes that were granted."""

    def __init__(self, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._link = torch.cuda.Stream(self.torch_device)
        _limit_stack()
        self._slab_bytes = 0
        self._total = torch.cuda.get_device_properties(self.torch_device).total_memory

    def cost(self, nbytes: int) -> int:
        return whole_pages(nbytes)

    def overlap_bytes(self, flops: float) -> int:
        return int(flops * self._bytes_per_flop)

    @cached_property
    def _bytes_per_flop(self) -> float:
        self._hold(self._slab_bytes + RATE_SCRATCH)
        try:
            return _link_rate(self.torch_device) / (EFFICIENCY * _product_rate(self.torch_device))
        finally:
            self.trim()

    def allocate(self, nbytes: int) -> torch.Tensor:
        try:
            slab = torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{self.torch_device}: {nbytes} bytes for weights: {error}") from error
        self._slab_bytes += self.cost(nbytes)
        return slab

    def free(self, slab: torch.Tensor) -> None:
        self._slab_bytes -= self.cost(slab.nbytes)

    @contextmanager
    def run_limits(self, growth: int, nbytes: int) -> Iterator[None]:
        self._hold(self._slab_bytes + growth + nbytes)
        try:
            with self.memory_errors():
                yield
        finally:
            torch.cuda.synchronize(self.torch_device)

    @contextmanager
    def growth(self, nbytes: int) -> Iterator[None]:
        self._hold(self._slab_bytes + nbytes)
        yield

    def _hold(self, nbytes: int) -> None:
        """Limits torch's allocator to `nbytes` bytes, besides those of libraries."""
        fraction = (nbytes + LIBRARY_BYTES) / self._total
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), self.torch_device)

    def copy(self, host: torch.Tensor, slab: torch.Tensor, after: Moment) -> Moment:
        self.h2d_bytes += host.nbytes
        with torch.cuda.stream(self._link):
            self.wait(after)
            slab.copy_(host, non_blocking=True)
            return self.now()

    def now(self) -> Moment:
        event = torch.cuda.Event()
        event.record()
        return Moment(event)

    def wait(self, moment: Moment) -> None:
        if moment.event is not None:
            torch.cuda.current_stream(self.torch_device).wait_event(moment.event)

    def total(self) -> int:
        return self._total

    def trim(self) -> None:
        torch.cuda.empty_cache()


def whole_pages(nbytes: int) -> int:
    """Bytes that an allocation of `nbytes` occupies on a GPU."""
    return -(-nbytes // PAGE) * PAGE


def _limit_stack() -> None:
    """Limits the stack of this process's threads on the current device. Raises RuntimeError if the driver refuses."""
    if code := ctypes.CDLL("libcuda.so.1").cuCtxSetLimit(STACK_LIMIT, ctypes.c_size_t(STACK_BYTES)):
        raise RuntimeError(f"the driver refused a stack of {STACK_BYTES} bytes for a GPU's thread: CUDA error {code}")


def _link_rate(device: torch.device) -> float:
    """Bytes per second from pinned memory to the device."""
    host = torch.empty(RATE_BYTES, dtype=torch.uint8, pin_memory=True)
    slab = torch.empty(RATE_BYTES, dtype=torch.uint8, device=device)
    return RATE_BYTES / _seconds(lambda: slab.copy_(host, non_blocking=True))


def _product_rate(device: torch.device) -> float:
    """Operations per second of large matrix products in bf16."""
    rows, inner, columns = RATE_SHAPE
    left = torch.randn(rows, inner, dtype=torch.bfloat16, device=device)
    right = torch.randn(inner, columns, dtype=torch.bfloat16, device=device)
    return 2.0 * rows * inner * columns / _seconds(lambda: left @ right)


def _seconds(work: Callable[[], object], times: int = 10) -> float:
    """Seconds of one call on the device, after a first call that is not counted."""
    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times
