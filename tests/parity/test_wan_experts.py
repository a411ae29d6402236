"""Wan of two transformers against diffusers' pipeline, in fp32: one loop there, two stages here."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from lightx2v.config import EngineSettings
from lightx2v.models.sampler import Stepper
from lightx2v.models.wan.denoiser import WanDenoiser
from lightx2v.models.wan.refiner import WanRefiner
from lightx2v.models.wan.schedule import Schedule
from lightx2v.models.wan.spec import read_spec
from lightx2v.pipeline import Pipeline
from lightx2v.types import GenerateRequest, Progress
from tests.checkpoints.wan import make_transformer, write_wan
from tests.parity.oracle_wan import reference_generate
from tests.parity.reference import LATENTS, PIXELS, bind, generate, load_reference, make_request


@pytest.fixture(scope="module")
def oracle(wan_experts: Path) -> WanPipeline:
    return load_reference(wan_experts)


@pytest.fixture(scope="module")
def pipeline(wan_experts: Path) -> Pipeline:
    return Pipeline(EngineSettings(model=str(wan_experts), dtype="float32", device="cpu"))


def compare(pipeline: Pipeline, oracle: WanPipeline, request: GenerateRequest) -> None:
    latents = pipeline.latents(request)
    made = pipeline.decode(request, latents)
    expected_latents, expected = reference_generate(oracle, request)
    assert (latents.tokens - expected_latents).abs().max().item() <= LATENTS
    assert np.abs(made.pixels / 255 - expected).max() <= (PIXELS + 0.5) / 255


@pytest.mark.parametrize(("steps", "first"), [(1, 1), (2, 1), (4, 2), (7, 3), (20, 7)])
def test_steps(wan_experts: Path, pipeline: Pipeline, oracle: WanPipeline, steps: int, first: int) -> None:
    assert Schedule(wan_experts, read_spec(wan_experts)).high(steps) == first
    compare(pipeline, oracle, make_request(48, 32, frames=5, steps=steps, guidance=5.0, refine_guidance=2.0))


@pytest.mark.parametrize(("guidance", "frames"), [(1.0, 9), (4.0, 1)])
def test_guidance_of_a_request_is_for_both(
    pipeline: Pipeline, oracle: WanPipeline, guidance: float, frames: int
) -> None:
    compare(pipeline, oracle, make_request(48, 32, frames=frames, guidance=guidance, refine_guidance=guidance))


def test_a_request_that_says_nothing_has_a_scale_for_each(pipeline: Pipeline, oracle: WanPipeline) -> None:
    silent = make_request(32, 32, guidance=4.0, negative_prompt="blurry")
    explicit = replace(silent, refine_guidance=3.0)
    assert torch.equal(pipeline.latents(silent).tokens, pipeline.latents(explicit).tokens)
    compare(pipeline, oracle, explicit)


def test_another_shift_moves_the_boundary(tmp_path: Path, oracle: WanPipeline) -> None:
    """Wan's makers use 12, and published checkpoints say 3."""
    checkpoint = write_wan(tmp_path, experts=2)
    assert Schedule(checkpoint, read_spec(checkpoint)).high(40) == 13
    (checkpoint / "generation_config.json").write_text(json.dumps({"flow_shift": 12}))
    assert Schedule(checkpoint, read_spec(checkpoint)).high(40) == 26
    shifted = load_reference(checkpoint)
    shifted.scheduler = UniPCMultistepScheduler.from_config(shifted.scheduler.config, flow_shift=12)
    request = make_request(32, 32, steps=5, guidance=5.0, refine_guidance=2.0)
    expected, _ = reference_generate(shifted, request)
    latents, _ = generate(checkpoint, request)
    assert (latents.tokens - expected).abs().max().item() <= LATENTS


