"""Qwen-Image-Edit's text encoder: a Qwen2.5-VL that sees the pictures together with the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from lightx2v.layers.compiled import compile_blocks
from lightx2v.models.component import on_meta
from lightx2v.models.configuration import read_configuration, require
from lightx2v.models.language import CONFIG, HostRotary
from lightx2v.models.qwen_image.encoder import QwenImageTextEncoder
from lightx2v.models.qwen_image.spec import MAX_EDIT_TOKENS, SEEN_TOKENS
from lightx2v.models.qwen_image.vision import Grid, Mixed, mix, to_patches
from lightx2v.models.spec import ModelSpec
from lightx2v.models.visits import Pause, Visits
from lightx2v.types import GenerateRequest, Picture

TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
SYSTEM_TOKENS = 64

PAD = "<|image_pad|>"
"""The placeholder of a picture in a prompt."""

PICTURE = f"Picture {{}}: <|vision_start|>{PAD}<|vision_end|>"

VISION = "visual"


class QwenImageEditTextEncoder(QwenImageTextEncoder):
    """A language model with a vision model inside its module, under the name that the checkpoints have for it."""

    sees = True
    unread = (r"lm_head\.weight",)
    limit = SYSTEM_TOKENS + MAX_EDIT_TOKENS
    held_widths = 2

    def __init__(self, checkpoint: Path, dtype: torch.dtype, spec: ModelSpec) -> None:
        super().__init__(checkpoint, dtype, spec)
        self.module.add_module(VISION, _build_vision(checkpoint, dtype))
        depth = self.module.visual.config.depth
        blocks = (*(f"{VISION}.blocks.{index}" for index in range(depth)), *self.blocks)
        language = self.weights.source
        self.weights = replace(
            self.weights,
            blocks=blocks,
            source=lambda name: name if name.startswith(f"{VISION}.") else language(name),
        )
        self.pad = self.tokenizer.convert_tokens_to_ids(PAD)

    def compile(self) -> None:
        """Compiles the language model only: the loop over windows in the vision model, whose number is data, cannot be
        traced."""
        compile_blocks(self.module, [block for block in self.blocks if not block.startswith(VISION)])

    def tokens(self, request: GenerateRequest) -> int:
        return self.max_tokens + SEEN_TOKENS * len(request.references)

    def prompted(self, prompt: str, pictures: int) -> str:
        return TEMPLATE.format("".join(PICTURE.format(index) for index in range(1, pictures + 1)) + prompt)

    @torch.no_grad()
    def encode(self, prompt: str, pictures: Sequence[Picture], device: torch.device) -> Visits[torch.Tensor]:
        image_features, grids = yield from self._see(pictures, device)
        text = self.prompted(prompt, len(pictures))
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        mixed = mix(ids, self.pad, grids)
        real = torch.ones_like(mixed.ids, dtype=torch.bool)
        merged = self._merged(mixed, image_features)
        del image_features
        (states,) = yield from self.through_layers(merged, mixed.positions, real, (self.last,))
        features: torch.Tensor = self.module.norm(states)[0, SYSTEM_TOKENS:]
        return features

    def _merged(self, mixed: Mixed, image_features: torch.Tensor) -> torch.Tensor:
        """[1, tokens, hidden]: the embedded words, with the pictures' tokens in their places."""
        states = self.embedded(mixed.ids).to(image_features.device)
        states[:, mixed.pictured.nonzero().flatten()] = image_features
        return states

    def _see(self, pictures: Sequence[Picture], device: torch.device) -> Visits[tuple[torch.Tensor, list[Grid]]]:
        """[tokens, hidden] of all pictures, which pass a block together, and each one's grid of tokens."""
        vision, config = self.module.visual, self.module.visual.config
        side, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        cut = [to_patches(picture, side, merge, frames) for picture in pictures]
        patches = torch.cat([patches for patches, _ in cut])
        shapes = torch.tensor([(1, *grid) for _, grid in cut])
        image_features = yield from _through_vision(vision, patches.to(device, self.dtype), shapes)
        return image_features, [Grid(grid.rows // merge, grid.columns // merge) for _, grid in cut]


def _through_vision(
    vision: Qwen2_5_VisionTransformerPretrainedModel, patches: torch.Tensor, shapes: torch.Tensor
) -> Visits[torch.Tensor]:
    """[tokens, hidden]: the `pooler_output` of the vision model, with a pause before every block.

    `patches`: those of all pictures. `shapes`: [pictures, 3] on the host, each one's frames, rows and columns of
    patches.
    """
    config, merge, count = vision.config, vision.spatial_merge_size, len(patches)
    order, windows = get_vision_window_index(shapes, merge, vision.window_size, vision.patch_size)
    states = vision.permute_input_for_window_attn(vision.patch_embed(patches), order, count)
    del patches
    tables = vision.rotary_pos_emb(states, get_vision_position_ids(shapes, merge))
    rope = tuple(vision.permute_input_for_window_attn(table, order, count) for table in tables)
    del tables
    pictures = get_vision_cu_seqlens(shapes)
    for index, block in enumerate(vision.blocks):
        yield Pause.BLOCK
        bounds = pictures if index in config.fullatt_block_indexes else windows
        states = block(states, cu_seqlens=bounds, position_embeddings=rope)
    features: torch.Tensor = vision.merger(states)[order.argsort()]
    return features


def _build_vision(checkpoint: Path, dtype: torch.dtype) -> Qwen2_5_VisionTransformerPretrainedModel:
    """The vision model on the meta device, its rotary frequencies on the host."""
    values = require(read_configuration(checkpoint, CONFIG), "vision_config", checkpoint / CONFIG)
    config = Qwen2_5_VLVisionConfig.from_dict(values)
    config._attn_implementation = "sdpa"
    vision = on_meta(lambda: Qwen2_5_VisionTransformerPretrainedModel(config), dtype)
    vision.rotary_pos_emb = HostRotary(type(vision.rotary_pos_emb)(config))
    return vision
