"""Wan as diffusers makes it."""

from __future__ import annotations

from unittest.mock import Mock, patch

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from lightx2v.types import GenerateRequest


def reference_generate(
    oracle: DiffusionPipeline, request: GenerateRequest, image: Image.Image | None = None
) -> tuple[torch.Tensor, npt.NDArray[np.floating]]:
    """The latents that are decoded, [tokens, channels], and the video, [frames, height, width, 3] from 0 to 1."""
    config, decode = oracle.vae.config, Mock(wraps=oracle.vae.decode)
    with patch.object(oracle.vae, "decode", decode):
        video = _call(oracle, request, {} if image is None else {"image": image})
    latents = decode.call_args.args[0][0].flatten(1).transpose(0, 1)
    return (latents - torch.tensor(config.latents_mean)) / torch.tensor(config.latents_std), video


def _call(
    oracle: DiffusionPipeline, request: GenerateRequest, picture: dict[str, Image.Image]
) -> npt.NDArray[np.floating]:
    video: npt.NDArray[np.floating] = oracle(
        **picture,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.size.width,
        height=request.size.height,
        num_frames=request.frames,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        guidance_scale_2=request.refine_guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
    ).frames[0]
    return video
