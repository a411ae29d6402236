"""The autoencoder's stage: reference pictures to latents, and final latents to a picture or a video."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from lightx2v.media.mask import paste, token_shares
from lightx2v.models.component import Autoencoder
from lightx2v.models.visits import Pause, Visits
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

    def encode(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[tuple[Latents, ...]]:
        """The latents of each of `inputs.pictures`, which are fitted, normalised for the transformer, on the host; the
        first ones with the mask, if there is one. Raises Cancelled."""
        encoded = []
        for picture in inputs.pictures:
            control.check()
            yield Pause.BLOCK
            latents = self.component.encode(request, picture, self.device.torch_device)
            encoded.append(replace(latents, tokens=latents.tokens.cpu()))
        if inputs.mask is not None:
            shares = token_shares(inputs.mask, encoded[0].rows, encoded[0].columns)
            encoded[0] = replace(encoded[0], edited=torch.from_numpy(shares))
        return tuple(encoded)

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[Picture | Video]:
        """The picture of final latents, or the video if they have several frames. With a mask, all pixels outside of
        it are those of `inputs.pictures[0]`. Raises Cancelled."""
        control.check()
        latents = need(inputs.latents)
        yield Pause.BLOCK
        made = self.component.decode(replace(latents, tokens=latents.tokens.to(self.device.torch_device)))
        if inputs.mask is None:
            return made
        return replace(made, pixels=paste(made.pixels, inputs.pictures[0].pixels, inputs.mask))
