"""The interface between the parts of a model and the stages: a module without weights, and what it needs to run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import ClassVar, Generic, TypeVar

import torch
from torch import nn

from lightx2v.layers.compiled import compile_blocks
from lightx2v.models.flow import first_step, guide, noised
from lightx2v.models.inpaint import Inpaint, inpaint_bytes, inpaint_member_bytes
from lightx2v.models.sampler import C, Euler, SamplingState, Stepper
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Visits
from lightx2v.types import Conditioning, GenerateRequest, Latents, Picture, Size, Video
from lightx2v.weights.layout import WeightMap
from lightx2v.weights.names import Table

M = TypeVar("M", bound=nn.Module)

FP8_SPEED = 1.4
"""The speed of a transformer with layers in fp8, in that of bf16: 0.361 instead of 0.504 s for four steps of klein-9B
(H200)."""

FP8_WORKSPACE = 1.1
"""The activation memory with layers in fp8, in that of bf16: a layer's input exists twice for a while, in fp8 too."""

SMALL_BYTES = 64 << 10
"""Bytes that a member's small tensors take, such as the times of its steps."""


class Component(ABC):
    """A module built on the meta device from a checkpoint's configuration.

    Its parameters and buffers are bound later, to views of device memory, one unit at a time. A unit is one of
    `blocks`, or the rest: all that lies outside of every block, which is needed throughout a run.
    """

    folder: ClassVar[str]
    """The folder of the checkpoint that holds the weights."""

    names: Table = MappingProxyType({})
    """The names that other makers have for layers of `module`."""

    module: nn.Module
    dtype: torch.dtype
    spec: ModelSpec
    weights: WeightMap

    def __init__(self, dtype: torch.dtype, spec: ModelSpec) -> None:
        self.dtype, self.spec = dtype, spec

    @property
    def blocks(self) -> tuple[str, ...]:
        """Paths of the submodules that can come and go one by one, in order of use."""
        return self.weights.blocks

    def block_layers(self) -> Iterator[tuple[str, nn.Linear]]:
        """Yields the linear layers in the blocks that may be kept in another form, by path: not those that stay on the
        host or have to be precise."""
        exact = self.weights.host_tensors | self.weights.precise
        for block in self.blocks:
            for path, layer in self.module.get_submodule(block).named_modules(prefix=block):
                if isinstance(layer, nn.Linear) and f"{path}.weight" not in exact:
                    yield path, layer

    def workspace(self, request: GenerateRequest) -> int:
        """Device bytes that a run needs beside weights, in the precision that the layers are kept in."""
        nbytes = self.activation_bytes(request)
        kept = int(FP8_WORKSPACE * nbytes) if self.weights.fp8_layers else nbytes
        return kept + self.weights.unpacked_bytes

    def flops(self, request: GenerateRequest) -> float:
        """Operations of one use of all blocks, as the number of bf16 operations that take the same time. Weights can
        move meanwhile. 0 if nothing is known."""
        count = self.operations(request)
        return count / FP8_SPEED if self.weights.fp8_layers else count

    @abstractmethod
    def activation_bytes(self, request: GenerateRequest) -> int:
        """Device bytes that a run needs beside weights if no layer is kept in fp8."""

    def member_bytes(self, request: GenerateRequest) -> int:
        """Device bytes that a request keeps at a pause, while another one computes. By default none: it pauses before
        it begins."""
        return 0

    def operations(self, request: GenerateRequest) -> float:
        """Operations of one use of all blocks; 0 if nothing is known."""
        return 0.0

    def compile(self) -> None:
        """Arranges for the blocks to be compiled at their first use."""
        compile_blocks(self.module, self.blocks)


