"""Wan as diffusers makes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from diffusers import WanPipeline

from lightx2v.core import GenerateRequest


def reference_generate(oracle: WanPipeline, request: GenerateRequest) -> tuple[torch.Tensor, npt.NDArray[np.floating]]:
    """The last latents, [tokens, channels], and the video, [frames, height, width, 3] from 0 to 1."""
    last: dict[str, torch.Tensor] = {}
    video = oracle(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.size.width,
        height=request.size.height,
        num_frames=request.frames,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        guidance_scale_2=request.refine_guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        callback_on_step_end=lambda _pipeline, _step, _time, tensors: last.update(tensors) or tensors,
    ).frames[0]
    return last["latents"][0].flatten(1).transpose(0, 1), video
