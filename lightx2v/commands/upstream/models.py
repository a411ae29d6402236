"""LightX2V's names of models, and the checkpoints that stand for them here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightx2v.commands.upstream.conversion import Config, Conversion
from lightx2v.errors import InvalidSettings

KLEIN, DEV = "black-forest-labs/FLUX.2-klein-9B", "black-forest-labs/FLUX.2-dev"
WAN = "Wan-AI/Wan2.{}-Diffusers"
MODELS: Mapping[str, Mapping[str, str]] = {
    "flux2_klein": {"t2i": KLEIN, "i2i": KLEIN},
    "flux2_dev": {"t2i": DEV, "i2i": DEV},
    "qwen_image": {"t2i": "Qwen/Qwen-Image-2512", "i2i": "Qwen/Qwen-Image-Edit-2511"},
    "z_image": {"t2i": "Tongyi-MAI/Z-Image-Turbo", "i2i": "Tongyi-MAI/Z-Image-Turbo"},
    "wan2.1": {"t2v": WAN.format("1-T2V-14B"), "i2v": WAN.format("1-I2V-14B-480P")},
    "wan2.2_moe": {"t2v": WAN.format("2-T2V-A14B"), "i2v": WAN.format("2-I2V-A14B")},
    "wan2.2": {"t2v": WAN.format("2-TI2V-5B"), "i2v": WAN.format("2-TI2V-5B")},
}
"""A published checkpoint in the diffusers layout for each `model_cls` and `task`."""


def family(config: Config) -> str | None:
    """The `model_cls`, without a suffix that does not change the checkpoint's layout; None if there is none."""
    name = config.get("model_cls")
    if name == "flux2":
        return f"flux2_{config.get('model_variant', 'klein')}"
    return str(name).removesuffix("_distill") if name else None


def convert_model(rest: Config, made: Conversion) -> None:
    """Sets `model`. Raises InvalidSettings for one that is not served here."""
    name = family(rest)
    tasks = _tasks(name)
    task = rest.get("task") or next(iter(tasks), "")
    if name and task not in tasks:
        raise InvalidSettings(f"task: {task!r} of {name} is not served here; served are {', '.join(tasks)}")
    for key in ("model_cls", "model_variant", "task"):
        if key in rest:
            del rest[key]
            made.note("changed", key, "the checkpoint says what it is, and a request what it brings")
    _name_model(rest.pop("model_path", None), tasks.get(task), made)


def _tasks(name: str | None) -> Mapping[str, str]:
    if name is not None and name not in MODELS:
        raise InvalidSettings(f"model_cls: {name!r} is not served here; served are {', '.join(MODELS)}")
    return MODELS[name] if name else {}


def _name_model(path: str | None, published: str | None, made: Conversion) -> None:
    """Keeps a path, unless it is a folder here in LightX2V's own layout."""
    layout = "a folder in the diffusers layout (with a model_index.json) or a hub id"
    if path and (not Path(path).is_dir() or (Path(path) / "model_index.json").is_file()):
        made.settings["model"] = path
        like = f", such as {published}" if published else ""
        made.note("changed", "model_path", f"it is `model` here, and must be {layout}{like}")
    elif published:
        made.settings["model"] = published
        made.note("changed", "model_path", f"`model` is {layout}; it is set to {published}")
    else:
        made.note("changed", "model_path", f"set `model` to {layout}; without it the small bundled model is served")