class TextEncoder(Component):
    """The part that makes a conditioning of a prompt, and of pictures where it sees them."""

    folder = "text_encoder"

    sees: bool = False
    """Whether it looks at reference pictures."""

    max_tokens: int
    """The tokens to which a prompt is cut, those of its template included."""

    @abstractmethod
    def count_tokens(self, prompt: str, pictures: int) -> int:
        """How many tokens a prompt has before it is cut, those of its template included. `pictures`: how many are seen
        together with it."""

    @abstractmethod
    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        """The conditioning for `prompt`: [tokens, features] on `device`, where the blocks are. `pictures`: the
        references as the encoder sees them."""

    def look(self, pictures: Sequence[Picture], device: torch.device) -> torch.Tensor | None:
        """Features of the references alone: [tokens, features] on `device`; None if they are seen only together with a
        prompt."""
        return None

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether the negative prompt has any effect on this request."""
        return self.spec.is_guided(request)

    def negative(self, request: GenerateRequest) -> str:
        """The negative prompt, or the default if the request has none."""
        return request.negative_prompt


class Denoiser(Component, Generic[C]):
    """The transformer and its schedule. A family says how a request starts and what the transformer predicts; the
    guided step is the same for all."""

    folder = "transformer"

    host_loras: frozenset[str] = frozenset()
    """The names of the LoRAs that change layers which stay on the host. The stage sets it once."""

    def num_steps(self, request: GenerateRequest) -> int:
        """How many steps this transformer takes: all that are asked for, unless the steps start from a picture or
        another transformer takes some."""
        return request.steps - self.first_step(request)

    def first_step(self, request: GenerateRequest) -> int:
        """The index of the first step; above 0 only if the steps start from a picture."""
        return first_step(request.steps, request.strength) if self.spec.has_strength(request) else 0

    def workspace(self, request: GenerateRequest) -> int:
        inpainting = inpaint_bytes(math.prod(self.grid(request.size))) if request.is_masked else 0
        return super().workspace(request) + inpainting

    def member_bytes(self, request: GenerateRequest) -> int:
        inpainting = inpaint_member_bytes(math.prod(self.grid(request.size))) if request.is_masked else 0
        return self.held_bytes(request) + inpainting + SMALL_BYTES

    @abstractmethod
    def held_bytes(self, request: GenerateRequest) -> int:
        """Device bytes that a request keeps at a pause, a mask and its picture apart: the states of all branches
        between two blocks, the conditions, the latents and what the solver remembers. Tensors of a few kilobytes
        need not be counted."""

    def steps_elsewhere(self, request: GenerateRequest) -> tuple[int, int]:
        """Steps that another transformer takes before this one's, and after them."""
        return 0, 0

    def branches(self, request: GenerateRequest) -> int:
        """How many prompts a step looks at."""
        return 2 if self.spec.is_guided(request) else 1

    def grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of tokens in a picture of `size`."""
        return size.height // self.spec.multiple, size.width // self.spec.multiple

    def guidance(self, request: GenerateRequest) -> float:
        """The guidance scale in the steps of this transformer."""
        return request.guidance

    @abstractmethod
    def start(
        self, request: GenerateRequest, conditioning: Conditioning, references: Sequence[Latents], device: torch.device
    ) -> SamplingState[C]:
        """The state before the first step: noise on `device`, and all that can be computed once for all steps."""

    @abstractmethod
    def predict(self, state: SamplingState[C]) -> Visits[torch.Tensor]:
        """[branches, ...]: the velocity of the latents for the prompt and, in a guided step, for the negative prompt.

        Both branches pass a block together, so a streamed block crosses the link once per step.
        """

    def guide(self, towards: torch.Tensor, away: torch.Tensor, guidance: float) -> torch.Tensor:
        """[1, ...]: the velocity of a guided step."""
        return guide(towards, away, guidance)

    def velocity(self, state: SamplingState[C]) -> Visits[torch.Tensor]:
        """[1, ...]: where the next step leads."""
        predicted = yield from self.predict(state)
        if len(predicted) == 1:
            return predicted
        towards, away = predicted.split(1)
        return self.guide(towards, away, self.guidance(state.request))

    def latents(self, state: SamplingState[C]) -> Latents:
        """The latents of `state` as they leave the stage."""
        return Latents(state.latents[0], *self.grid(state.request.size))

    def state(
        self, request: GenerateRequest, conditions: C, stepper: Stepper, latents: torch.Tensor
    ) -> SamplingState[C]:
        """The state before this transformer's first step."""
        stop = request.steps - self.steps_elsewhere(request)[1]
        return SamplingState(request, conditions, stepper, latents, stop - self.num_steps(request), stop)

    def start_euler(
        self,
        request: GenerateRequest,
        conditions: C,
        levels: torch.Tensor,
        drawn: torch.Tensor,
        references: Sequence[Latents],
        device: torch.device,
    ) -> SamplingState[C]:
        """The state before the first Euler step, from noise, or from the first reference and noise.

        `levels`: fp32 [steps + 1]. `drawn`: [1, tokens, channels], the noise on the host, in the latents' dtype.
        """
        stepper: Stepper = Euler(levels)
        if not self.spec.has_strength(request):
            return self.state(request, conditions, stepper, drawn.to(device))
        clean, noise = references[0].tokens[None].float().cpu(), drawn.float()
        start = noised(clean, noise, levels[self.first_step(request)]).to(drawn.dtype)
        if request.is_masked:
            stepper = Inpaint(stepper, levels, references[0], noise, device)
        return self.state(request, conditions, stepper, start.to(device))


class Refiner(Denoiser[C]):
    """The denoiser of the last steps."""

    folder = "transformer_2"

    @abstractmethod
    def restart(
        self,
        request: GenerateRequest,
        conditioning: Conditioning,
        references: Sequence[Latents],
        begun: Latents,
        device: torch.device,
    ) -> SamplingState[C]:
        """The state before the first step of this transformer. `begun`: the latents that the other denoiser left, with
        their history."""


class Autoencoder(Component):
    """The part between pictures and latents, both ways."""

    folder = "vae"

    encode_blocks: tuple[str, ...] = ("encoder",)
    """Those of `blocks` that `encode` enters."""

    decode_blocks: tuple[str, ...] = ("decoder",)
    """Those of `blocks` that `decode` enters."""

    def compile(self) -> None:
        """Does nothing here: the blocks are not of one kind, and a family knows which are worth it."""

    @abstractmethod
    def encode(self, request: GenerateRequest, picture: Picture, device: torch.device) -> Latents:
        """The latents of a fitted reference picture."""

    @abstractmethod
    def decode(self, latents: Latents) -> Picture | Video:
        """The picture of final latents, or the video if they have several frames."""


def on_meta(build: Callable[[], M], dtype: torch.dtype) -> M:
    """The module that `build` returns, for inference, its states in `dtype` on the meta device."""
    with torch.device("meta"):
        module = build()
    nn.Module.to(module, dtype)  # diffusers' own warns of layers to be kept in fp32, also where there are none
    return module.eval().requires_grad_(False)
