"""The schemes of quantised weights that are not understood, refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.tensor_ref import TensorRef

UNKNOWN: Mapping[str, str] = {
    "weight_scale_2": "NVFP4",
    "weight_scalar": "MXFP8",
    "weight_s_rel": "int4 with groups",
    "weight_zeros": "int4 with zero points",
    "weight_zero_point": "numbers with zero points",
    "weight_packed": "compressed-tensors in 4 bits",
    "pre_quant_scale": "ModelOpt's or AWQ's",
    "absmax": "bitsandbytes'",
    "quant_map": "bitsandbytes'",
    "SCB": "bitsandbytes'",
    "qweight": "GPTQ's, AWQ's or Nunchaku's",
    "wscales": "Nunchaku's",
    "_data": "quanto's",
}
"""The scheme to which a tensor belongs, by the last part of its name."""

FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""ComfyUI's names of the formats that are understood."""

METHODS: Mapping[str, str | None] = {"fp8": None, "compressed-tensors": "float-quantized"}
"""The methods of a `quantization_config` that store fp8 with scales, and the `format` that one must name for that."""

ADVICE = "take a file in bf16, in fp8 or int8 with scales, or a GGUF file"


def check_configuration(folder: Path) -> None:
    """Raises InvalidCheckpoint if the `config.json` of a part says that its weights are quantised in a way that is not
    understood."""
    file = folder / "config.json"
    if not file.is_file():
        return
    try:
        values = json.loads(file.read_text(encoding="utf-8")).get("quantization_config")
    except (ValueError, AttributeError, OSError) as error:
        raise InvalidCheckpoint(f"{file}: cannot be read as a JSON object ({error})") from error
    if not values:
        return
    method = values.get("quant_method")
    if method not in METHODS or values.get("format") != METHODS[method]:
        named = " ".join(str(values[key]) for key in ("quant_method", "quant_type", "format") if values.get(key))
        raise InvalidCheckpoint(f"{file}: quantised weights ({named or 'of no method'}) are not supported; {ADVICE}")


def check_metadata(where: str, text: str) -> None:
    """Raises InvalidCheckpoint unless all layers in `text` are understood: the `_quantization_metadata` of a file's
    header, where ComfyUI describes them in JSON."""
    try:
        layers = dict(json.loads(text).get("layers", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidCheckpoint(f"{where}: its _quantization_metadata cannot be read ({error})") from error
    check_formats(where, layers)


def check_formats(where: str, layers: Mapping[str, Any]) -> None:
    """Raises InvalidCheckpoint unless all of `layers`, ComfyUI's descriptions of stored weights, are understood."""
    for layer, values in layers.items():
        values = values if isinstance(values, dict) else {"format": values}
        rotated = values.get("convrot") or dict(values.get("params") or {}).get("convrot")
        if values.get("format") not in FORMATS or rotated:
            scheme = f"{values.get('format')}{', rotated' if rotated else ''}"
            raise InvalidCheckpoint(f"{where}: {layer} is stored as {scheme}, which is not supported; {ADVICE}")


def check_names(refs: Mapping[str, TensorRef]) -> None:
    """Raises InvalidCheckpoint for a tensor that belongs to a scheme that is not understood."""
    for name, ref in refs.items():
        last = name.rpartition(".")[2]
        if last == "comfy_quant":
            check_formats(str(ref.file), {name.removesuffix(".comfy_quant"): _read_json(name, ref)})
        elif scheme := UNKNOWN.get(last):
            raise InvalidCheckpoint(f"{ref.file}: {name} belongs to quantised weights ({scheme}); {ADVICE}")


def _read_json(name: str, ref: TensorRef) -> Any:
    with ref.file.open("rb") as stream:
        stream.seek(ref.spans[0].offset)
        text = stream.read(ref.nbytes)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidCheckpoint(f"{ref.file}: {name} is not JSON ({error})") from error
