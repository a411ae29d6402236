"""One LoRA of all linear layers of a component, in the styles of all the trainers, beside its twin in diffusers' style.

Products that are no low-rank ones have a twin of full rank: the identity, and the difference as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lightx2v.weights.names import Rows, expand, row
from tests.checkpoints.lora import Tensors

RANK, ALPHA = 3, 1.5


@dataclass(frozen=True)
class Layer:
    """What one trainer may take for a layer: by its maker's name, and by the checkpoint's names of its `parts`."""

    maker: str
    parts: tuple[tuple[str, int], ...]
    """The checkpoint's names, and the number of rows of each."""
    rows: tuple[Rows, ...]
    entering: int

    @property
    def leaving(self) -> int:
        return sum(height for _, height in self.parts)


def layers_of(component: Any) -> list[Layer]:
    """All linear layers, some of which have one name in common."""
    linear = {path: layer for path, layer in component.module.named_modules() if isinstance(layer, nn.Linear)}
    stored = {path: component.weights.source(f"{path}.weight").removesuffix(".weight") for path in linear}
    makers = dict(expand(component.names, linear))
    taken = {rows.path for ours in makers.values() for rows in ours}
    makers |= {stored[path]: row(path) for path in linear if path not in taken}
    return [
        Layer(
            maker,
            tuple((stored[rows.path], linear[rows.path].out_features // rows.parts) for rows in ours),
            ours,
            linear[ours[0].path].in_features,
        )
        for maker, ours in makers.items()
    ]


def low_rank(layers: list[Layer], seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's two factors, by its maker's name."""
    random = torch.Generator().manual_seed(seed)
    return {
        layer.maker: (
            torch.randn(RANK, layer.entering, generator=random) / layer.entering**0.5,
            0.3 * torch.randn(layer.leaving, RANK, generator=random),
        )
        for layer in layers
    }


def twin(layers: list[Layer], factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], **kwargs: str) -> Tensors:
    """The same in diffusers' style: layers apart, their rows in diffusers' order."""
    made: Tensors = {}
    for layer in layers:
        down, up = factors[layer.maker]
        for (name, _), ours, part in zip(layer.parts, layer.rows, up.split([n for _, n in layer.parts]), strict=True):
            ups = made.setdefault(f"transformer.{name}.lora_B.weight", torch.zeros(len(part) * ours.parts, len(down)))
            ups.chunk(ours.parts)[ours.part].copy_(part)
            made[f"transformer.{name}.lora_A.weight"] = down
    return made


def _named(
    layers: list[Layer],
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    prefix: str,
    parts: tuple[str, str],
    rename: Callable[[str], str] = str,
    alpha: bool = False,
    makers: bool = True,
) -> Tensors:
    """By the makers' names, or by diffusers'."""
    if makers:
        pairs = {layer.maker: factors[layer.maker] for layer in layers}
    else:
        states = twin(layers, factors)
        names = [key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in states if "lora_A" in key]
        pairs = {
            name: (states[f"transformer.{name}.lora_A.weight"], states[f"transformer.{name}.lora_B.weight"])
            for name in names
        }
    made: Tensors = {}
    for name, (down, up) in pairs.items():
        stem = f"{prefix}{rename(name)}"
        made |= {f"{stem}{parts[0]}": down, f"{stem}{parts[1]}": up * (RANK / ALPHA if alpha else 1)}
        if alpha:
            made[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return made


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def _dotted(name: str) -> str:
    """As in `attention.to.q`."""
    return name.replace(".to_", ".to.")


AB, DOWN_UP = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
DOTS = (".lora.down.weight", ".lora.up.weight")

Style = Callable[[list[Layer], Mapping[str, tuple[torch.Tensor, torch.Tensor]]], Tensors]

STYLES: dict[str, Style] = {
    "comfy": partial(_named, prefix="diffusion_model.", parts=AB),
    "comfy-down": partial(_named, prefix="model.diffusion_model.", parts=DOWN_UP, alpha=True),
    "kohya": partial(_named, prefix="lora_unet_", parts=DOWN_UP, rename=_underscored, alpha=True),
    "ai-toolkit": partial(_named, prefix="diffusion_model.", parts=AB, makers=False),
    "onetrainer": partial(
        _named, prefix="lora_transformer_", parts=DOWN_UP, rename=_underscored, alpha=True, makers=False
    ),
    "lycoris": partial(_named, prefix="lycoris_", parts=DOWN_UP, rename=_underscored, alpha=True, makers=False),
    "diffsynth": partial(_named, prefix="", parts=DEFAULT, makers=False),
    "peft": partial(_named, prefix="base_model.model.", parts=DEFAULT, makers=False),
    "unet": partial(_named, prefix="unet.", parts=AB, makers=False),
    "dots": partial(_named, prefix="", parts=DOTS, rename=_dotted, makers=False),
}


def twice(layers: list[Layer], factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Tensors:
    """Fused and split forms in one file, and a text encoder's keys. The fused form says something else."""
    other = {name: (down, 2 * up) for name, (down, up) in factors.items()}
    fused = _named([layer for layer in layers if layer.maker != layer.parts[0][0]], other, "", DOTS)
    text = {f"lora_te1_text_model_{index}.lora_down.weight": torch.ones(2, 2) for index in range(12)}
    return fused | text | STYLES["dots"](layers, factors)


def kronecker(layers: list[Layer], seed: int = 1) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """LoKr as ai-toolkit and LyCORIS write it, and the differences. Rows of one of the fused layers lie across rows of
    the left factor."""
    random = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    differences = {}
    for index, layer in enumerate(layers):
        stem = f"diffusion_model.{layer.maker}.lokr_"
        left, right = torch.randn(2, 2, generator=random), torch.zeros(layer.leaving // 2, layer.entering // 2)
        above = torch.randn(len(right), RANK, generator=random) / layer.entering**0.5
        below = torch.randn(RANK, right.shape[1], generator=random)
        made[f"diffusion_model.{layer.maker}.alpha"] = torch.tensor(ALPHA)
        if index % 3 == 0:  # whole matrices, with which an alpha means nothing
            right = 0.3 * above @ below
            made |= {f"{stem}w1": left, f"{stem}w2": right}
            differences[layer.maker] = torch.kron(left, right)
        elif index % 3 == 1:
            made |= {f"{stem}w1": left, f"{stem}w2_a": 0.3 * above, f"{stem}w2_b": below}
            differences[layer.maker] = torch.kron(left, 0.3 * above @ below) * ALPHA / RANK
        else:
            halves = torch.randn(2, RANK, generator=random), torch.randn(RANK, 2, generator=random)
            made |= {f"{stem}w1_a": halves[0], f"{stem}w1_b": halves[1], f"{stem}w2": 0.3 * above @ below}
            differences[layer.maker] = torch.kron(halves[0] @ halves[1], 0.3 * above @ below) * ALPHA / RANK
    return made, differences


def hadamard(layers: list[Layer], seed: int = 2) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """LoHa as LyCORIS writes it, and the differences."""
    random = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    differences = {}
    for layer in layers:
        stem = f"lycoris_{_underscored(layer.maker)}"
        factors = []
        for name in ("hada_w1", "hada_w2"):
            above = torch.randn(layer.leaving, RANK, generator=random) / RANK
            below = torch.randn(RANK, layer.entering, generator=random) / layer.entering**0.25
            made |= {f"{stem}.{name}_a": above, f"{stem}.{name}_b": below}
            factors.append(above @ below)
        made[f"{stem}.alpha"] = torch.tensor(ALPHA)
        differences[layer.maker] = factors[0] * factors[1] * ALPHA / RANK
    return made, differences


def decomposed(layers: list[Layer], weights: Mapping[str, torch.Tensor], seed: int = 3) -> tuple[Tensors, Any]:
    """DoRA as LyCORIS and OneTrainer write it, and the differences. `weights`: those of the checkpoint."""
    factors, random = low_rank(layers, seed), torch.Generator().manual_seed(seed)
    made: Tensors = _named(layers, factors, "diffusion_model.", DOWN_UP)
    differences = {}
    for layer in layers:
        down, up = factors[layer.maker]
        parts = zip(layer.parts, layer.rows, strict=True)
        weight = torch.cat([weights[f"{name}.weight"].chunk(rows.parts)[rows.part] for (name, _), rows in parts])
        norms = weight.norm(dim=1, keepdim=True) * (1 + 0.2 * torch.rand(len(weight), 1, generator=random))
        made[f"diffusion_model.{layer.maker}.dora_scale"] = norms
        whole = weight + up @ down
        differences[layer.maker] = whole * norms / whole.norm(dim=1, keepdim=True) - weight
    return made, differences


def whole(layers: list[Layer], seed: int = 4) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """Differences as they are."""
    differences = {name: up @ down for name, (down, up) in low_rank(layers, seed).items()}
    return {f"diffusion_model.{name}.diff": difference for name, difference in differences.items()}, differences


def full_rank(layers: list[Layer], differences: Mapping[str, torch.Tensor]) -> Tensors:
    """The twin of differences."""
    return twin(layers, {name: (torch.eye(change.shape[1]), change) for name, change in differences.items()})


def kinds(layers: list[Layer], weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Tensors, Tensors]]:
    """Of each kind of product its name, a file, and the twin."""
    made = {"lokr": kronecker(layers), "loha": hadamard(layers), "diff": whole(layers)}
    for name, (tensors, differences) in (made | {"dora": decomposed(layers, weights)}).items():
        yield name, tensors, full_rank(layers, differences)
