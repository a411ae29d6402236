"""What is made of a reference that is taken has a size that is taken."""

from __future__ import annotations

import pytest
from PIL import Image

from lightx2v.limits import Limits
from lightx2v.models.flux2.spec import Flux2Spec
from lightx2v.models.qwen_image.spec import QwenImageEditSpec
from lightx2v.models.reference_image import REFERENCE_MAX_ASPECT
from lightx2v.models.spec import ModelSpec
from lightx2v.models.wan.spec import WanSpec
from lightx2v.models.z_image.spec import ZImageSpec
from lightx2v.types import Size, VideoSpec

SQUARE, CLIP = Size(1024, 1024), VideoSpec(81, 4, 16)
SPECS = {
    "flux2": Flux2Spec(SQUARE, 4, 1.0, multiple=16, distilled=True),
    "z-image": ZImageSpec(SQUARE, 8, 0.0, multiple=16, shift=3.0),
    "qwen-image-edit": QwenImageEditSpec(SQUARE, 40, 4.0, multiple=16),
    "wan": WanSpec(Size(832, 480), 40, 5.0, multiple=16, video=CLIP, max_references=1),
    "wan-5b": WanSpec(Size(1280, 704), 50, 5.0, multiple=32, video=CLIP, max_references=1),
}


@pytest.mark.parametrize("short", [64, 65, 66, 75, 79, 127, 400])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_of_the_longest_reference(spec: ModelSpec, short: int) -> None:
    long = REFERENCE_MAX_ASPECT * short
    for width, height in ((long, short), (short, long), (long - 49, short)):
        fitted = spec.fit_reference(Image.new("L", (width, height)))
        Limits()._check_size(spec.edit_size([Size(*fitted.size)]), spec.multiple)
