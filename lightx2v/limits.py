"""The limits of one request, over HTTP and on the command line alike."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from lightx2v.errors import InvalidRequest
from lightx2v.types import GenerateRequest, Size, VideoSpec

SizePolicy = Literal["exact", "nearest"]

SEEDS = 2**64
"""Bound of seeds: torch's generators take 64 bits, and so do the programs that users take their seeds from."""
RANDOM = -1
"""The seed that stands for a random one; some programs cannot leave the field out."""
RANDOM_SEEDS = 2**53
"""Bound of random seeds: they stay exact in JavaScript, so that a browser can ask for the same picture again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one request.

    `max_aspect` is the longer side over the shorter. Models are trained near 1:1 to 1:3; a strip of 16x65536 has few
    pixels, yet positions that no model was trained on. References may be up to 8:1. Rounding sides to whole tokens can
    turn that into 9.75:1 for the output, hence 10.
    """

    max_pixels: int = 2048 * 2048
    min_side: int = 16
    max_aspect: int = 10
    max_steps: int = 100
    max_guidance: float = 100.0
    max_frames: int = 161
    max_video_pixels: int = 161 * 1280 * 720
    """Pixels of all frames together: ten seconds of 720p. The work of attention grows with the square; each pixel takes
    3 bytes on the host."""
    max_prompt_chars: int = 32_768
    max_references: int = 8
    max_loras: int = 8
    max_lora_scale: float = 10.0
    max_shift: float = 100.0
    loras: tuple[str, ...] = ()
    """The names of the LoRAs that are served."""
    size_policy: SizePolicy = "exact"
    """Whether a size that cannot be made is refused, or the nearest one is made in its place."""

    def check(self, request: GenerateRequest, multiple: int, video: VideoSpec | None = None) -> None:
        """Raises InvalidRequest for the first limit that is broken. `multiple`: the divisor of both sides, in pixels;
        `video`: the model's, None if it makes none."""
        self._check_size(request.size, multiple)
        self._check_frames(request.frames, video)
        if request.frames > 1:
            area = request.size.width * request.size.height
            _at_most(self.max_video_pixels // area, request.frames, "num_frames", f" of {request.size}")
        if not request.prompt.strip():
            raise InvalidRequest("prompt: must not be empty", "prompt")
        if not 0 <= request.seed < SEEDS:
            raise InvalidRequest(f"seed: must be from 0 to {SEEDS - 1}, or {RANDOM}, got {request.seed}", "seed")
        if request.steps < 1:
            raise InvalidRequest(f"num_inference_steps: must be at least 1, got {request.steps}", "num_inference_steps")
        for name, scale in (("guidance_scale", request.guidance), ("guidance_scale_2", request.refine_guidance or 0)):
            if not 0 <= scale <= self.max_guidance:
                raise InvalidRequest(f"{name}: must be from 0 to {self.max_guidance:g}, got {scale}", name)
        self._check_loras(request)
        if request.shift is not None and not 0 < request.shift <= self.max_shift:
            raise InvalidRequest(f"shift: must be above 0 and at most {self.max_shift:g}, got {request.shift}", "shift")
        _at_most(self.max_steps, request.steps, "num_inference_steps")
        _at_most(self.max_references, len(request.references), "image")
        _at_most(self.max_prompt_chars, len(request.prompt), "prompt", " characters")
        _at_most(self.max_prompt_chars, len(request.negative_prompt), "negative_prompt", " characters")

    def _check_loras(self, request: GenerateRequest) -> None:
        most = self.max_lora_scale
        for name, scale in request.loras:
            check_lora(name, self.loras)
            if not -most <= scale <= most:
                raise InvalidRequest(f"lora_scale: must be from {-most:g} to {most:g}, got {scale}", "lora_scale")
        _at_most(self.max_loras, len(request.loras), "loras")

    def _check_frames(self, frames: int, video: VideoSpec | None) -> None:
        complaint = None
        if frames < 1:
            complaint = "must be at least 1"
        elif frames > 1 and video is None:
            complaint = "this model makes no videos"
        elif video is not None and frames % video.multiple != 1 % video.multiple:
            complaint = f"must be one more than a multiple of {video.multiple}"
        if complaint:
            raise InvalidRequest(f"num_frames: {complaint}, got {frames}", "num_frames")
        _at_most(self.max_frames, frames, "num_frames")

    def _check_size(self, size: Size, multiple: int) -> None:
        short, long = sorted((size.width, size.height))
        complaint = None
        if short < self.min_side:
            complaint = f"each side must be at least {self.min_side} pixels"
        elif short * long > self.max_pixels:
            complaint = f"at most {self.max_pixels} pixels in all"
        elif long > self.max_aspect * short:
            complaint = f"the longer side may be at most {self.max_aspect} times the shorter"
        elif size.width % multiple or size.height % multiple:
            complaint = f"width and height must be multiples of {multiple}"
        if complaint:
            near = self.nearest(size, multiple)
            raise InvalidRequest(f"size: {complaint}, got {size}; the nearest that can be made is {near}", "size")

    def nearest(self, size: Size, multiple: int) -> Size:
        """The size nearest to `size` that keeps the limits, with sides in multiples of `multiple` pixels.

        What is too large shrinks and what is too small grows in its aspect. Of two equally near sides it is the smaller
        one, so that 1920x1080 becomes 1920x1072, as with diffusers.
        """
        short, long = sorted((max(1, size.width), max(1, size.height)))
        aspect = min(long / short, self.max_aspect)
        least = math.ceil(self.min_side / multiple) * multiple
        side = max(least, math.sqrt(min(short * long, self.max_pixels) / aspect))

        def distance(pair: tuple[int, int]) -> tuple[float, int]:
            return round(abs(pair[0] / side - 1) + abs(pair[1] / side / aspect - 1), 9), pair[0] * pair[1]

        near = min(self._around(side, aspect, least, multiple), key=distance)
        return Size(*near) if size.width <= size.height else Size(*reversed(near))

    def _around(self, side: float, aspect: float, least: int, multiple: int) -> Iterator[tuple[int, int]]:
        """Pairs of a shorter and a longer side around `side` and `aspect` times `side` that keep the limits."""
        for short in (math.floor(side / multiple) * multiple, math.ceil(side / multiple) * multiple):
            if short >= least:
                most = min(self.max_aspect * short, self.max_pixels // short) // multiple * multiple
                longer = side * aspect / multiple
                for long in (math.floor(longer) * multiple, math.ceil(longer) * multiple):
                    yield short, max(least, min(long, most))


def check_lora(name: str, known: Collection[str]) -> None:
    """Raises InvalidRequest if `name` is not one of the `known`."""
    if name not in known:
        among = f"known are {', '.join(sorted(known))}" if known else "none is configured"
        raise InvalidRequest(f"lora: {name[:80]!r} is not served here; {among}", "lora")


def _at_most(limit: int, value: int, param: str, unit: str = "") -> None:
    if value > limit:
        raise InvalidRequest(f"{param}: at most {limit}{unit}, got {value}", param)
