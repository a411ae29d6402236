"""The tables of makers' names against diffusers' own conversions of single files."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)

from lightx2v.models.autoencoder_names import ldm_names, wan_names, wan_residual_names
from lightx2v.models.flux2.names import TRANSFORMER as FLUX2
from lightx2v.models.wan.names import TRANSFORMER as WAN
from lightx2v.models.z_image.names import TRANSFORMER as Z_IMAGE
from lightx2v.weights.names import Table
from tests.checkpoints import flux2, wan, z_image
from tests.checkpoints.makers import as_makers, ldm_states

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


@pytest.mark.parametrize("make", [flux2.make_vae, z_image.make_vae], ids=["flux2", "flux1"])
def test_the_autoencoder_of_latent_diffusion(make: Callable[[], Any]) -> None:
    """FLUX.2's files have the convolutions outside of both halves within them. diffusers' conversion expects them
    outside and drops the statistics, both unlike its script for FLUX.2."""
    vae = make()
    states, inside = (
        vae.state_dict(),
        {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"},
    )
    theirs = ldm_states(states, ldm_names(len(vae.config.block_out_channels)))
    moved = {name: inside.get(name.rpartition(".")[0], "") for name in theirs}
    outside = {f"{moved[name]}.{name.rpartition('.')[2]}" if moved[name] else name: theirs[name] for name in theirs}
    converted = convert_ldm_vae_checkpoint(outside, vae.config)
    assert converted.keys() == {name for name in states if not name.startswith("bn.")}
    assert all(torch.equal(state, states[name]) for name, state in converted.items())


def test_the_autoencoder_of_wan() -> None:
    vae = wan.make_vae(num_res_blocks=2)  # diffusers knows this number only
    states = vae.state_dict()
    theirs = as_makers(states, wan_names(len(vae.config.dim_mult), 2))
    assert not theirs.keys() & states.keys(), "the table is not complete"
    converted = convert_wan_vae_to_diffusers(dict(theirs))
    assert converted.keys() == states.keys()
    assert all(torch.equal(state, states[name]) for name, state in converted.items())


def test_the_autoencoder_of_wan_2_2() -> None:
    """diffusers has a conversion in a script only. What it does to names, in a few words."""
    vae = wan.make_vae(**wan.VAE_22 | {"base_dim": 12, "decoder_base_dim": 8, "z_dim": 16})
    states = vae.state_dict()
    theirs = as_makers(states, wan_residual_names(len(vae.config.dim_mult), vae.config.num_res_blocks))
    assert not theirs.keys() & states.keys(), "the table is not complete"
    rules = {
        r"coder\.(down|up)samples\.(\d)\.\w+samples\.\d\.(resample|time_conv)": r"coder.\1_blocks.\2.\1sampler.\3",
        r"coder\.(down|up)samples\.(\d)\.\w+samples": r"coder.\1_blocks.\2.resnets",
        r"middle\.1": "mid_block.attentions.0",
        r"middle\.0": "mid_block.resnets.0",
        r"middle\.2": "mid_block.resnets.1",
        r"residual\.0": "norm1",
        r"residual\.2": "conv1",
        r"residual\.3": "norm2",
        r"residual\.6": "conv2",
        r"shortcut": "conv_shortcut",
        r"coder\.conv1": "coder.conv_in",
        r"head\.0": "norm_out",
        r"head\.2": "conv_out",
        r"^conv1": "quant_conv",
        r"^conv2": "post_quant_conv",
    }
    for name, state in theirs.items():
        for pattern, ours in rules.items():
            name = re.sub(pattern, ours, name)
        assert torch.equal(states[name], state), name
