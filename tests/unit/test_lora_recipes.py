"""What a LoRA was made for: the defaults of the requests that choose it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from benchmarks.checkpoint.qwen_image import SCHEDULER
from deployments.http.images import ImageRequest, to_requests
from deployments.http.parsing import parse_json
from lightx2v.checkpoint import read_spec
from lightx2v.config import BUNDLED_MODEL, EngineSettings, LoraSettings
from lightx2v.errors import InvalidRequest, InvalidSettings
from lightx2v.limits import Limits
from lightx2v.models.qwen_image.schedule import Schedule
from lightx2v.models.request import check_request, complete
from lightx2v.models.spec import ModelSpec, Recipe
from lightx2v.models.wan.schedule import Schedule as WanSchedule
from lightx2v.models.wan.spec import WanSpec
from lightx2v.types import ChosenLora, Size, VideoSpec
from tests.checkpoints import wan

LIGHTNING, REALISM = Recipe(steps=4, guidance=1.0, shift=3.0), Recipe(guidance=3.5)
SPEC = ModelSpec(
    Size(64, 64), steps=50, guidance=4.0, multiple=16, takes_shift=True, recipes={"fast": LIGHTNING, "real": REALISM}
)


def made(spec: ModelSpec = SPEC, *names: str, **fields: Any) -> tuple[int, float, float | None, float | None]:
    request = complete("a cat", spec, (), loras=[ChosenLora(name) for name in names], **fields)
    return request.steps, request.guidance, request.refine_guidance, request.shift


@pytest.mark.parametrize(
    ("names", "fields", "expected"),
    [
        ((), {}, (50, 4.0, None, None)),
        (("fast",), {}, (4, 1.0, 1.0, 3.0)),
        (("real",), {}, (50, 3.5, 3.5, None)),
        (("fast",), {"steps": 8, "guidance": 2.0, "shift": 5.0}, (8, 2.0, 2.0, 5.0)),
        (("real", "fast"), {"guidance": 1.5}, (4, 1.5, 1.5, 3.0)),
    ],
)
def test_defaults(names: tuple[str, ...], fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert made(SPEC, *names, **fields) == expected


def test_defaults_that_differ() -> None:
    with pytest.raises(InvalidRequest, match=r"^guidance_scale: the LoRAs were made for.*fast 1, real 3.5\); choose"):
        made(SPEC, "fast", "real")


def test_over_http() -> None:
    limits = Limits(loras=("fast", "real"))
    body = {"prompt": "a cat", "loras": [{"name": "fast", "scale": 0.9}, {"name": "real"}], "guidance_scale": 1.25}
    (request,) = to_requests(parse_json(ImageRequest, json.dumps(body).encode()), SPEC, limits)
    assert (request.steps, request.guidance, request.shift) == (4, 1.25, 3.0)
    assert request.loras == (ChosenLora("fast", 0.9), ChosenLora("real"))


def test_a_schedule_without_a_shift() -> None:
    request = complete("a cat", SPEC, (), shift=3.0)
    check_request(request, SPEC, Limits())
    with pytest.raises(InvalidRequest, match=r"^shift: this model computes its own"):
        check_request(request, replace(SPEC, takes_shift=False), Limits())
    with pytest.raises(InvalidRequest, match=r"^shift: must be above 0"):
        check_request(replace(request, shift=-1.0), SPEC, Limits())


def test_settings(tmp_path: Path) -> None:
    lora = LoraSettings(path="a.safetensors", steps=4, guidance=1.0)
    settings = EngineSettings(model=str(BUNDLED_MODEL), loras={"fast": lora})
    assert read_spec(settings).recipes == {"fast": Recipe(4, 1.0)}
    shifted = EngineSettings(loras={"fast": lora.model_copy(update={"shift": 3.0})})
    with pytest.raises(InvalidSettings, match=r"^loras\.fast\.shift: .* computes its own"):
        read_spec(shifted)


@pytest.mark.parametrize("steps", [4, 8])
def test_qwen_image_as_the_makers_of_lightning_say(steps: int) -> None:
    """base_shift = max_shift = ln 3, and no terminal level."""
    shift = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
    oracle = FlowMatchEulerDiscreteScheduler(**SCHEDULER | shift)
    oracle.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=math.log(3))
    levels = Schedule(0.5, 0.9, 256, 8192, 0.02).levels(4096, steps, 3.0)
    torch.testing.assert_close(levels, oracle.sigmas)


def test_wan_with_the_shift_of_a_request(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    values = {"_class_name": "UniPCMultistepScheduler"} | wan.SCHEDULER
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(values))
    spec = WanSpec(Size(64, 64), 40, 4.0, 16, VideoSpec(81, 4, 16), boundary=0.875)
    schedule, oracle = WanSchedule(tmp_path, spec), UniPCMultistepScheduler(**wan.SCHEDULER | {"flow_shift": 5.0})
    oracle.set_timesteps(4)
    assert torch.equal(schedule.stepper(4, 5.0).timesteps, oracle.timesteps)
    assert not torch.equal(schedule.stepper(4).timesteps, oracle.timesteps)
    assert schedule.high(4, 5.0) == int((oracle.timesteps >= 875).sum()) != schedule.high(4, 1.0)
