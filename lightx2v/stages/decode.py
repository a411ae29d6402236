"""The autoencoder's two ways: reference pictures to latents, final latents to a picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from lightx2v.core import GenerateRequest, Latents, Picture, StageName, Video
from lightx2v.models.component import Autoencoder
from lightx2v.stages.stage import Cancel, Stage, check


class DecodeStage(Stage[Autoencoder]):
    name: StageName = "decode"

    def blocks(self, job: str) -> Collection[str]:
        return self.component.encode_blocks if job == "encode" else self.component.decode_blocks

    def encode(self, request: GenerateRequest, pictures: Sequence[Picture], cancelled: Cancel) -> tuple[Latents, ...]:
        """Each fitted reference picture as the transformer sees it, on the host."""
        encoded = []
        for picture in pictures:
            check(cancelled)
            latents = self.component.encode(request, picture, self.device.torch_device)
            encoded.append(replace(latents, tokens=latents.tokens.cpu()))
        return tuple(encoded)

    def run(self, request: GenerateRequest, latents: Latents, cancelled: Cancel) -> Picture | Video:
        """The picture of final latents, or the video of those of several frames."""
        check(cancelled)
        return self.component.decode(replace(latents, tokens=latents.tokens.to(self.device.torch_device)))
