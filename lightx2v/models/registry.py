"""The families of models that can be served, by the class named in `model_index.json`. Free of torch until a part of
a model is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import has_part, read_configuration, require
from lightx2v.models.spec import ModelSpec, read_prompt_tokens
from lightx2v.types import STAGES, StageName

if TYPE_CHECKING:
    import torch

INDEX, SECOND = "model_index.json", "transformer_2"

FOLDERS: Mapping[StageName, tuple[str, ...]] = {
    "encode": ("text_encoder", "tokenizer", "image_encoder"),
    "denoise": ("transformer",),
    "refine": (SECOND,),
    "decode": ("vae",),
}
"""The folders of a checkpoint that each stage reads, beside configurations. No other is downloaded: a copy of the
transformer at the root, as some repositories have, is not read."""


@dataclass(frozen=True, slots=True)
class Family:
    """Checkpoints that share their code, which is named as `module:attribute` of this package and imported when it is
    asked for."""

    name: str
    pipelines: tuple[str, ...]
    """The values of `_class_name` that this family reads."""
    reader: str
    """The function that reads the spec of a checkpoint."""
    components: Mapping[StageName, str]
    """The class of each stage's component. One for `refine` serves those checkpoints that have a second transformer."""

    def stages(self, checkpoint: Path) -> tuple[StageName, ...]:
        """The stages that a request to this checkpoint passes, in order."""
        refines = "refine" in self.components and has_part(read_configuration(checkpoint, INDEX), SECOND)
        return tuple(stage for stage in STAGES if refines or stage != "refine")

    def spec(self, checkpoint: Path) -> ModelSpec:
        """The defaults and abilities of one checkpoint of the family."""
        read: Callable[[Path], ModelSpec] = _load(self.reader)
        return replace(read(checkpoint), prompt_tokens=read_prompt_tokens(checkpoint))

    def build(self, stage: StageName, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> Any:
        """A stage's component, its module on the meta device. `spec`: that of `checkpoint`.

        Raises InvalidCheckpoint if the checkpoint's configurations are incomplete, or those of another model.
        """
        return _load(self.components[stage])(checkpoint, dtype, spec)


FAMILIES = (
    Family(
        "flux2-klein",
        ("Flux2KleinPipeline",),
        "flux2.spec:read_spec",
        {
            "encode": "flux2.qwen3:Qwen3TextEncoder",
            "denoise": "flux2.denoiser:Flux2Denoiser",
            "decode": "flux2.autoencoder:Flux2Autoencoder",
        },
    ),
    Family(
        "flux2-dev",
        ("Flux2Pipeline",),
        "flux2.spec:read_spec",
        {
            "encode": "flux2.mistral:MistralTextEncoder",
            "denoise": "flux2.denoiser:Flux2Denoiser",
            "decode": "flux2.autoencoder:Flux2Autoencoder",
        },
    ),
    Family(
        "z-image",
        ("ZImagePipeline",),
        "z_image.spec:read_spec",
        {
            "encode": "z_image.encoder:ZImageTextEncoder",
            "denoise": "z_image.denoiser:ZImageDenoiser",
            "decode": "z_image.autoencoder:ZImageAutoencoder",
        },
    ),
    Family(
        "qwen-image",
        ("QwenImagePipeline",),
        "qwen_image.spec:read_spec",
        {
            "encode": "qwen_image.encoder:QwenImageTextEncoder",
            "denoise": "qwen_image.denoiser:QwenImageDenoiser",
            "decode": "qwen_image.autoencoder:QwenImageAutoencoder",
        },
    ),
    Family(
        "qwen-image-edit",
        ("QwenImageEditPlusPipeline",),
        "qwen_image.spec:read_spec",
        {
            "encode": "qwen_image.edit_encoder:QwenImageEditTextEncoder",
            "denoise": "qwen_image.denoiser:QwenImageDenoiser",
            "decode": "qwen_image.autoencoder:QwenImageEditAutoencoder",
        },
    ),
    Family(
        "wan",
        ("WanPipeline", "WanImageToVideoPipeline"),
        "wan.spec:read_spec",
        {
            "encode": "wan.encoder:WanTextEncoder",
            "denoise": "wan.denoiser:WanDenoiser",
            "decode": "wan.autoencoder:WanAutoencoder",
            "refine": "wan.refiner:WanRefiner",
        },
    ),
)


def find_family(checkpoint: Path) -> Family:
    """The family that reads `checkpoint`. Raises InvalidCheckpoint if there is none."""
    index = read_configuration(checkpoint, INDEX)
    pipeline = require(index, "_class_name", checkpoint / INDEX)
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise InvalidCheckpoint(f"{checkpoint / INDEX}: {pipeline!r} is not supported; supported are {supported}")


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(f"lightx2v.models.{module}"), attribute)
