"""The autoencoder's two ways: reference pictures to latents, final latents to a picture."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lightx2v.core import GenerateRequest, Latents, Picture, StageName, Video
from lightx2v.models.component import Autoencoder
from lightx2v.stages.run import Control, StageInputs, StageMethod, StageRun, need
from lightx2v.stages.stage import Stage


class DecodeStage(Stage[Autoencoder]):
    """The autoencoder, for both of its directions."""

    name: StageName = "decode"

    def method_blocks(self, name: StageMethod) -> Collection[str]:
        return self.component.encode_blocks if name == "encode" else self.component.decode_blocks

    def method(self, name: StageMethod) -> StageRun:
        return self.encode if name == "encode" else super().method(name)

    def encode(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> tuple[Latents, ...]:
        """Each of `inputs.pictures`, which are fitted, as the transformer sees it, on the host."""
        encoded = []
        for picture in inputs.pictures:
            control.check()
            latents = self.component.encode(request, picture, self.device.torch_device)
            encoded.append(replace(latents, tokens=latents.tokens.cpu()))
        return tuple(encoded)

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Picture | Video:
        """The picture of final latents, or the video of those of several frames."""
        control.check()
        latents = need(inputs.latents)
        return self.component.decode(replace(latents, tokens=latents.tokens.to(self.device.torch_device)))
