"""From settings to a stage on a device."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from lightx2v.checkpoint import read_recipe, resolve, resolve_loras
from lightx2v.config import EngineSettings
from lightx2v.core import GenerateRequest, StageName
from lightx2v.models.registry import find_family
from lightx2v.stages.decode import DecodeStage
from lightx2v.stages.denoise import DenoiseStage, RefineStage
from lightx2v.stages.encode import EncodeStage
from lightx2v.stages.stage import Stage
from lightx2v.weights.card import CpuCard
from lightx2v.weights.device import CpuDevice, CudaDevice, Device

READS: dict[StageName, tuple[str, ...]] = {
    "encode": ("text_encoder", "tokenizer", "image_encoder"),
    "denoise": ("transformer",),
    "refine": ("transformer_2",),
    "decode": ("vae",),
}
"""The parts of a checkpoint that a stage's process needs on its disk, if they are there."""


def load_stage(name: StageName, settings: EngineSettings, device: Device) -> Stage[Any]:
    """The stage with its weights on the host, nothing of it on the device yet. Raises InvalidCheckpoint."""
    checkpoint = resolve(settings, READS[name])
    family = find_family(checkpoint)
    dtype = getattr(torch, settings.dtype)
    if name == "encode":
        return EncodeStage(family.encoder(checkpoint, dtype), checkpoint, settings, device)
    if name == "denoise":
        denoiser = family.denoiser(checkpoint, dtype)
        return DenoiseStage(denoiser, checkpoint, settings, device, resolve_loras(settings))
    if name == "refine":
        return RefineStage(family.refiner(checkpoint, dtype), checkpoint, settings, device, {})
    return DecodeStage(family.autoencoder(checkpoint, dtype), checkpoint, settings, device)


def open_device(kind: Literal["cuda", "cpu"], settings: EngineSettings, card: str) -> Device:
    """The first visible GPU, or the cpu with the settings' budget, shared by all processes that name the same card.

    On the cpu all cores compute: the number of threads shows in the last bit, and must not depend on the process.
    """
    if kind == "cuda":
        return CudaDevice()
    torch.set_num_threads(os.cpu_count() or 1)
    return CpuDevice(CpuCard(card, settings.gpu_budget) if settings.gpu_budget else None)


def planning_request(settings: EngineSettings) -> GenerateRequest:
    """The request that the plan is made for: all defaults, and no more references than are needed. Others make others
    give way meanwhile."""
    recipe = read_recipe(settings)
    frames = recipe.clip.frames if recipe.clip else 1
    references = (recipe.size,) * recipe.min_references
    return GenerateRequest(
        "plan", "", recipe.size, recipe.steps, 0, recipe.guidance, references=references, frames=frames
    )
