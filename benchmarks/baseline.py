"""Baselines in one process, on the same checkpoint and under the same cap, for FLUX.2 klein only.

    python -m benchmarks.baseline FOLDER --how group-offload --budget 31.35GiB

Prints one line of JSON. Both keep the autoencoder on the card. `group-offload` is diffusers' own: it streams one block
at a time. `pinned-swap` copies the text encoder, then the transformer, each from one pinned stretch, and drops it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from lightx2v.config import parse_bytes

WARMUP, TIMES = 2, 3
CONTEXT = 640 << 20
"""Device bytes of a process besides torch's."""

Make = Callable[[str], Any]


def group_offload(pipe: Any, device: torch.device, **arguments: Any) -> Make:
    """Of the language model leaf by leaf: its blocks are not its own children, for which diffusers' streams fail."""
    stream = device.type == "cuda"
    for module, kind in ((pipe.transformer, "block_level"), (pipe.text_encoder, "leaf_level")):
        apply_group_offloading(
            module, device, offload_type=kind, num_blocks_per_group=1, non_blocking=stream, use_stream=stream
        )
    pipe.vae.to(device)
    return lambda prompt: pipe(prompt=prompt, **arguments).images[0]


def pinned_swap(pipe: Any, device: torch.device, **arguments: Any) -> Make:
    encoder, transformer = (Swapped(module, device) for module in (pipe.text_encoder, pipe.transformer))
    pipe.vae.to(device)

    def make(prompt: str) -> Any:
        with encoder.placed():
            embeds, _ = pipe.encode_prompt(prompt, device=device)
        with transformer.placed():
            return pipe(prompt_embeds=embeds, **arguments).images[0]

    return make


HOW = {"group-offload": group_offload, "pinned-swap": pinned_swap}


class Swapped:
    """A module whose weights lie in one stretch of host memory, pinned for a GPU, and on the device while `placed`."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._states = list({id(state): state for state in (*module.parameters(), *module.buffers())}.values())
        self._host = torch.empty(sum(map(_aligned, self._states)), dtype=torch.uint8)
        for state, home in zip(self._states, self._views(self._host), strict=True):
            home.copy_(state.data)
            state.data = home
        if device.type == "cuda":
            result = torch.cuda.cudart().cudaHostRegister(self._host.data_ptr(), self._host.nbytes, 0)
            if int(result) != 0:
                raise RuntimeError(f"pinning {self._host.nbytes} bytes failed with CUDA error {int(result)}")

    @contextmanager
    def placed(self) -> Iterator[None]:
        slab = torch.empty(len(self._host), dtype=torch.uint8, device=self._device)
        slab.copy_(self._host, non_blocking=True)
        self._bind(slab)
        del slab
        try:
            yield
        finally:
            self._bind(self._host)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _bind(self, memory: torch.Tensor) -> None:
        for state, view in zip(self._states, self._views(memory), strict=True):
            state.data = view

    def _views(self, memory: torch.Tensor) -> Iterator[torch.Tensor]:
        offset = 0
        for state in self._states:
            yield memory[offset : offset + state.nbytes].view(state.dtype).view(state.shape)
            offset += _aligned(state)


def _aligned(state: torch.Tensor) -> int:
    return -(-state.nbytes // 256) * 256


def measure(checkpoint: Path, how: str, budget: int, size: tuple[int, int], steps: int, device: str) -> dict[str, Any]:
    """Seconds of a few warm requests and torch's peak; an `error` if the memory does not suffice."""
    place = torch.device(device)
    if place.type == "cuda":
        total = torch.cuda.get_device_properties(place).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (budget - CONTEXT) / total))
    pipe = Flux2KleinPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    width, height = size
    head: dict[str, Any] = {"how": how, "budget_bytes": budget}
    try:
        make = HOW[how](pipe, place, width=width, height=height, num_inference_steps=steps)
        seconds = [_timed(make, number) for number in range(WARMUP + TIMES)][WARMUP:]
    except torch.OutOfMemoryError as error:
        return head | {"error": str(error)}
    peak = torch.cuda.max_memory_reserved(place) if place.type == "cuda" else 0
    return head | {"seconds": seconds, "peak_bytes": peak}


@torch.inference_mode()
def _timed(make: Make, number: int) -> float:
    """A picture comes to the host, so nothing is left to wait for."""
    start = time.perf_counter()
    make(f"picture number {number} of a lighthouse at dawn")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--how", choices=sorted(HOW), required=True)
    parser.add_argument("--budget", type=parse_bytes, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    print(json.dumps(measure(**vars(options))))


if __name__ == "__main__":
    main()
