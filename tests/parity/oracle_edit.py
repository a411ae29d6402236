"""Qwen-Image-Edit's own pipeline as it is meant to be.

Two things are put right. Qwen2VLProcessor cannot be had without torchvision: a stand-in calls transformers' own image
processor for PIL and the tokenizer as it does. And this pair of diffusers and transformers does not tell the text
encoder which tokens are pictures', so that it falls back to positions on one axis (diffusers' issue 14194).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lightx2v.core import GenerateRequest
from lightx2v.models.qwen_image.edit_encoder import PAD

MERGED = 4
"""Patches of a token."""


class Processor:
    """What of a Qwen2VLProcessor is used here: each picture's place in the text is widened to its tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, Qwen2VLImageProcessorPil()

    def __call__(self, text: list[str], images: list[Image.Image], **arguments: Any) -> BatchFeature:
        seen = self.image_processor(images=images, return_tensors="pt")
        (widened,) = text
        for grid in seen["image_grid_thw"]:
            widened = widened.replace(PAD, "<|placeholder|>" * (int(grid.prod()) // MERGED), 1)
        ids = self.tokenizer([widened.replace("<|placeholder|>", PAD)], **arguments)
        return BatchFeature(ids | seen)


def load_edit_reference(checkpoint: Path) -> QwenImageEditPlusPipeline:
    pipeline = QwenImageEditPlusPipeline.from_pretrained(checkpoint, dtype=torch.float32, processor=None)
    pipeline.processor = Processor(pipeline.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    tell_pictures_apart(pipeline.text_encoder)
    return pipeline


def tell_pictures_apart(text_encoder: Any) -> None:
    forward = text_encoder.forward

    def told(*arguments: Any, **given: Any) -> Any:
        if given.get("image_grid_thw") is not None:
            given["mm_token_type_ids"] = (given["input_ids"] == text_encoder.config.image_token_id).int()
        return forward(*arguments, **given)

    text_encoder.forward = told


def reference_edit(
    pipeline: QwenImageEditPlusPipeline, request: GenerateRequest, images: Sequence[Image.Image]
) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """Its last latents and its picture."""
    last: dict[str, torch.Tensor] = {}
    picture = pipeline(
        image=list(images),
        prompt=request.prompt,
        negative_prompt=(request.negative_prompt or " ") if request.guidance > 1 else None,
        true_cfg_scale=request.guidance,
        width=request.size.width,
        height=request.size.height,
        num_inference_steps=request.steps,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        callback_on_step_end=lambda _pipeline, _step, _time, tensors: last.update(tensors) or tensors,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images[0]
    return last["latents"][0], np.asarray(picture)
