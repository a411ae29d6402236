"""The families of models that can be served, by the class named in `model_index.json`. Free of torch until a part of
a model is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightx2v.core import STAGES, Clip, GenerateRequest, Size, StageName
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import has_part, read_configuration, require

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lightx2v.models.component import Autoencoder, Denoiser, Refiner, TextEncoder

INDEX, SECOND = "model_index.json", "transformer_2"


class Recipe(Protocol):
    """What a request to a model looks like when it says nothing, and what the model can take."""

    @property
    def size(self) -> Size:
        """The default size of a picture."""

    @property
    def steps(self) -> int:
        """The default number of denoising steps."""

    @property
    def guidance(self) -> float:
        """The default guidance scale."""

    @property
    def multiple(self) -> int:
        """Both sides of a picture are multiples of it, in pixels."""

    @property
    def min_references(self) -> int:
        """So many reference pictures are needed: 0 where text alone makes a picture."""

    @property
    def max_references(self) -> int:
        """So many reference pictures are looked at."""

    @property
    def starts_from_picture(self) -> bool:
        """Whether a reference is where the steps begin, so that a request has a strength."""

    @property
    def clip(self) -> Clip | None:
        """The default length of a video; None if the model makes pictures only."""

    def is_guided(self, request: GenerateRequest) -> bool:
        """Whether a step follows the difference between two prompts."""

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The reference picture as the autoencoder takes it. Raises InvalidRequest if it cannot be used."""

    def see(self, image: Image.Image) -> Image.Image | None:
        """The reference picture as the text encoder sees it; None where it looks at none."""

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The default size when there are fitted reference pictures."""


@dataclass(frozen=True, slots=True)
class Family:
    """Checkpoints that share their code. Each part is a `module:attribute` of this package, imported when it is asked
    for."""

    name: str
    pipelines: tuple[str, ...]
    """The values of `_class_name` that this family reads."""
    reader: str
    """What reads the recipe of a checkpoint."""
    parts: tuple[str, str, str]
    """Encoder, denoiser and autoencoder: classes, constructed from a checkpoint and a dtype."""
    second: str | None = None
    """The denoiser of the last steps, of the family's checkpoints that have a transformer of their own for them."""

    def stages(self, checkpoint: Path) -> tuple[StageName, ...]:
        """The stages that a request to this checkpoint passes, in order."""
        refines = self.second is not None and has_part(read_configuration(checkpoint, INDEX), SECOND)
        return tuple(stage for stage in STAGES if refines or stage != "refine")

    def recipe(self, checkpoint: Path) -> Recipe:
        """The defaults of one checkpoint of the family."""
        read: Callable[[Path], Recipe] = _part(self.reader)
        return read(checkpoint)

    @property
    def encoder(self) -> Callable[[Path, torch.dtype], TextEncoder]:
        return _part(self.parts[0])

    @property
    def denoiser(self) -> Callable[[Path, torch.dtype], Denoiser]:
        return _part(self.parts[1])

    @property
    def refiner(self) -> Callable[[Path, torch.dtype], Refiner]:
        assert self.second is not None, "stages() names no refine stage"
        return _part(self.second)

    @property
    def autoencoder(self) -> Callable[[Path, torch.dtype], Autoencoder]:
        return _part(self.parts[2])


FAMILIES = (
    Family(
        "flux2-klein",
        ("Flux2KleinPipeline",),
        "flux2.recipe:read_recipe",
        ("flux2.qwen3:Qwen3TextEncoder", "flux2.denoiser:Flux2Denoiser", "flux2.autoencoder:Flux2Autoencoder"),
    ),
    Family(
        "flux2-dev",
        ("Flux2Pipeline",),
        "flux2.recipe:read_recipe",
        ("flux2.mistral:MistralTextEncoder", "flux2.denoiser:Flux2Denoiser", "flux2.autoencoder:Flux2Autoencoder"),
    ),
    Family(
        "z-image",
        ("ZImagePipeline",),
        "zimage.recipe:read_recipe",
        ("zimage.encoder:ZImageTextEncoder", "zimage.denoiser:ZImageDenoiser", "zimage.autoencoder:ZImageAutoencoder"),
    ),
    Family(
        "qwen-image",
        ("QwenImagePipeline",),
        "qwen_image.recipe:read_recipe",
        (
            "qwen_image.encoder:QwenImageTextEncoder",
            "qwen_image.denoiser:QwenImageDenoiser",
            "qwen_image.autoencoder:QwenImageAutoencoder",
        ),
    ),
    Family(
        "qwen-image-edit",
        ("QwenImageEditPlusPipeline",),
        "qwen_image.recipe:read_recipe",
        (
            "qwen_image.edit_encoder:QwenImageEditTextEncoder",
            "qwen_image.denoiser:QwenImageDenoiser",
            "qwen_image.autoencoder:QwenImageEditAutoencoder",
        ),
    ),
    Family(
        "wan",
        ("WanPipeline", "WanImageToVideoPipeline"),
        "wan.recipe:read_recipe",
        ("wan.encoder:WanTextEncoder", "wan.denoiser:WanDenoiser", "wan.autoencoder:WanAutoencoder"),
        second="wan.refiner:WanRefiner",
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


def _part(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(f"lightx2v.models.{module}"), attribute)
