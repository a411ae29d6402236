"""Qwen-Image and its edits as diffusers makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline

from lightx2v.types import GenerateRequest


def reference_generate(
    pipeline: QwenImagePipeline | QwenImageEditPlusPipeline, request: GenerateRequest, **inputs: Any
) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """The last latents and the picture. Its convention for a guided request without a negative prompt is a space."""
    last: dict[str, torch.Tensor] = {}
    picture = pipeline(
        **inputs,
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
