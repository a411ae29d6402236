"""What every part of a model offers to the stages: a module without weights, and what it needs to run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn

from lightx2v.core import Conditioning, GenerateRequest, Latents, Picture


class Component(ABC):
    """A module built on the meta device from a checkpoint's configuration.

    Its parameters and buffers are bound later, to views of device memory, one unit at a time: a unit is one of
    `blocks`, or the rest (all that lies outside every block), which is needed throughout a run.
    """

    folder: ClassVar[str]
    """Where in the checkpoint the weights lie."""

    module: nn.Module
    dtype: torch.dtype
    blocks: tuple[str, ...]
    """Paths of the submodules that can come and go one by one, in order of use. Each is entered by `__call__`."""

    host_tensors: frozenset[str] = frozenset()
    """State names that stay on the host (an embedding table is a gather of a few rows)."""

    unreachable: frozenset[str] = frozenset()
    """State names that no forward pass reads; they are neither loaded nor placed."""

    def source(self, name: str) -> str:
        """The checkpoint's name of a state of `module`."""
        return name

    @abstractmethod
    def workspace(self, request: GenerateRequest) -> int:
        """Device bytes that a run needs beside weights."""


class TextEncoder(Component):
    folder = "text_encoder"

    @abstractmethod
    def encode(self, prompt: str, device: torch.device) -> torch.Tensor:
        """[tokens, features] on `device`, where the blocks are."""

    @abstractmethod
    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether the negative prompt has any effect on this request."""


class Denoiser(Component):
    folder = "transformer"

    @abstractmethod
    def steps(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> Iterator[Latents]:
        """Yields the latents after each of `request.steps` steps; between two items the caller may give up."""


class Autoencoder(Component):
    folder = "vae"

    @abstractmethod
    def encode(self, picture: Picture, device: torch.device) -> Latents:
        """A fitted reference picture as the transformer sees it."""

    @abstractmethod
    def decode(self, latents: Latents) -> Picture:
        """The picture of final latents."""
