"""FLUX.2's recipe in batches: latents, text features, positions, schedule, velocity, sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

from training.models import MAX_TOKENS, PROMPT, TAPS, Networks


def patchify(latents: Tensor) -> Tensor:
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(batch, channels * 4, height // 2, width // 2)


def unpatchify(latents: Tensor) -> Tensor:
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, channels // 4, height * 2, width * 2)


def _statistics(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    mean, variance = (t.view(1, -1, 1, 1).float() for t in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def posterior_mean(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    return patchify(vae.encode((pictures * 2 - 1).to(vae.dtype)).latent_dist.mean.float())


def to_tokens(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    """pictures [batch, 3, height, width] from 0 to 1 -> normalised tokens [batch, rows * columns, channels]."""
    mean, deviation = _statistics(vae)
    return ((posterior_mean(vae, pictures) - mean) / deviation).flatten(2).transpose(1, 2)


def to_pictures(vae: AutoencoderKLFlux2, tokens: Tensor, width: int, height: int) -> Tensor:
    mean, deviation = _statistics(vae)
    latents = tokens.transpose(1, 2).unflatten(2, (height // 16, width // 16)) * deviation + mean
    return (vae.decode(unpatchify(latents).to(vae.dtype), return_dict=False)[0].float() * 0.5 + 0.5).clamp(0, 1)


def tokenize(tokenizer: Qwen2Tokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    texts = [PROMPT.format(caption) for caption in captions]
    made = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


def text_features(encoder: Qwen3ForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """The hidden states after TAPS layers, side by side; no layer beyond the last tap is computed."""
    model = encoder.model
    hidden = model.embed_tokens(ids)
    order = torch.arange(ids.shape[1], device=ids.device)
    rotary = model.rotary_emb(hidden, order[None])
    seen = (order[:, None] >= order)[None, None] & mask.bool()[:, None, None]
    taps = []
    for number, layer in enumerate(model.layers[: TAPS[-1]], start=1):
        hidden = layer(hidden, attention_mask=seen, position_embeddings=rotary, position_ids=order[None])
        if number in TAPS:
            taps.append(hidden)
    return torch.cat(taps, dim=-1)


@cache
def positions(rows: int, columns: int, references: int, text: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(time, row, column, word) of the image tokens, target first, then references at times 10, 20; of the text."""
    image = [
        torch.cartesian_prod(torch.tensor([10 * k]), torch.arange(rows), torch.arange(columns), torch.arange(1))
        for k in range(references + 1)
    ]
    zero = torch.tensor([0])
    words = torch.cartesian_prod(zero, zero, zero, torch.arange(text))
    return torch.cat(image).to(device), words.to(device)


def shift(s: Tensor, tokens: int, steps: int) -> Tensor:
    """The noise level at a point of the schedule that is uniform in s."""
    factor = math.exp(compute_empirical_mu(tokens, steps))
    return factor / (factor + 1 / s - 1)


def schedule(tokens: int, steps: int) -> list[float]:
    return [*shift(torch.linspace(1, 1 / steps, steps), tokens, steps).tolist(), 0.0]


def velocity(
    transformer: Flux2Transformer2DModel,
    noisy: Tensor,
    references: Tensor | None,
    sigma: Tensor,
    text: Tensor,
    ids: tuple[Tensor, Tensor],
) -> Tensor:
    tokens = noisy if references is None else torch.cat([noisy, references], dim=1)
    image_ids, text_ids = ids
    predicted = transformer(
        hidden_states=tokens.to(transformer.dtype),
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=None,
        return_dict=False,
    )[0]
    return predicted[:, : noisy.shape[1]].float()


@torch.no_grad()
def sample(
    networks: Networks,
    captions: Sequence[str],
    references: Sequence[Tensor],
    width: int,
    height: int,
    steps: int,
    guidance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Pictures [batch, 3, height, width] from 0 to 1. references: one batch of pictures for each reference."""
    device = networks.transformer.device
    rows, columns = height // 16, width // 16
    text = _features(networks, captions)
    nothing = _features(networks, [""] * len(captions)) if guidance > 1 else None
    known = torch.cat([to_tokens(networks.vae, picture) for picture in references], dim=1) if references else None
    ids = positions(rows, columns, len(references), MAX_TOKENS, device)
    generator = torch.Generator("cpu").manual_seed(seed)
    channels = networks.transformer.config.in_channels
    noise = torch.randn(len(captions), channels, rows, columns, generator=generator)
    latents = noise.flatten(2).transpose(1, 2).to(device)
    levels = schedule(rows * columns, steps)
    for now, after in pairwise(levels):
        sigma = torch.full((len(captions),), now, device=device)
        direction = velocity(networks.transformer, latents, known, sigma, text, ids)
        if nothing is not None:
            without = velocity(networks.transformer, latents, known, sigma, nothing, ids)
            direction = without + guidance * (direction - without)
        latents = latents + (after - now) * direction
    return to_pictures(networks.vae, latents, width, height)


def _features(networks: Networks, captions: Sequence[str]) -> Tensor:
    ids, mask = (t.to(networks.encoder.device) for t in tokenize(networks.tokenizer, captions))
    return text_features(networks.encoder, ids, mask)
