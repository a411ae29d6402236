"""What requests decide here: LightX2V's settings become the defaults of requests."""

from __future__ import annotations

from typing import Any

from lightx2v.commands.upstream.conversion import Config, Conversion
from lightx2v.commands.upstream.models import family
from lightx2v.errors import InvalidSettings


def convert_requests(rest: Config, made: Conversion) -> None:
    """Moves steps, guidance, size, frames and shift to the defaults. Raises InvalidSettings for what is none."""
    if "infer_steps" in rest:
        made.default("infer_steps", "num_inference_steps", _positive("infer_steps", rest.pop("infer_steps")))
    _guidance(rest, made)
    _size(rest, made)
    for key in ("target_video_length", "num_frames"):
        if key in rest:
            _frames(key, _positive(key, rest.pop(key)), made)
    if "sample_shift" in rest:
        _shift(rest.pop("sample_shift"), made)


def _guidance(rest: Config, made: Conversion) -> None:
    """`enable_cfg: false` makes the scale 1, but for a transformer that is told the scale."""
    off = rest.get("enable_cfg") is False and family(rest) != "flux2_dev"
    if "enable_cfg" in rest:
        del rest["enable_cfg"]
        made.note("changed", "enable_cfg", "guidance is on where `guidance_scale` is above 1")
    for key in ("sample_guide_scale", "true_cfg_scale"):
        if key not in rest:
            continue
        first, *others = _scales(key, rest.pop(key))
        if off:
            made.note("changed", key, "`enable_cfg: false` leaves it without effect, so `guidance_scale` is 1")
        else:
            made.default(key, "guidance_scale", first)
            made.defaults.update(zip(("guidance_scale_2",), others, strict=False))
    if off:
        made.defaults["guidance_scale"] = 1.0


def _scales(key: str, value: object) -> list[float]:
    scales: list[Any] = value if isinstance(value, list) else [value]
    if not scales or not all(type(scale) in (int, float) for scale in scales):
        raise InvalidSettings(f"{key}: must be a number, or one for each of two transformers, not {value!r}")
    return scales


def _size(rest: Config, made: Conversion) -> None:
    """The height comes first in lists."""
    if "target_height" in rest and "target_width" in rest:
        pair = [rest.pop("target_height"), rest.pop("target_width")]
        rest["target_height, target_width"] = pair
    for key in ("target_height, target_width", "size", "target_shape"):
        if key in rest:
            pair = rest.pop(key)
            if not isinstance(pair, list) or len(pair) != 2:
                raise InvalidSettings(f"{key}: expected [height, width], not {pair!r}")
            height, width = (_positive(key, side) for side in pair)
            made.default(key, "size", f"{width}x{height}")


def _frames(key: str, frames: int, made: Conversion) -> None:
    """A video has one frame more than a multiple of four; LightX2V rounds other lengths."""
    if frames == 1:
        made.note("dropped", key, "models for pictures make one picture, not one frame")
    else:
        made.default(key, "num_frames", frames if frames % 4 == 1 else frames // 4 * 4 + 1)


def _shift(shift: float, made: Conversion) -> None:
    if "num_frames" in made.defaults:
        made.default("sample_shift", "flow_shift", shift)
    else:
        made.note("dropped", "sample_shift", "the checkpoint's scheduler_config.json says it; requests may, as `shift`")


def _positive(key: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise InvalidSettings(f"{key}: must be a positive integer, not {value!r}")
    return value