@pytest.mark.parametrize("taken", range(1, 6))
def test_a_solver_goes_on_to_the_bit(wan_experts: Path, taken: int) -> None:
    """Wherever it is interrupted, and also if what it remembers has been sent."""
    schedule, generator = Schedule(wan_experts, read_spec(wan_experts)), torch.Generator().manual_seed(taken)
    velocities, start = torch.randn(6, 1, 16, 1, 4, 4, generator=generator), torch.randn(1, 16, 1, 4, 4)
    through, first = schedule.stepper(6), schedule.stepper(6)
    expected = walk(through, start, velocities, 0)
    begun = walk(first, start, velocities[:taken], 0)
    second = schedule.stepper(6, None, tuple(part.clone() for part in first.history()))
    assert torch.equal(walk(second, begun, velocities[taken:], taken), expected)
    assert second.history() == through.history() == ()


def walk(stepper: Stepper, latents: torch.Tensor, velocities: torch.Tensor, first: int) -> torch.Tensor:
    for step, velocity in enumerate(velocities, start=first):
        latents = stepper.step(latents, velocity, step)
    return latents


def test_progress_counts_the_steps_of_both(pipeline: Pipeline) -> None:
    seen: list[Progress] = []
    pipeline.latents(make_request(32, 32, steps=5), report=seen.append)
    assert seen == [Progress(step, 5) for step in (0, 1, 2, 2, 3, 4, 5)], "each says where it begins"
    sizes = {size.stage: size for size in pipeline.sizes(make_request(32, 32, steps=5))}
    assert (sizes["denoise"].planned_passes, sizes["refine"].planned_passes) == (2, 3)


def test_who_has_no_step_is_not_loaded(wan_experts: Path) -> None:
    with closing(Pipeline(EngineSettings(model=str(wan_experts), dtype="float32", device="cpu"))) as fresh:
        latents = fresh.latents(make_request(32, 32, steps=1))
        refine = fresh._stages["refine"]
        assert (latents.history, refine.resident) == ((), 0)
        fresh.latents(make_request(32, 32, steps=2))
        assert refine.resident == refine.reachable


@pytest.mark.parametrize("offload", [{}, {"cpu_offload": True, "offload_granularity": "model"}], ids=str)
def test_never_both_where_they_do_not_fit(wan_experts: Path, pipeline: Pipeline, offload: dict[str, Any]) -> None:
    """The card refuses what exceeds the budget; each has room for itself, whole and at work."""
    request = make_request(32, 32, frames=5, guidance=4.0)
    sizes = {size.stage: size for size in pipeline.sizes(request)}
    budget = max(size.reachable + size.activation_bytes for size in sizes.values())
    assert budget < sizes["denoise"].reachable + sizes["refine"].reachable + sizes["refine"].activation_bytes
    engine = EngineSettings(model=str(wan_experts), dtype="float32", device="cpu", gpu_budget=budget, **offload)
    held: list[tuple[int, int]] = []  # before and after the two steps of each
    with closing(Pipeline(engine)) as tight:
        experts = tight._stages["denoise"], tight._stages["refine"]
        made = tight.generate(request, report=lambda _: held.append((experts[0].resident, experts[1].resident)))
    assert np.array_equal(made.pixels, pipeline.generate(request).pixels)
    first, second = zip(*held, strict=True)
    assert all(sum(both) + sizes["refine"].activation_bytes <= budget for both in held)
    assert min(first[:3]) > 0
    assert min(second[3:]) > 0
    if offload:
        assert second[:3] == first[3:] == (0, 0, 0)
        assert first[:3] == second[3:] == (sizes["denoise"].reachable,) * 3


@pytest.mark.parametrize("expert", [WanDenoiser, WanRefiner])
def test_each_reads_its_own_weights(wan_experts: Path, expert: type[WanDenoiser]) -> None:
    component = bind(expert(wan_experts, torch.float32, read_spec(wan_experts)), wan_experts)
    expected = make_transformer(6144, seed=3 if expert is WanDenoiser else 4).state_dict()
    assert all(torch.equal(state, expected[name]) for name, state in component.module.state_dict().items())
