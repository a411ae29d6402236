"""Prompt to conditioning."""

from __future__ import annotations

from lightx2v.core import Conditioning, GenerateRequest, StageName
from lightx2v.models.component import TextEncoder
from lightx2v.stages.stage import Cancel, Stage, check


class EncodeStage(Stage[TextEncoder]):
    name: StageName = "encode"

    def run(self, request: GenerateRequest, cancelled: Cancel) -> Conditioning:
        """The prompt's conditioning on the host, and the negative prompt's where it has an effect."""
        check(cancelled)
        positive = self.component.encode(request.prompt, self.device.torch_device).cpu()
        if not self.component.is_guided(request):
            return Conditioning(positive)
        check(cancelled)
        return Conditioning(positive, self.component.encode(request.negative_prompt, self.device.torch_device).cpu())
