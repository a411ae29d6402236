"""What is made of a reference that is taken has a size that is taken."""

from __future__ import annotations

import pytest
from PIL import Image

from lightx2v.core import Clip, Size
from lightx2v.limits import Limits
from lightx2v.models.flux2.recipe import Flux2Recipe
from lightx2v.models.qwen_image.recipe import QwenImageEditRecipe
from lightx2v.models.recipe import REFERENCE_MAX_ASPECT
from lightx2v.models.registry import Recipe
from lightx2v.models.wan.recipe import WanRecipe
from lightx2v.models.zimage.recipe import ZImageRecipe

SQUARE, CLIP = Size(1024, 1024), Clip(81, 4, 16)
RECIPES = {
    "flux2": Flux2Recipe(True, SQUARE, 4, 1.0, multiple=16),
    "z-image": ZImageRecipe(SQUARE, 8, 0.0, multiple=16, shift=3.0),
    "qwen-image-edit": QwenImageEditRecipe(SQUARE, 40, 4.0, multiple=16),
    "wan": WanRecipe(Size(832, 480), 40, 5.0, multiple=16, clip=CLIP, max_references=1),
    "wan-5b": WanRecipe(Size(1280, 704), 50, 5.0, multiple=32, clip=CLIP, max_references=1),
}


@pytest.mark.parametrize("short", [64, 65, 66, 75, 79, 127, 400])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_of_the_longest_reference(recipe: Recipe, short: int) -> None:
    long = REFERENCE_MAX_ASPECT * short
    for width, height in ((long, short), (short, long), (long - 49, short)):
        fitted = recipe.fit_reference(Image.new("L", (width, height)))
        Limits()._check_size(recipe.edit_size([Size(*fitted.size)]), recipe.multiple)
