"""`python -m lightx2v check MODEL`: whether a checkpoint and its LoRAs can be served, and why not. It reads headers and
configurations, in the code that starts a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightx2v.checkpoint import read_spec, read_stages
from lightx2v.commands.cards import CARDS
from lightx2v.commands.headers import with_headers
from lightx2v.commands.options import add_settings, command_parser, settings_of
from lightx2v.config import EngineSettings
from lightx2v.errors import LightError
from lightx2v.types import TRANSFORMERS, StageName

UNKNOWN = "was not looked at, because the transformer has a fault"
EXAMPLE = "check /models/FLUX.2-klein-4B --loras oil=/models/oil.safetensors"


class Finding(NamedTuple):
    """What was found out about one part: `fault` says what is wrong and what to do, and is empty if nothing is."""

    part: str
    fault: str = ""


def main(arguments: Sequence[str]) -> int:
    """Prints a line for each part. Returns 0 if all can be served, else 1."""
    parser = command_parser("check", "Say whether a checkpoint can be served, and why not.", EXAMPLE)
    parser.add_argument("model", help="a folder in the diffusers layout, or a hub id, of which only headers are read")
    add_settings(parser, without=("model",))
    options = parser.parse_args(arguments)
    try:
        with with_headers(settings_of(options)) as settings:
            faults = sum(_say(finding) for finding in findings(settings))
    except (LightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.model}: {'can be served' if not faults else f'cannot be served ({faults} faults)'}")
    return 1 if faults else 0


def findings(settings: EngineSettings) -> Iterator[Finding]:
    """What is found about each part of the model and about each of its LoRAs. A fault in one part hides none in
    another."""
    bare = settings.model_copy(update={"loras": {}})
    try:
        read_spec(bare)
        stages = read_stages(bare)
    except LightError as error:
        yield Finding("configurations", str(error))
        return
    yield Finding("configurations")
    parts = {name: _stage(name, bare) for name in stages}
    yield from parts.values()
    faulty = any(parts[name].fault for name in stages if name in TRANSFORMERS)
    for name, path in settings.loras.items():
        loaded = settings.model_copy(update={"loras": {name: path}})
        yield Finding(f"lora {name}", UNKNOWN if faulty else _fault_of_lora(loaded))


def _stage(name: StageName, settings: EngineSettings) -> Finding:
    try:
        _load(name, settings)
    except (LightError, OSError) as error:
        return Finding(name, str(error))
    return Finding(name)


def _fault_of_lora(settings: EngineSettings) -> str:
    """What is wrong with the only LoRA of `settings`, whose model is sound."""
    from lightx2v.stages.build import check_loras  # torch is not needed for --help

    try:
        read_spec(settings)
        read_stages(settings)
        check_loras(settings)
    except (LightError, OSError) as error:
        return str(error)
    return ""


def _load(name: StageName, settings: EngineSettings) -> None:
    """Builds a stage without its weights. Raises what the start of a server would raise."""
    from lightx2v.stages.build import load_stage  # torch is not needed for --help
    from lightx2v.weights.planned_card import PlannedCard

    card = CARDS[-1]
    load_stage(name, settings, PlannedCard(card.memory, card.link, card.rate))


def _say(finding: Finding) -> bool:
    """Prints a finding. Returns whether it is a fault."""
    part, fault = finding
    print(f"{'FAULT' if fault else 'ok':6} {part}{f': {fault}' if fault else ''}")
    return bool(fault)
