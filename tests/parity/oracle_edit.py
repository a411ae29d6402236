"""Qwen-Image-Edit's own pipeline as it is meant to be.

Two things are put right. Qwen2VLProcessor cannot be had without torchvision: a stand-in calls transformers' own image
processor for PIL and the tokenizer as it does. And this pair of diffusers and transformers does not tell the text
encoder which tokens are pictures', so that it falls back to positions on one axis (diffusers' issue 14194).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

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
