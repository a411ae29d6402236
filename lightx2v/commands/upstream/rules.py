"""A configuration of LightX2V as settings of this server: what is kept, what changes, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Callable

from lightx2v.commands.upstream.conversion import Config, Conversion
from lightx2v.commands.upstream.keys import reason_to_drop
from lightx2v.commands.upstream.models import convert_model
from lightx2v.commands.upstream.requests import convert_requests
from lightx2v.commands.upstream.weights import convert_loras, convert_quantised, convert_weights
from lightx2v.config import EngineSettings, parse_settings


def convert(config: Config) -> Conversion:
    """The settings that mean what `config` means, as far as there are such.

    Raises InvalidSettings for a model that is not served here, and for a value that no setting can have.
    """
    rest, made = dict(config), Conversion()
    for rule in RULES:
        rule(rest, made)
    for key, value in rest.items():
        reason = reason_to_drop(key, value)
        made.note("dropped" if reason else "unknown", key, reason or "no such key of LightX2V is known here")
    parse_settings(EngineSettings, made.settings, {})
    return made


def convert_offload(rest: Config, made: Conversion) -> None:
    """Keeps the three settings of offload, where they have an effect."""
    offload = rest.pop("cpu_offload", None)
    if offload is not None:
        made.settings["cpu_offload"] = offload
        made.note("kept", "cpu_offload", "it means the same; `auto` keeps what fits on the card and is faster")
    for key in ("offload_granularity", "lazy_load"):
        if key not in rest:
            continue
        value = rest.pop(key)
        if offload is True:
            made.settings[key] = value
            made.note("kept", key, "it means the same, for every part of the model")
        else:
            made.note("dropped", key, "it has no effect without `cpu_offload: true`")


def convert_compile(rest: Config, made: Conversion) -> None:
    """Renames `use_compile`."""
    if "use_compile" not in rest:
        return
    wanted = bool(rest.pop("use_compile"))
    if wanted and made.settings.get("offload_granularity") == "phase":
        made.note("dropped", "use_compile", "parts of blocks that stream one by one are not compiled")
    else:
        made.settings["compile"] = wanted
        made.note("changed", "use_compile", "it is `compile` here; `auto` compiles on GPUs")


RULES: tuple[Callable[[Config, Conversion], None], ...] = (
    *(convert_requests, convert_model, convert_offload, convert_compile),
    *(convert_weights, convert_quantised, convert_loras),
)
"""Each takes the keys that it knows out of what is left. `convert_requests` needs the model's name, which
`convert_model` takes; `convert_quantised` needs the parts that `convert_weights` names."""
