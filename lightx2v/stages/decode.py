"""The autoencoder's stage: reference pictures to latents, and final latents to a picture or a video."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lightx2v.models.component import Autoencoder
from lightx2v.stages.interface import Control, StageInputs, StageMethod, StageRun, need
from lightx2v.stages.stage import Stage
from lightx2v.types import GenerateRequest, Latents, Picture, StageName, Video


class DecodeStage(Stage[Autoencoder]):
    """Runs the autoencoder in both directions."""

    name: StageName = "decode"

    def method_blocks(self, name: StageMethod) -> Collection[str]:
        return self.component.encode_blocks if name == "encode" else self.component.decode_blocks

    def method(self, name: StageMethod) -> StageRun:
        return self.encode if name == "encode" else super().method(name)

    def encode(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> tuple[Latents, ...]:
        """The latents of each of `inputs.pictures`, which are fitted, normalised for the transformer, on the host.
        Raises Cancelled."""
        encoded = []
        for picture in inputs.pictures:
            control.check()
            latents = self.component.encode(request, picture, self.device.torch_device)
            encoded.append(replace(latents, tokens=latents.tokens.cpu()))
        return tuple(encoded)

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Picture | Video:
        """The picture of final latents, or the video if they have several frames. Raises Cancelled."""
        control.check()
        latents = need(inputs.latents)
        return self.component.decode(replace(latents, tokens=latents.tokens.to(self.device.torch_device)))
