"""python -m training OUT [--smoke] [--seed N]: trains, exports and evaluates. About fifteen minutes on one H200."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2

from training import evaluate
from training.data import CANVASES, batches, corpus
from training.export import export, load
from training.joint import train_joint
from training.models import SMALL, SMOKE, Networks, Widths, build
from training.optimise import Budget, cast_parameters
from training.scene import MAX_ITEMS
from training.vae import psnr, train_vae


@dataclass(frozen=True, slots=True)
class Recipe:
    widths: Widths
    vae: Budget
    vae_batch: int
    joint: Budget
    pool: int
    joint_batch: int
    workers: int
    prompts: int
    least_psnr: float = 26.0
    """Where shapes are shapes and not blobs."""


FULL = Recipe(SMALL, Budget(20_000, 100), 64, Budget(50_000, 750), 300, 256, 12, 1000)
POOL_BATCH = 500
SMOKE_RECIPE = Recipe(SMOKE, Budget(4, 60), 4, Budget(4, 60), 3, 4, 0, 2, 0.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a minute on two CPU cores: the chain, not the quality")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from: its autoencoder is kept")
    parser.add_argument("--vae", type=Path, help="an autoencoder to keep")
    parser.add_argument("--vae-seconds", type=float, default=FULL.vae.seconds)
    parser.add_argument("--joint-seconds", type=float, default=FULL.joint.seconds)
    parser.add_argument("--peak", type=float, default=FULL.joint.peak, help="the learning rate's")
    parser.add_argument("--floor", type=float, default=FULL.joint.floor, help="where the learning rate ends")
    parser.add_argument("--batch", type=int, default=FULL.joint_batch)
    parser.add_argument("--prompts", type=int, default=FULL.prompts, help="evaluated; 0: no evaluation")
    parser.add_argument("--steps", type=int, default=12, help="the checkpoint's default")
    parser.add_argument("--guidance", type=float, default=2.0, help="the checkpoint's default")
    return parser.parse_args()


def recipe(options: argparse.Namespace) -> Recipe:
    if options.smoke:
        return SMOKE_RECIPE
    vae = Budget(FULL.vae.steps, options.vae_seconds)
    joint = Budget(FULL.joint.steps, options.joint_seconds, options.peak, options.floor)
    return replace(FULL, vae=vae, joint=joint, joint_batch=options.batch, prompts=options.prompts)


def start(options: argparse.Namespace, chosen: Recipe, device: str) -> Networks:
    if options.resume:
        return load(options.resume).to(device)
    networks = build(chosen.widths, corpus(options.seed, 500 if options.smoke else 9000)).to(device)
    if options.vae:
        networks.vae = AutoencoderKLFlux2.from_pretrained(options.vae, dtype=torch.float32).to(device)
        return networks
    networks.vae = train_vae(networks.vae, chosen.vae, chosen.vae_batch, options.seed)
    for dtype in (torch.bfloat16, torch.float32):
        cast_parameters(networks.vae, dtype)
    networks.vae.save_pretrained(options.out / "vae")
    reached = psnr(networks.vae, (chosen.vae_batch, *CANVASES[0], MAX_ITEMS))
    if reached < chosen.least_psnr:
        raise SystemExit(f"the autoencoder reached only {reached:.1f} dB: give it more --vae-seconds")
    return networks


def main() -> None:
    options = arguments()
    chosen = recipe(options)
    device = "cuda" if torch.cuda.is_available() and not options.smoke else "cpu"
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    began = time.monotonic()
    networks = start(options, chosen, device)
    print(f"autoencoder after {time.monotonic() - began:.0f} s", flush=True)
    stream = batches(networks.tokenizer, 4 if options.smoke else POOL_BATCH, chosen.workers, options.seed)
    networks = train_joint(
        networks, chosen.joint, stream, chosen.pool, chosen.joint_batch, options.seed, evaluate.progress, 60
    )
    del stream
    checkpoint = options.out / "checkpoint"
    export(networks, checkpoint, options.steps, options.guidance)
    print(f"exported after {time.monotonic() - began:.0f} s", flush=True)
    if chosen.prompts:
        evaluate.report(load(checkpoint).to(device), checkpoint, options.out, chosen.prompts, deep=not options.smoke)
    print(f"done after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
