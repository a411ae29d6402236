"""The step loop: each request's state moves by itself, whatever others do between its steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from lightx2v.models.flow import noise
from lightx2v.models.sampler import Euler, SamplingState, sample
from lightx2v.models.visits import Pause, Visits, together
from lightx2v.types import GenerateRequest, Size
from tests.visits import finish

LEVELS = torch.tensor([1.0, 0.8, 0.5, 0.0])


def make_state(seed: int, first: int = 0, stop: int = 3) -> SamplingState[float]:
    request = GenerateRequest("unit", "", Size(16, 16), steps=3, seed=seed)
    return SamplingState(request, 0.5, Euler(LEVELS), noise((1, 4, 2), seed), first, stop)


def velocity(state: SamplingState[float]) -> Visits[torch.Tensor]:
    yield Pause.BLOCK
    return state.conditions * state.latents + state.step


def ignore() -> None:
    return None


def walk(state: SamplingState[float]) -> list[int]:
    """What the next step is after each that is taken."""
    steps: list[int] = []
    finish(sample(state, velocity, lambda: steps.append(state.step)))
    return steps


def test_steps_follow_the_levels() -> None:
    state = make_state(1)
    assert walk(state) == [1, 2, 3]
    expected = noise((1, 4, 2), 1)
    for step, (level, following) in enumerate(pairwise(LEVELS)):
        expected = expected + (following.item() - level.item()) * (0.5 * expected + step)
    assert torch.equal(state.latents, expected)
    assert state.stepper.history() == ()


def test_a_part_of_the_schedule_counts_on() -> None:
    begun, whole = make_state(1, stop=2), make_state(1)
    assert walk(begun) == [1, 2]
    rest = SamplingState(begun.request, 0.5, Euler(LEVELS), begun.latents, 2, 3)
    assert walk(rest) == [3]
    assert torch.equal(rest.latents, finish(sample(whole, velocity, ignore)).latents)


def test_requests_take_their_steps_side_by_side() -> None:
    alone = [finish(sample(make_state(seed), velocity, ignore)).latents for seed in (1, 2)]
    first, second = make_state(1), make_state(2)
    finish(together([sample(state, velocity, ignore) for state in (first, second)]))
    assert torch.equal(first.latents, alone[0])
    assert torch.equal(second.latents, alone[1])


def test_noise_that_is_skipped_is_drawn() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn((2, 3), generator=generator) for _ in range(2))
    assert torch.equal(noise((2, 3), 5), first)
    assert torch.equal(noise((2, 3), 5, skip=1), second)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1])
def test_every_seed_makes_the_noise_of_diffusers(seed: int) -> None:
    expected = randn_tensor((2, 3), torch.Generator().manual_seed(seed), dtype=torch.float32)
    assert torch.equal(noise((2, 3), seed), expected)
