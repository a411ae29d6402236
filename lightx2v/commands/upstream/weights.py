"""LightX2V's settings of weight files: other weights for a part, quantised ones, and LoRAs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain, count
from pathlib import Path

from lightx2v.commands.upstream.conversion import Config, Conversion, Verdict
from lightx2v.errors import InvalidSettings

PARTS: Mapping[str, tuple[str, ...]] = {
    "transformer": (
        *("dit_quantized_ckpt", "high_noise_quantized_ckpt", "dit_original_ckpt", "high_noise_original_ckpt"),
        *("dit_distill_ckpt", "dit_distill_ckpt_high"),
    ),
    "transformer_2": ("low_noise_quantized_ckpt", "low_noise_original_ckpt", "dit_distill_ckpt_low"),
    "text_encoder": ("t5_quantized_ckpt", "qwen3_quantized_ckpt", "qwen25vl_quantized_ckpt", "t5_original_ckpt"),
    "image_encoder": ("clip_quantized_ckpt", "clip_original_ckpt"),
    "vae": ("vae_path",),
}
"""The keys that name weights of a part. A quantised file comes first, because LightX2V then reads no other."""

PICKLES = (".pth", ".pt", ".bin")
QUANTISED = ("dit", "t5", "clip", "qwen3", "qwen25vl", "adapter", "mistral3", "text_encoder")

EXPERTS: Mapping[str, str] = {"high_noise_model": "high", "low_noise_model": "low"}
"""LightX2V's names of Wan 2.2's two transformers in `lora_configs`."""


def convert_weights(rest: Config, made: Conversion) -> None:
    """Moves paths of weight files to the parts that they are for. Raises InvalidSettings for what is no path."""
    for part, keys in PARTS.items():
        for key in keys:
            if key in rest:
                made.note(*_weights(part, key, rest.pop(key), made.settings))


def _weights(part: str, key: str, path: object, settings: Config) -> tuple[Verdict, str, str]:
    if not path:
        return "dropped", key, "it names nothing"
    if not isinstance(path, str):
        raise InvalidSettings(f"{key}: must be a path, not {path!r}")
    if path.endswith(PICKLES):
        return "dropped", key, f"a pickle can run code; name a safetensors file as `{part}`, not {path}"
    if part in settings:
        return "dropped", key, f"`{part}` is {settings[part]} already"
    settings[part] = path
    return "changed", key, f"it is `{part}` here; `python -m lightx2v check` says whether it is readable"


def convert_quantised(rest: Config, made: Conversion) -> None:
    """Sets `fp8` for what is quantised while it is loaded. A file with fewer bits says so itself."""
    for part in QUANTISED:
        flag, scheme = f"{part}_quantized", f"{part}_quant_scheme"
        if rest.get(flag):
            verdict, reason = _quantised(part, rest.get(scheme, "quantisation"), made.settings)
            for key in (flag, scheme):
                if rest.pop(key, None) is not None:
                    made.note(verdict, key, reason)


def _quantised(part: str, scheme: str, settings: Config) -> tuple[Verdict, str]:
    if part == "dit" and "transformer" in settings:
        return "changed", f"the file says how it is stored ({scheme}); `check` says whether it is readable"
    if part == "dit":
        settings["fp8"] = True
        return "changed", f"it is `fp8: true` in place of {scheme}: weights are rounded while they are loaded"
    if settings.get("fp8"):
        return "changed", "`fp8: true` is for the text encoder, too"
    return (
        "dropped",
        f"{scheme} of this part alone is not possible; `fp8: true` is for text encoder and transformer",
    )


def convert_loras(rest: Config, made: Conversion) -> None:
    """Names every LoRA. Raises InvalidSettings for one without a path."""
    if "lora_configs" not in rest:
        return
    loras: Config = {}
    pairs: dict[str, Config] = {}
    for lora in rest.pop("lora_configs") or []:
        if not isinstance(lora, dict) or not isinstance(lora.get("path"), str):
            raise InvalidSettings('lora_configs: each entry needs a path, as in {"path": "a.safetensors"}')
        name = str(lora.get("name") or Path(lora["path"]).stem)
        if side := EXPERTS.get(name):
            pairs.setdefault(_free("experts", [pair for pair in pairs if side in pairs[pair]]), {})[side] = _lora(lora)
        else:
            loras[_free(name, loras)] = _lora(lora)
    for name, experts in pairs.items():
        loras[_free(name, loras)] = experts
    if loras:
        made.settings["loras"] = loras
        made.note("changed", "lora_configs", f"it is `loras` here; requests ask for one as `lora`: {', '.join(loras)}")
    else:
        made.note("dropped", "lora_configs", "it names none")


def _free(name: str, taken: Collection[str]) -> str:
    """The name, or with the first number from 2 on that is not taken: trainers call their files the same."""
    return next(one for one in chain([name], (f"{name}-{number}" for number in count(2))) if one not in taken)


def _lora(lora: Config) -> str | Config:
    """A path, or with another strength than 1 its path and scale."""
    strength = lora.get("strength", 1.0)
    return str(lora["path"]) if strength == 1 else {"path": lora["path"], "scale": strength}
