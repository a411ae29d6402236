"""Trains the text encoder and the transformer together, from random weights, by flow matching on the latents."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch._dynamo
from torch import Tensor, nn

from training.data import Batch
from training.flow import positions, shift, text_features, to_tokens, velocity
from training.models import MAX_TOKENS, TAPS, Networks
from training.optimise import Budget, Gradients, Key, Trainer, cast_parameters
from training.scene import Drawings, draw

SCHEDULE_STEPS = 8
"""Noise levels are drawn as densely as a schedule of this many steps visits them."""
OBJECT_WEIGHT = 4.0


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
    trainer = Trainer([networks.encoder, networks.transformer], budget, 0.998, _hidden_matrices(networks))
    averaged = Networks(networks.vae.eval(), *trainer.averaged, networks.tokenizer)
    if networks.transformer.device.type == "cuda":
        _compile(networks)
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


def _hidden_matrices(networks: Networks) -> list[nn.Parameter]:
    """Muon's: all matrices but the first and the last of each network. No tap reaches the encoder's last layer."""
    layers = networks.encoder.model.layers[: TAPS[-1]]
    ends = {networks.transformer.x_embedder.weight, networks.transformer.proj_out.weight}
    weights = [*layers.parameters(), *networks.transformer.parameters()]
    return [weight for weight in weights if weight.ndim == 2 and weight not in ends]


def _compile(networks: Networks) -> None:
    """Block by block, once for each number of tokens: a third of the time for a step.

    Not with dynamic shapes: with some batch sizes they fail in torch 2.11's code generator.
    """
    torch._dynamo.config.recompile_limit = 64
    transformer = networks.transformer
    for block in (
        *networks.encoder.model.layers,
        *transformer.transformer_blocks,
        *transformer.single_transformer_blocks,
    ):
        block.compile(dynamic=False)


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
    weight = emphasis(clean)
    return ((predicted - (noise - clean)).square() * weight).mean() / weight.mean()


def emphasis(clean: Tensor) -> Tensor:
    """How much each token of [batch, tokens, channels] counts: what differs from the background counts most."""
    background = clean.median(dim=1, keepdim=True).values
    return 1 + OBJECT_WEIGHT * ((clean - background).square().mean(dim=-1, keepdim=True) > 0.1)
