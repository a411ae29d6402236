"""Whole checkpoints in their published sizes: the states of diffusers' and transformers' own classes, in the names of
published files, with all that those hold and no model reads. Files are headers and holes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from benchmarks.checkpoint.flux2 import SHAPES, write_configurations
from benchmarks.checkpoint.tokenizer import make_tokenizer
from lightx2v.commands.headers import write_header
from lightx2v.models.registry import find_family
from lightx2v.weights.layout import make_layout, reachable
from lightx2v.weights.single_file import read_weights
from tests.checkpoints import flux2, qwen_image, wan, z_image

FLUX2 = {"transformer": "Flux2Transformer2DModel", "vae": "AutoencoderKLFlux2"}
WAN = {
    "text_encoder": "UMT5ForConditionalGeneration",
    "image_encoder": "CLIPModel",
    "transformer": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
}
MODELS: Mapping[str, dict[str, str]] = {
    "klein-9b": FLUX2 | {"text_encoder": "Qwen3ForCausalLM"},
    "dev": FLUX2 | {"text_encoder": "Mistral3ForConditionalGeneration"},
    "edit": {
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
    },
    "z-image": {
        "text_encoder": "Qwen3ForCausalLM",
        "transformer": "ZImageTransformer2DModel",
        "vae": "AutoencoderKL",
    },
    "wan-i2v-14b": WAN,
    "wan-ti2v-5b": WAN,
}
"""The class of every part: of language models and CLIP the largest, which have the most states."""

PUBLISHED: Mapping[str, Mapping[str, str]] = {
    "Mistral3ForConditionalGeneration": {
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head\.": "language_model.lm_head.",
        r"^model\.(vision_tower|multi_modal_projector)\.": r"\1.",
    },
    "Qwen2_5_VLForConditionalGeneration": {r"^model\.language_model\.": "model.", r"^model\.visual\.": "visual."},
}
"""The beginnings of names in memory, and in published files."""

BUFFERS: Mapping[str, tuple[str, ...]] = {
    "Qwen3ForCausalLM": ("model.rotary_emb.inv_freq",),
    "Mistral3ForConditionalGeneration": ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq",),
    "Qwen2_5_VLForConditionalGeneration": ("visual.rotary_pos_emb.inv_freq",),
    "CLIPModel": ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"),
}
"""Buffers that older versions of transformers stored."""


def write_configuration(model: str, folder: Path) -> None:
    writers: Mapping[str, Callable[[], object]] = {
        "klein-9b": lambda: write_configurations(folder, SHAPES["klein-9b"]),
        "dev": lambda: flux2.write_dev_configurations(folder),
        "edit": lambda: qwen_image.write_configurations(folder, "QwenImageEditPlusPipeline"),
        "z-image": lambda: z_image.write_z_image_configurations(folder),
        "wan-i2v-14b": lambda: wan.write_configurations(folder, "i2v-14b"),
        "wan-ti2v-5b": lambda: wan.write_configurations(folder, "ti2v-5b"),
    }
    writers[model]()
    if model == "klein-9b":
        make_tokenizer().save_pretrained(folder / "tokenizer")


def made(folder: Path, name: str) -> Any:
    """The class `name` in the configuration of `folder`, without weights."""
    values = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        if hasattr(diffusers, name):
            return getattr(diffusers, name).from_config(values)
        kind = getattr(transformers, name)
        whole = {"vision_config": values} if name == "CLIPModel" else values
        return kind(kind.config_class.from_dict(whole))


def shapes_of(folder: Path, name: str) -> dict[str, list[int]]:
    """The shapes of a published file's tensors, by their names."""
    shapes = {buffer: [4] for buffer in BUFFERS.get(name, ())}
    for state, tensor in made(folder, name).state_dict().items():
        for ours, theirs in PUBLISHED.get(name, {}).items():
            state = re.sub(ours, theirs, state)
        shapes[state] = list(tensor.shape)
    return shapes


def header(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    return entries


@pytest.mark.parametrize("model", MODELS)
def test_whole_checkpoints(model: str, tmp_path: Path) -> None:
    """A file may be larger than this machine's memory."""
    write_configuration(model, tmp_path)
    family = find_family(tmp_path)
    for stage in family.stages(tmp_path):
        component = family.build(stage, tmp_path, torch.bfloat16, family.spec(tmp_path))
        places = [tmp_path / part for part in component.weights.folders]
        for place in places:
            write_header(place / "model.safetensors", header(shapes_of(place, MODELS[model][place.name])))
        layout = make_layout(component, read_weights(component, places), component.blocks)
        found = [entry.name for unit in (*layout.units, layout.host) for entry in unit.entries]
        assert sorted(found) == sorted(name for name, _ in reachable(component)), stage
