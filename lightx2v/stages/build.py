"""Builds stages and devices from settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch

from lightx2v.checkpoint import resolve, resolve_loras, resolve_parts
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidSettings
from lightx2v.models.fp8 import keep_in_fp8
from lightx2v.models.registry import FOLDERS, find_family
from lightx2v.models.request import planning_request
from lightx2v.stages.decode import DecodeStage
from lightx2v.stages.denoise import DenoiseStage, RefineStage, StepStage
from lightx2v.stages.encode import EncodeStage
from lightx2v.stages.stage import Stage
from lightx2v.types import TRANSFORMERS, StageName
from lightx2v.weights.adapters import read_usable
from lightx2v.weights.device import CpuDevice, CudaDevice, Device
from lightx2v.weights.emulated_card import EmulatedCard

STAGES: Mapping[StageName, type[Stage[Any]]] = {
    "encode": EncodeStage,
    "denoise": DenoiseStage,
    "refine": RefineStage,
    "decode": DecodeStage,
}

FP8_CAPABILITY = (8, 9)
"""The compute capability from which GPUs multiply in fp8."""


def load_stage(name: StageName, settings: EngineSettings, device: Device) -> Stage[Any]:
    """The stage with its weights on the host, and none on the device yet. Raises InvalidCheckpoint."""
    checkpoint = resolve(settings, FOLDERS[name])
    family = find_family(checkpoint)
    spec = family.spec(checkpoint)
    dtype = getattr(torch, settings.precision(cuda=device.torch_device.type == "cuda"))
    component = family.build(name, checkpoint, dtype, spec)
    if settings.fp8 and name != "decode":
        keep_in_fp8(component)
    stage = STAGES[name]
    loras = (resolve_loras(settings, name),) if issubclass(stage, StepStage) else ()
    places = resolve_parts(settings, checkpoint, component.weights.folders)
    return stage(component, places, settings, device, planning_request(spec), *loras)


def check_loras(settings: EngineSettings) -> None:
    """Raises InvalidCheckpoint for the first of the settings' LoRAs that cannot be used. Reads no weights."""
    checkpoint = resolve(settings)
    family = find_family(checkpoint)
    for name in TRANSFORMERS:
        if name in family.stages(checkpoint):
            component = family.build(name, checkpoint, torch.float32, family.spec(checkpoint))
            if settings.fp8:
                keep_in_fp8(component)
            for lora in resolve_loras(settings, name).values():
                read_usable(lora, component)


def open_device(kind: Literal["cuda", "cpu"], settings: EngineSettings, card: str) -> Device:
    """The first visible GPU, or the CPU with the settings' budget, shared by all processes that name the same card.

    The CPU always computes on all cores: the number of threads shows in the last bit, and must not depend on the
    process. Raises InvalidSettings if the GPU lacks fp8 and the settings ask for it.
    """
    if kind == "cuda":
        _check_fp8(settings)
        return CudaDevice()
    torch.set_num_threads(os.cpu_count() or 1)
    return CpuDevice(EmulatedCard(card, settings.gpu_budget) if settings.gpu_budget else None)


def _check_fp8(settings: EngineSettings) -> None:
    capability = torch.cuda.get_device_capability()
    if settings.fp8 and capability < FP8_CAPABILITY:
        needed, found = (".".join(map(str, pair)) for pair in (FP8_CAPABILITY, capability))
        raise InvalidSettings(f"fp8: needs a GPU of compute capability {needed} or more, this one has {found}")
