"""The families of models that can be served, by the class named in `model_index.json`. Free of torch until a part of
a model is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from lightx2v.core import Size
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.configuration import read_configuration, require

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lightx2v.models.component import Autoencoder, Denoiser, TextEncoder

INDEX = "model_index.json"


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

    def fit_reference(self, image: Image.Image) -> Image.Image:
        """The reference picture as the autoencoder takes it. Raises InvalidRequest if it cannot be used."""

    def edit_size(self, references: Sequence[Size]) -> Size:
        """The default size when there are fitted reference pictures."""


class Family(ABC):
    """Checkpoints that share their code. A part is imported when its class is asked for."""

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """The values of `_class_name` that this family reads."""

    @abstractmethod
    def recipe(self, checkpoint: Path) -> Recipe:
        """The defaults of one checkpoint of the family."""

    @property
    @abstractmethod
    def encoder(self) -> Callable[[Path, torch.dtype], TextEncoder]:
        """The class, constructed from a checkpoint and a dtype, like the other two."""

    @property
    @abstractmethod
    def denoiser(self) -> Callable[[Path, torch.dtype], Denoiser]: ...

    @property
    @abstractmethod
    def autoencoder(self) -> Callable[[Path, torch.dtype], Autoencoder]: ...


class Flux2Klein(Family):
    name = "flux2-klein"
    pipelines = ("Flux2KleinPipeline",)

    def recipe(self, checkpoint: Path) -> Recipe:
        from lightx2v.models.flux2.recipe import read_recipe

        return read_recipe(checkpoint)

    @property
    def encoder(self) -> Callable[[Path, torch.dtype], TextEncoder]:
        from lightx2v.models.flux2.encoder import Flux2TextEncoder

        return Flux2TextEncoder

    @property
    def denoiser(self) -> Callable[[Path, torch.dtype], Denoiser]:
        from lightx2v.models.flux2.denoiser import Flux2Denoiser

        return Flux2Denoiser

    @property
    def autoencoder(self) -> Callable[[Path, torch.dtype], Autoencoder]:
        from lightx2v.models.flux2.autoencoder import Flux2Autoencoder

        return Flux2Autoencoder


FAMILIES: tuple[Family, ...] = (Flux2Klein(),)


def find_family(checkpoint: Path) -> Family:
    """The family that reads `checkpoint`. Raises InvalidCheckpoint if there is none."""
    index = read_configuration(checkpoint, INDEX)
    pipeline = require(index, "_class_name", checkpoint / INDEX)
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise InvalidCheckpoint(f"{checkpoint / INDEX}: {pipeline!r} is not supported; supported are {supported}")
