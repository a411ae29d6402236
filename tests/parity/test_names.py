"""The tables of makers' names against diffusers' own conversions of single files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)

from lightx2v.models.flux2.names import TRANSFORMER as FLUX2
from lightx2v.models.wan.names import TRANSFORMER as WAN
from lightx2v.models.z_image.names import TRANSFORMER as Z_IMAGE
from lightx2v.weights.names import Table
from tests.checkpoints import flux2, wan, z_image
from tests.checkpoints.makers import as_makers

WITH_PICTURE = {"in_channels": 36, "image_dim": wan.FEATURES, "added_kv_proj_dim": 56}


@pytest.mark.parametrize(
    ("make", "table", "convert", "same"),
    [
        (
            lambda: flux2.make_transformer(guidance_embeds=True),
            FLUX2,
            convert_flux2_transformer_checkpoint_to_diffusers,
            (),
        ),
        (
            lambda: wan.make_transformer(**WITH_PICTURE),
            WAN,
            convert_wan_transformer_to_diffusers,
            ("patch_embedding.",),
        ),
        (
            z_image.make_transformer,
            Z_IMAGE,
            convert_z_image_transformer_checkpoint_to_diffusers,
            ("layers.", "noise_refiner.", "context_refiner.", "t_embedder.", "cap_embedder.", "x_pad", "cap_pad"),
        ),
    ],
    ids=["flux2", "wan", "z-image"],
)
def test_like_diffusers_own_conversion(
    make: Callable[[], Any], table: Table, convert: Callable[..., dict[str, torch.Tensor]], same: tuple[str, ...]
) -> None:
    """`same`: the beginnings of names that both have in common."""
    states = make().state_dict()
    theirs = as_makers(states, table)
    assert not [name for name in theirs if name in states and not name.startswith(same)], "the table is not complete"
    converted = convert(dict(theirs))
    assert converted.keys() == states.keys()
    for name, state in states.items():
        assert torch.equal(converted[name], state), name
