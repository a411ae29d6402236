"""The parts of a model as other makers' files have them: under their names, layers joined that they have in one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lightx2v.models.registry import find_family
from lightx2v.weights.index import weight_files
from lightx2v.weights.names import Rows, Table, expand

LANGUAGE = {
    "MistralTextEncoder": "model.",
    "QwenImageTextEncoder": "model.language_model.",
    "QwenImageEditTextEncoder": "model.language_model.",
}
"""The prefixes of language models in ComfyUI's files, or as transformers names them now, where not as published."""

PREFIXES = {
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.one.transformer.",
}
"""Those of ComfyUI's files of a whole model."""

TOKENIZER = {"text_encoder": "spiece_model"}


def as_makers(states: Mapping[str, torch.Tensor], table: Table) -> dict[str, torch.Tensor]:
    """`states`, by the names of `table` wherever it has one."""
    paths = {".".join(name.split(".")[:end]) for name in states for end in range(1, name.count(".") + 2)}
    made, taken = {}, set()
    for theirs, ours in expand(table, paths).items():
        for end in ("", ".weight", ".bias", ".gamma"):
            if all(f"{one.path}{end}" in states for one in ours):
                made[f"{theirs}{end}"] = torch.cat([_part(states[f"{one.path}{end}"], one) for one in ours])
                taken |= {f"{one.path}{end}" for one in ours}
    return made | {name: state for name, state in states.items() if name not in taken}


def _part(state: torch.Tensor, rows: Rows) -> torch.Tensor:
    return state.chunk(rows.parts)[rows.part]


def ldm_states(states: Mapping[str, torch.Tensor], table: Table) -> dict[str, torch.Tensor]:
    """The states of latent diffusion's autoencoder, whose attention is made of convolutions."""
    theirs = as_makers(states, table)
    layers = tuple(f".mid.attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
    return {name: state[..., None, None] if name.endswith(layers) else state for name, state in theirs.items()}


def write_files(checkpoint: Path, folder: Path) -> dict[str, str]:
    """Writes every part of `checkpoint` as one file in its makers' names, with ComfyUI's prefix for transformers and
    its tokenizer for text encoders. Returns the settings."""
    files: dict[str, str] = {}
    for part, states in _parts(checkpoint):
        prefix = PREFIXES["transformer"] if part == "transformer" else ""
        extra = {TOKENIZER[part]: torch.zeros(9, dtype=torch.uint8)} if part in TOKENIZER else {}
        files[part] = str(_save(folder / f"{part}.safetensors", extra | _prefixed(states, prefix)))
    return files


def write_whole(checkpoint: Path, file: Path) -> dict[str, str]:
    """Writes all parts of `checkpoint` to one file, as ComfyUI does. Returns the settings."""
    parts = dict(_parts(checkpoint))
    tensors = {name: state for part in parts for name, state in _prefixed(parts[part], PREFIXES[part]).items()}
    return dict.fromkeys(parts, str(_save(file, tensors)))


def without_weights(checkpoint: Path, folder: Path) -> Path:
    """A copy of `checkpoint` that has nothing but configurations and tokenizers."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    return folder


def _parts(checkpoint: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every folder with weights, and what is in it, by its makers' names."""
    family = find_family(checkpoint)
    spec = family.spec(checkpoint)
    for stage in family.stages(checkpoint):
        component = family.build(stage, checkpoint, torch.float32, spec)
        for part in component.weights.folders:
            stored = {
                name: state for file in weight_files(checkpoint / part) for name, state in load_file(file).items()
            }
            yield part, _makers_states(component, stored) if part == component.folder else stored


def _makers_states(component: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    own = {component.weights.source(name): name for name in component.module.state_dict()}
    if prefix := LANGUAGE.get(type(component).__name__):
        names = {name: prefix + own[name] for name in own if not own[name].startswith("visual.")}
        return {names.get(name, f"model.{name}" if "visual" in name else name): stored[name] for name in stored}
    if not component.names:
        return dict(stored)
    states = {own.get(name, name): state for name, state in stored.items()}
    return (ldm_states if component.folder == "vae" else as_makers)(states, component.names)


def _prefixed(states: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": state.contiguous() for name, state in states.items()}


def _save(file: Path, tensors: dict[str, torch.Tensor]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})
    return file
