"""The encoder's stage: prompts, and reference pictures if the model reads them, to conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lightx2v.config import EngineSettings
from lightx2v.models.component import TextEncoder
from lightx2v.models.notices import Notice, NoticeKind, truncated
from lightx2v.models.visits import Visits, together
from lightx2v.stages.conditioning_cache import ConditioningCache
from lightx2v.stages.interface import Control, StageInputs
from lightx2v.stages.stage import Stage
from lightx2v.types import Conditioning, GenerateRequest, Picture, StageName
from lightx2v.weights.device import Device


class EncodeStage(Stage[TextEncoder]):
    """Runs the text encoder, and caches its output for the latest prompts."""

    name: StageName = "encode"

    def __init__(
        self,
        component: TextEncoder,
        places: Sequence[Path],
        settings: EngineSettings,
        device: Device,
        planned: GenerateRequest,
    ) -> None:
        super().__init__(component, places, settings, device, planned)
        self._known = ConditioningCache(settings.conditioning_cache)

    def activation_bytes(self, request: GenerateRequest) -> int:
        """All prompts of a request pass the blocks together."""
        beside = (len(self._prompts(request)) - 1) * self.component.member_bytes(request)
        return super().activation_bytes(request) + beside

    def member_bytes(self, request: GenerateRequest) -> int:
        return len(self._prompts(request)) * super().member_bytes(request)

    def passes(self, request: GenerateRequest) -> int:
        return 0 if self.recall(request) else 1

    def planned_passes(self, request: GenerateRequest) -> int:
        """The prompt is new."""
        return 1

    def recall(self, request: GenerateRequest) -> Conditioning | None:
        if self._looks(request):
            return None
        prompts = self._prompts(request)
        found = [known for prompt in prompts if (known := self._known.find(prompt)) is not None]
        return Conditioning(*found) if len(found) == len(prompts) else None

    def run(self, request: GenerateRequest, inputs: StageInputs, control: Control) -> Visits[Conditioning]:
        """The conditioning of the prompt, and of the negative prompt if it has an effect, on the host.
        `inputs.pictures`: the encoder's views of the references. Raises Cancelled."""
        control.check()
        pictures = inputs.pictures
        seen = self._look(pictures) if pictures else None
        beside = pictures if seen is None else ()
        encoded = yield from together([self._encode(prompt, beside) for prompt in self._prompts(request)])
        return replace(Conditioning(*encoded), image_features=seen)

    def truncations(self, request: GenerateRequest) -> tuple[Notice, ...]:
        cut = self._truncation("prompt_truncated", request.prompt, request)
        if not (request.negative_prompt and self.component.is_guided(request)):
            return cut
        return cut + self._truncation("negative_prompt_truncated", request.negative_prompt, request)

    def _truncation(self, kind: NoticeKind, prompt: str, request: GenerateRequest) -> tuple[Notice, ...]:
        tokens = self.component.count_tokens(prompt, len(request.references))
        return truncated(kind, tokens, self.component.max_tokens)

    def _looks(self, request: GenerateRequest) -> bool:
        """Whether the conditioning depends on pictures too, and so is never cached."""
        return self.component.sees and bool(request.references)

    def _look(self, pictures: Sequence[Picture]) -> torch.Tensor | None:
        """The features of the references alone, on the host; None if the encoder has none of them."""
        seen = self.component.look(pictures, self.device.torch_device)
        return None if seen is None else seen.cpu()

    def _prompts(self, request: GenerateRequest) -> tuple[str, ...]:
        is_guided = self.component.is_guided(request)
        return (request.prompt, self.component.negative(request)) if is_guided else (request.prompt,)

    def _encode(self, prompt: str, pictures: Sequence[Picture]) -> Visits[torch.Tensor]:
        """The encoding of one prompt, together with `pictures`. It is cached only if there are none."""
        conditioning = None if pictures else self._known.find(prompt)
        if conditioning is None:
            encoded = yield from self.component.encode(prompt, pictures, self.device.torch_device)
            conditioning = encoded.cpu()
            if not pictures:
                self._known.add(prompt, conditioning)
        return conditioning
