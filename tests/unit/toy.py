"""A component of a few kilobytes, for what does not depend on a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

from lightx2v.models.component import Component
from lightx2v.types import GenerateRequest, Size
from lightx2v.weights.adapters import Adapters
from lightx2v.weights.device import Device
from lightx2v.weights.host_copy import HostCopy, OnDisk
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import WeightMap, make_layout
from lightx2v.weights.weight_residency import WeightResidency

WIDTH = 16
REQUEST = GenerateRequest("toy", "a prompt", Size(64, 64), steps=2, seed=0)


class ToyModule(nn.Module):
    def __init__(self, blocks: int, width: int = WIDTH) -> None:
        super().__init__()
        self.table = nn.Embedding(8, width)
        self.entry = nn.Linear(width, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.SiLU()) for _ in range(blocks))
        self.register_buffer("scale", torch.empty(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.entry(hidden) * self.scale
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


class Toy(Component):
    folder = "toy"
    kept: ClassVar[dict[str, Any]] = {}
    """What a test changes in the map of its weights."""

    def __init__(self, blocks: int = 4, dtype: torch.dtype = torch.float32, width: int = WIDTH) -> None:
        with torch.device("meta"):
            self.module = ToyModule(blocks, width)
        self.dtype = dtype
        paths = tuple(f"blocks.{index}" for index in range(blocks))
        names = WeightMap(
            (self.folder,),
            paths,
            frozenset({"table.weight"}),
            source=lambda name: f"model.{name}",
            unread=("lm_head.weight",),
        )
        self.weights = replace(names, **self.kept)

    def activation_bytes(self, request: GenerateRequest) -> int:
        return request.size.width * request.size.height


def write_toy(
    folder: Path, blocks: int = 4, dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> dict[str, torch.Tensor]:
    """Writes random weights, an unreachable tensor among them; returns the state that a Toy should have."""
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape).to(dtype) for name, value in ToyModule(blocks, width).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    stored = {f"model.{name}": value for name, value in state.items()} | {"lm_head.weight": torch.zeros(3)}
    save_file(stored, folder / "model.safetensors")
    return state


def load_toy(
    root: Path, device: Device, blocks: int = 4, lazy: bool = False, width: int = WIDTH, ahead: int = 0
) -> tuple[Toy, WeightResidency]:
    toy = Toy(blocks, width=width)
    layout = make_layout(toy, read_index(root / "toy"), toy.blocks)
    source = OnDisk(layout) if lazy else HostCopy(layout, device.pinned)
    return toy, WeightResidency(toy, layout, source, device, ahead)


@contextmanager
def one_pass(residence: WeightResidency, limit: int, used: Collection[str] | None = None) -> Iterator[None]:
    """A run that uses every block once."""
    with residence.running(limit, used):
        residence.begin(another=False)
        yield


def passes(residence: WeightResidency, count: int) -> Iterator[int]:
    """Begins as many passes, within a run."""
    for index in range(count):
        residence.begin(another=index + 1 < count)
        yield index


@contextmanager
def activated(adapters: Adapters, request: GenerateRequest, units: Collection[str] = ()) -> Iterator[None]:
    """Lets the module compute with the LoRAs of `request`. A LoRA of a layer in one of `units` counts in calls of that
    unit, of another layer in every call of the layer."""
    with adapters.chosen(request, units) as loras, loras.active():
        yield


def expected(state: dict[str, torch.Tensor], hidden: torch.Tensor, width: int = WIDTH) -> torch.Tensor:
    """The output with all weights in place, by torch alone."""
    module = ToyModule(sum(name.endswith(".0.weight") for name in state), width)
    module.load_state_dict(state)
    output: torch.Tensor = module(hidden)
    return output
