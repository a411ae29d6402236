"""What both sides of a comparison need: the reference's own pipeline, and a component with all its weights bound."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, ProcessorMixin

from lightx2v.config import EngineSettings
from lightx2v.models.component import Component
from lightx2v.models.reference_image import make_reference
from lightx2v.models.registry import find_family
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest, Latents, Picture, Reference, Size, Video

C = TypeVar("C", bound=Component)

LATENTS, PIXELS = 2e-5, 1
"""How far results may be apart: latents in fp32, and pixels in steps of 1/255."""

REFERENCE_SIZES = ((96, 64), (64, 80))


def bind(component: C, checkpoint: Path) -> C:
    """Loads all weights that `component` says it reads, and no others."""
    folders = component.weights.folders
    files = sorted(file for folder in folders for file in (checkpoint / folder).glob("*.safetensors"))
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    wanted = [name for name in component.module.state_dict() if name not in component.weights.unreachable]
    dtypes = {name: torch.float32 if name in component.weights.precise else component.dtype for name in wanted}
    states = {name: stored[component.weights.source(name)].to(dtypes[name]) for name in wanted}
    missing, unexpected = component.module.load_state_dict(states, strict=False, assign=True)
    assert set(missing) <= component.weights.unreachable
    assert not unexpected
    return component


def generate(
    checkpoint: Path, request: GenerateRequest, references: Sequence[Reference] = ()
) -> tuple[Latents, Picture | Video]:
    """The whole path in one process, everything resident."""
    settings = EngineSettings(model=str(checkpoint), dtype="float32", device="cpu", cpu_offload=False)
    with closing(Pipeline(settings)) as pipeline:
        latents = pipeline.latents(request, references)
        return latents, pipeline.decode(request, latents, references)


def make_with_all(checkpoint: Path, *heights: int, **settings: Any) -> list[Picture | Video]:
    """With guidance, frames, and as many references as the model takes, up to two, so that no part is left out. In fp32
    on the CPU, unless `settings` say otherwise."""
    spec = find_family(checkpoint).spec(checkpoint)
    taken = enumerate(REFERENCE_SIZES[: spec.max_references])
    references = [make_reference(make_image(seed, *size), spec) for seed, size in taken]
    width, frames = (32, 9) if spec.video else (80, 1)
    sizes = tuple(reference.fitted.size for reference in references)
    asked = {"frames": frames, "guidance": 4.0, "negative_prompt": "grey " * 40, "references": sizes}
    requests = [make_request(width, height, **asked) for height in heights]
    engine = EngineSettings.model_validate(
        {"model": str(checkpoint), "dtype": "float32", "device": "cpu", "compile": False} | settings
    )
    with closing(Pipeline(engine)) as pipeline:
        needs = [sum(size.units) + size.rest + size.activation_bytes for size in pipeline.sizes(requests[0])]
        assert engine.gpu_budget is None or engine.gpu_budget < max(needs), "else nothing streams"
        return [pipeline.generate(request, references) for request in requests]


class TextProcessor(ProcessorMixin):  # type: ignore[misc]
    """What of a PixtralProcessor is left without pictures. The real one cannot be had without torchvision."""

    def __init__(self, tokenizer: Any, chat_template: str) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


def load_reference(checkpoint: Path) -> DiffusionPipeline:
    if find_family(checkpoint).name != "flux2-dev":
        pipeline = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    else:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
        pipeline = DiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32, tokenizer=None)
        pipeline.tokenizer = TextProcessor(tokenizer, tokenizer.chat_template)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_generate(
    pipeline: DiffusionPipeline, request: GenerateRequest, images: Sequence[Image.Image] = (), **arguments: Any
) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """The reference's last latents, as it shapes them, and its picture, [height, width, 3]."""
    last: dict[str, torch.Tensor] = {}
    if images:
        arguments["image"] = list(images)
    if request.negative_prompt:
        arguments["negative_prompt_embeds"] = pipeline.encode_prompt(request.negative_prompt)[0]
    picture = pipeline(
        prompt=request.prompt,
        **arguments,
        width=request.size.width,
        height=request.size.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        callback_on_step_end=lambda _pipeline, _step, _time, tensors: last.update(tensors) or tensors,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images[0]
    return last["latents"][0], np.asarray(picture)


def make_request(width: int = 64, height: int = 64, **fields: object) -> GenerateRequest:
    defaults = {"id": "parity", "prompt": "a red circle left of a blue square on white", "steps": 4, "seed": 7}
    return GenerateRequest(size=Size(width, height), **(defaults | fields))  # type: ignore[arg-type]


def make_image(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
