"""Trains the autoencoder on drawings, then sets the statistics by which its latents are normalised."""

from __future__ import annotations

from functools import cache
from random import Random

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from training.data import CANVAS_WEIGHTS, CANVASES
from training.flow import posterior_mean, to_pictures, to_tokens
from training.optimise import Budget, Gradients, Key, Trainer
from training.scene import BACKGROUNDS, COLOURS, MAX_ITEMS, SHAPES, SIZES, Drawings, draw

KL_WEIGHT = 3e-5
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0
TINT = 0.02
"""Colours vary by this much, so that the decoder is not a table of eight."""
CROWD = ((64, 64), 4)
"""The first part of the training: small crowded pictures, cheap and full of edges; then real sizes."""
CROWD_PART = 0.55
POOL_BATCHES = 64


def train_vae(vae: AutoencoderKLFlux2, budget: Budget, batch: int, seed: int) -> AutoencoderKLFlux2:
    random = Random(seed)
    torch.manual_seed(seed)
    vae.to(memory_format=torch.channels_last).train()
    trainer = Trainer([vae], budget, decay=0.998)
    gradients = Gradients(lambda key, _: _loss(vae, draw(random_drawings(key, vae.device))), trainer)
    for step, used in budget.progress():
        loss = gradients(_key(random, batch, used), ())
        trainer.step(step, used)
        if step % 500 == 0:
            decibels = psnr(trainer.averaged[0], (batch, *CANVASES[0], MAX_ITEMS))
            print(f"vae {step} loss {loss.item():.4f} psnr {decibels:.1f} used {used:.2f}", flush=True)
    trained = trainer.averaged[0]
    keys = [(batch, *random.choices(CANVASES, CANVAS_WEIGHTS)[0], MAX_ITEMS) for _ in range(POOL_BATCHES)]
    set_statistics(trained, keys)
    print(f"vae psnr {psnr(trained, keys[0]):.1f}", flush=True)
    return trained


def _key(random: Random, batch: int, used: float) -> Key:
    if used < CROWD_PART:
        (width, height), items = CROWD
    else:
        (width, height), items = random.choices(CANVASES, CANVAS_WEIGHTS)[0], MAX_ITEMS
    return batch, width, height, items


def _loss(vae: AutoencoderKLFlux2, picture: Tensor) -> Tensor:
    target = (picture * 2 - 1).to(vae.dtype)
    posterior = vae.encode(target).latent_dist
    error = vae.decode(posterior.sample(), return_dict=False)[0].float() - target
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))
    kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return error.abs().mean() + SQUARE_WEIGHT * error.square().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * kl


@torch.no_grad()
def psnr(vae: AutoencoderKLFlux2, key: Key) -> float:
    picture = draw(random_drawings(key, vae.device))
    error = to_pictures(vae, to_tokens(vae, picture), key[1], key[2]) - picture
    return -10 * error.square().mean().log10().item()


@cache
def _palettes(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    colours, grounds = (torch.tensor(list(c.values()), device=device) / 255 for c in (COLOURS, BACKGROUNDS))
    return colours, grounds, torch.tensor(list(SIZES.values()), device=device)


def random_drawings(key: Key, device: torch.device) -> Drawings:
    """Scenes of no grammar, drawn by the device's own random numbers: items anywhere, overlapping, cut off."""
    batch, width, height, count = key
    shape = (batch, count)
    palette, grounds, radii = _palettes(device)
    colours = palette[torch.randint(len(palette), shape, device=device)]
    colours = colours + TINT * torch.randn_like(colours)
    kinds = torch.randint(len(SHAPES), shape, device=device)
    x, y = (torch.rand(shape, device=device) * extent for extent in (width, height))
    sizes = radii[torch.randint(len(radii), shape, device=device)] * (torch.rand(shape, device=device) < 0.8)
    items = torch.cat([colours, torch.stack([kinds.float(), x, y, sizes], dim=-1)], dim=-1)
    return Drawings(items, grounds[torch.randint(len(grounds), (batch,), device=device)], width, height)


@torch.no_grad()
def set_statistics(vae: AutoencoderKLFlux2, keys: list[Key]) -> None:
    pool = [posterior_mean(vae, draw(random_drawings(key, vae.device))).transpose(0, 1).flatten(1) for key in keys]
    latents = torch.cat(pool, dim=1)
    vae.bn.running_mean.copy_(latents.mean(dim=1))
    vae.bn.running_var.copy_(latents.var(dim=1))
