"""Wan 2.1's image encoder: the vision half of a CLIP, read one layer before its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from lightx2v.core import Picture
from lightx2v.models.colours import to_colours
from lightx2v.models.component import on_meta
from lightx2v.models.configuration import read_configuration
from lightx2v.models.wan.variant import IMAGE_ENCODER


def build_vision(checkpoint: Path, dtype: torch.dtype) -> CLIPVisionModel:
    """The image encoder on the meta device, without the parts after the layer that is read."""
    config = CLIPVisionConfig.from_dict(read_configuration(checkpoint, f"{IMAGE_ENCODER}/config.json"))
    config.num_hidden_layers -= 1
    config._attn_implementation = "sdpa"
    vision = on_meta(lambda: CLIPVisionModel(config), dtype)
    vision.post_layernorm = nn.Identity()
    return vision


def see(vision: CLIPVisionModel, pictures: Sequence[Picture], device: torch.device) -> torch.Tensor:
    """[tokens, features] of all `pictures`, which are squares in the size of the encoder. Each has one token for the
    whole and one for every patch, row by row."""
    embeddings = vision.embeddings
    weight = embeddings.patch_embedding.weight
    colours = torch.stack([to_colours(picture.pixels).permute(2, 0, 1) for picture in pictures])
    patches = embeddings.patch_embedding(colours.to(device, weight.dtype)).flatten(2).transpose(1, 2)
    whole = embeddings.class_embedding.expand(len(patches), 1, -1)
    # By the table itself: the module looks positions up by a buffer that no checkpoint holds.
    states = torch.cat((whole, patches), dim=1) + embeddings.position_embedding.weight
    seen: torch.Tensor = vision.encoder(inputs_embeds=vision.pre_layrnorm(states)).last_hidden_state
    return seen.flatten(0, 1)
