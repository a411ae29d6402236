"""Writes a checkpoint as FLUX.2-klein's are published, and reads one back to train on or to evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from training.models import Networks, scheduler
from training.optimise import cast_parameters


def export(networks: Networks, to: Path, steps: int, guidance: float) -> None:
    """In bf16. The networks given are rounded too: read them back to evaluate."""
    for network in (networks.vae, networks.encoder, networks.transformer):
        cast_parameters(network, torch.bfloat16)
    pipeline = Flux2KleinPipeline(
        scheduler=scheduler(),
        vae=networks.vae,
        text_encoder=networks.encoder,
        tokenizer=networks.tokenizer,
        transformer=networks.transformer,
        is_distilled=guidance <= 1,
    )
    pipeline.save_pretrained(to)
    _write_vocabulary(to / "tokenizer")
    write_defaults(to, steps, guidance)


def write_defaults(to: Path, steps: int, guidance: float) -> None:
    """Without guidance the published models say `is_distilled`, which makes every server skip the second pass."""
    index = to / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": guidance <= 1}, indent=2) + "\n")
    defaults = {"num_inference_steps": steps, "guidance_scale": guidance, "size": "128x128"}
    (to / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n")


def _write_vocabulary(tokenizer: Path) -> None:
    model = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (tokenizer / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


def load(folder: Path) -> Networks:
    return Networks(
        AutoencoderKLFlux2.from_pretrained(folder / "vae", dtype=torch.float32),
        Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        Flux2Transformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32),
        Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
    )
