"""What is lost on the way through the stages is made once more: by its producer, and only what is needed of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray import ObjectID
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    OwnerDiedError,
    RayTaskError,
)

from benchmarks.pictures import noise
from deployments.serving.deadline import Deadline
from deployments.serving.graph import Graph
from lightx2v.errors import NonFinite, StageLost
from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest, Mask, Picture, Reference, Size
from tests.unit.handles import Handle, handles

SIZE = Size(64, 48)
PICTURE = noise(SIZE)
REFERENCE = Reference(PICTURE, PICTURE)
SPEC = ModelSpec(SIZE, steps=4, guidance=1.0, multiple=16)
OBJECT = ObjectID.nil().hex()

pytestmark = pytest.mark.timeout(30)


def lost(kind: type[ObjectLostError] = ObjectLostError) -> ObjectLostError:
    return kind(OBJECT, "", "")


def in_stage(error: Exception) -> Exception:
    """As Ray delivers what was raised in the stage that fetches its inputs."""
    raised: Exception = RayTaskError("call", "traceback", error).as_instanceof_cause()
    return raised


def request(seed: int = 0) -> GenerateRequest:
    return GenerateRequest("request", "a circle", SIZE, 4, seed)


async def generate(stages: dict[Any, Handle], count: int = 1) -> list[Any]:
    requests = [request(seed) for seed in range(count)]
    return await Graph(stages, SPEC).generate(requests, [REFERENCE], Deadline.after(60))


def calls(stages: dict[Any, Handle]) -> dict[str, list[str]]:
    return {name: sorted(method for method, *_ in handle.calls) for name, handle in stages.items()}


async def test_every_step_is_taken_once() -> None:
    stages = handles()
    made = await generate(stages, 2)
    assert [type(one) for one in made] == [Picture] * 2
    assert calls(stages) == {"encode": ["run"], "denoise": ["run"] * 2, "decode": ["encode", "run", "run"]}
    counts = {name: {len(inputs) for _, _, inputs in handle.calls} for name, handle in stages.items()}
    assert counts == {"encode": {1}, "denoise": {2}, "decode": {2, 3}}


async def test_a_mask_goes_to_the_autoencoder_with_its_picture() -> None:
    stages, mask = handles(), Mask(np.ones((48, 64), bool))
    masked = replace(REFERENCE, mask=mask)
    await Graph(stages, SPEC).generate([request()], [masked, REFERENCE], Deadline.after(60))
    encoding, decoding = (inputs for _, _, inputs in stages["decode"].calls)
    assert encoding == (mask, (PICTURE, PICTURE))
    assert decoding[:2] == (mask, (PICTURE,))


async def test_without_a_mask_no_picture_goes_to_the_decoder() -> None:
    stages = handles()
    await generate(stages)
    assert stages["decode"].calls[-1][2][:2] == (None, ())


async def test_without_references_nothing_is_encoded_of_them() -> None:
    stages = handles()
    await Graph(stages, SPEC).generate([request()], [], Deadline.after(60))
    assert calls(stages)["decode"] == ["run"]
    assert stages["denoise"].calls[0][2] == ("encode run", ())


@pytest.mark.parametrize("unfinished", [True, False])
async def test_the_second_transformer_takes_the_steps_that_are_left(unfinished: bool) -> None:
    stages = handles("encode", "denoise", "refine", "decode")
    stages["denoise"].history = ("a step",) if unfinished else ()
    await generate(stages)
    assert len(stages["refine"].calls) == unfinished
    assert len(stages["decode"].calls) == 2


@pytest.mark.parametrize("kind", [ObjectLostError, ObjectFetchTimedOutError, OwnerDiedError])
async def test_a_lost_input_is_made_again_and_then_its_consumer_runs(kind: type[ObjectLostError]) -> None:
    stages = handles()
    stages["denoise"].fails = [in_stage(lost(kind))]
    await generate(stages)
    assert calls(stages) == {"encode": ["run"] * 2, "denoise": ["run"] * 2, "decode": ["encode", "encode", "run"]}


async def test_siblings_share_what_is_made_again() -> None:
    stages = handles()
    stages["denoise"].fails = [in_stage(lost()), in_stage(lost())]
    await generate(stages, 2)
    assert calls(stages)["encode"] == ["run"] * 2
    assert calls(stages)["denoise"] == ["run"] * 4


async def test_the_loss_of_what_was_made_of_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's latents are gone, and when they are made again, so are the conditionings."""
    stages = handles()
    denoised: list[Exception] = []
    stages["denoise"].fails = denoised
    original = stages["decode"]._made

    def made(method: str, one: GenerateRequest) -> Any:
        if method == "run" and calls(stages)["denoise"] == ["run"]:
            denoised.append(in_stage(lost()))
            raise in_stage(lost())
        return original(method, one)

    monkeypatch.setattr(stages["decode"], "_made", made)
    await generate(stages)
    assert calls(stages) == {
        "encode": ["run"] * 2,
        "denoise": ["run"] * 3,
        "decode": ["encode", "encode", "run", "run"],
    }


async def test_inputs_that_are_lost_twice_end_the_request() -> None:
    stages = handles()
    stages["denoise"].fails = [in_stage(lost())] * 2
    with pytest.raises(StageLost, match="inputs of the denoise stage"):
        await generate(stages)


@pytest.mark.parametrize(
    "error", [lost(), lost(OwnerDiedError), NodeDiedError("a node"), ActorUnschedulableError("no node")], ids=repr
)
async def test_a_lost_output_is_made_once_more(error: Exception) -> None:
    """It lay on the node of a stage that had finished: the error comes to who asks for the output."""
    stages = handles()
    stages["encode"].fails = [error]
    await generate(stages)
    assert calls(stages)["encode"] == ["run"] * 2
    assert calls(stages)["denoise"] == ["run"]
    stages = handles()
    stages["encode"].fails = [error] * 2
    with pytest.raises(StageLost, match="encode stage died"):
        await generate(stages)


async def test_what_a_stage_raises_is_raised_as_it_was() -> None:
    stages = handles()
    stages["denoise"].fails = [in_stage(NonFinite("NaN"))]
    with pytest.raises(NonFinite, match="NaN"):
        await generate(stages)
