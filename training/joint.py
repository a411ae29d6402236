"""Trains the text encoder and the transformer together, from random weights, by flow matching on the latents."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from training.data import Batch
from training.flow import positions, shift, text_features, to_tokens, velocity
from training.models import MAX_TOKENS, Networks
from training.optimise import Budget, Gradients, Key, Trainer, cast_parameters
from training.scene import Drawings, draw

SCHEDULE_STEPS = 8
"""Noise levels are drawn as densely as a schedule of this many steps visits them."""


class Pool:
    """Tasks with their pictures already encoded, kept on the device: encoding costs more than a training step."""

    def __init__(self, networks: Networks, batches: Iterator[Batch]) -> None:
        device = networks.transformer.device
        vae = copy.deepcopy(networks.vae).to(memory_format=torch.channels_last)
        cast_parameters(vae, torch.bfloat16 if device.type == "cuda" else torch.float32)
        parts: dict[Key, list[tuple[Tensor, ...]]] = defaultdict(list)
        with torch.no_grad():
            for batch in batches:
                ids, mask, *pairs = (value.to(device) for value in batch.inputs)
                scenes = [Drawings(*pair, *batch.key[:2]) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
                parts[batch.key].append((ids, mask, *(to_tokens(vae, draw(scene)) for scene in scenes)))
        self._tasks = {
            key: tuple(torch.cat(column) for column in zip(*rows, strict=True)) for key, rows in parts.items()
        }
        self._sizes = torch.tensor([len(columns[0]) for columns in self._tasks.values()], dtype=torch.float32)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def batch(self, size: int) -> Batch:
        key = list(self._tasks)[int(torch.multinomial(self._sizes, 1))]
        columns = self._tasks[key]
        chosen = torch.randint(len(columns[0]), (size,), device=columns[0].device)
        return Batch(key, tuple(column[chosen] for column in columns))


def train_joint(
    networks: Networks,
    budget: Budget,
    batches: Iterator[Batch],
    pool: int,
    batch: int,
    seed: int,
    report: Callable[[Networks], str],
    report_seconds: float,
) -> Networks:
    """pool: how many of the given batches are encoded first; batch: how many tasks of theirs each step draws."""
    torch.manual_seed(seed)
    began = time.monotonic()
    tasks = Pool(networks, islice(batches, pool))
    print(f"pool of {len(tasks)} tasks after {time.monotonic() - began:.0f} s", flush=True)
    networks.encoder.train()
    networks.transformer.train()
    trainer = Trainer([networks.encoder, networks.transformer], budget, decay=0.998)
    averaged = Networks(networks.vae.eval(), *trainer.averaged, networks.tokenizer)
    _fuse_norms(networks.encoder)
    gradients = Gradients(lambda key, inputs: flow_loss(networks, key, inputs), trainer)
    reported, losses = time.monotonic(), []
    for step, used in budget.progress():
        drawn = tasks.batch(batch)
        losses.append(gradients(drawn.key, drawn.inputs))
        trainer.step(step, used)
        if step % 200 == 199:
            print(f"joint {step + 1} loss {torch.stack(losses).mean().item():.4f} used {used:.2f}", flush=True)
            losses.clear()
        if time.monotonic() - reported > report_seconds:
            print(f"joint {step + 1} {report(averaged)}", flush=True)
            reported = time.monotonic()
    return averaged


def _fuse_norms(encoder: Qwen3ForCausalLM) -> None:
    """The same norm in one kernel instead of seven: there are 113 of them."""
    for module in encoder.modules():
        if isinstance(module, Qwen3RMSNorm):
            shape, eps = module.weight.shape, module.variance_epsilon
            module.forward = partial(F.rms_norm, normalized_shape=shape, weight=module.weight, eps=eps)


def flow_loss(networks: Networks, key: Key, inputs: tuple[Tensor, ...]) -> Tensor:
    """inputs: token ids, mask, and the latent tokens of the target, then of the references."""
    width, height = key[:2]
    ids, mask, clean, *known = inputs
    noise = torch.randn_like(clean)
    sigma = shift(torch.rand(len(clean), device=clean.device), clean.shape[1], SCHEDULE_STEPS)
    level = sigma[:, None, None]
    places = positions(height // 16, width // 16, len(known), MAX_TOKENS, clean.device)
    text = text_features(networks.encoder, ids, mask)
    references = torch.cat(known, dim=1) if known else None
    noisy = (1 - level) * clean + level * noise
    predicted = velocity(networks.transformer, noisy, references, sigma, text, places)
    return (predicted - (noise - clean)).square().mean()
