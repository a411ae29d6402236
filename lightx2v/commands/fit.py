"""`python -m lightx2v fit MODEL --gpu 24GiB`: what a model takes on the card and on the host, and how long a request
takes. It reads headers and configurations, and needs no GPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightx2v.checkpoint import read_spec
from lightx2v.commands.cards import CARDS, GIB, Card
from lightx2v.commands.headers import with_headers
from lightx2v.commands.options import add_settings, command_parser, settings_of, size_of
from lightx2v.config import EngineSettings, parse_bytes
from lightx2v.errors import InvalidSettings, LightError, OutOfMemory
from lightx2v.limits import Limits
from lightx2v.models.request import check_request, complete
from lightx2v.types import GenerateRequest

if TYPE_CHECKING:
    from lightx2v.commands.forecast import Forecast, Part

GB = 1e9
Row = tuple[str, ...]
STAGES_HEAD: Row = ("stage", "weights", "activations", "host memory", "uses a request")
CARDS_HEAD: Row = (
    "card",
    "memory",
    "weights that stay",
    "moved a request",
    "seconds a request",
    "most a second",
    "together",
)
NOTE = """The plan is the server's. Seconds are an estimate for requests one after another, each with a new prompt:
within a tenth for an H200 (docs/tools.md), and coarser for cards that were not measured. The most a second is what many
clients can get, of whose requests so many run together in each stage."""
EXAMPLE = "fit black-forest-labs/FLUX.2-klein-9B --gpu 24GiB --host 64GiB --size 1024x1024"


def main(arguments: Sequence[str]) -> int:
    """Prints the forecast. Returns 0, or 1 if the model fits on no card or not on the host."""
    options = _parser().parse_args(arguments)
    try:
        host = parse_bytes(options.host) if options.host else None
        with with_headers(settings_of(options)) as settings:
            return _report(options.model, settings, _request(options, settings), host)
    except (LightError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("fit", "Forecast the memory and the seconds that a model takes.", EXAMPLE)
    parser.add_argument("model", help="a folder in the diffusers layout, or a hub id, of which only headers are read")
    parser.add_argument("--gpu", dest="gpu_budget", help="device memory for all stages, as 24GiB (each card's own)")
    parser.add_argument("--host", help="host memory that there is, as 64GiB (not compared)")
    parser.add_argument("--size", help="WIDTHxHEIGHT, or an aspect as in 16:9 (the model's)")
    parser.add_argument("--frames", type=int, help="frames of a video (the model's)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the model's)")
    parser.add_argument("--references", type=int, help="reference pictures of a request (as few as the model takes)")
    add_settings(parser, without=("model", "gpu_budget", "device"))
    return parser


def _request(options: argparse.Namespace, settings: EngineSettings) -> GenerateRequest:
    spec = read_spec(settings)
    count = spec.min_references if options.references is None else options.references
    limits = Limits()
    request = complete(
        "a prompt",
        spec,
        (spec.size,) * count,
        size=size_of(options.size, spec, limits),
        steps=options.steps,
        guidance=options.guidance,
        frames=options.frames,
    )
    check_request(request, spec, limits)
    return request


def _report(name: str, settings: EngineSettings, request: GenerateRequest, host: int | None) -> int:
    """Prints what the model takes, by stage and by card. Returns the exit status."""
    made = _forecasts(settings, request)
    fitting = [one for one in made.values() if not isinstance(one, str)]
    print(f"{name}, {_describe(request)}\n")
    if fitting:
        print(_table([STAGES_HEAD, *(_stage_row(part) for part in fitting[-1].parts)]), end="\n\n")
    print(_table([CARDS_HEAD, *(_card_row(card, settings, made[card.name]) for card in CARDS)]), end="\n\n")
    print(NOTE)
    return 0 if fitting and _fits_on_host(fitting[-1].host_bytes + settings.conditioning_cache, host) else 1


def _forecasts(settings: EngineSettings, request: GenerateRequest) -> Mapping[str, Forecast | str]:
    """The forecast by card, or the reason why there is none."""
    from lightx2v.commands.forecast import forecast  # torch is not needed for --help

    made: dict[str, Forecast | str] = {}
    for card in CARDS:
        try:
            made[card.name] = forecast(settings, request, card)
        except (OutOfMemory, InvalidSettings) as error:
            made[card.name] = str(error)
    return made


def _fits_on_host(needed: int, there: int | None) -> bool:
    """Prints the host's side. Returns whether it has room, as far as that is known."""
    fits = there is None or needed <= there
    compared = "" if there is None else f"; {_gib(there)} {'are enough' if fits else 'are not enough'}"
    print(f"host memory: {_gib(needed)} for weights and cached prompts, besides the processes themselves{compared}")
    if not fits:
        print("with --cpu-offload true --lazy-load, weights have no host copy: they are read from disk at every use")
    return fits


def _describe(request: GenerateRequest) -> str:
    frames = f", {request.frames} frames" if request.frames > 1 else ""
    references = f", {len(request.references)} references" if request.references else ""
    return f"{request.size}{frames}{references}, {request.steps} steps, guidance {request.guidance:g}"


def _stage_row(part: Part) -> Row:
    size = part.size
    memory = size.reachable, size.activation_bytes, part.host_bytes
    return size.stage, *map(_gib, memory), str(size.planned_passes)


def _card_row(card: Card, settings: EngineSettings, made: Forecast | str) -> Row:
    budget = min(settings.gpu_budget or card.memory, card.memory)
    if isinstance(made, str):
        return card.name, _gib(budget), made
    resident = (f"{part.size.stage} {_of(part.share.resident, part.size.reachable)}" for part in made.parts)
    together = "/".join(str(part.cohort.wide.width) for part in made.parts)
    alone = f"{made.moved / GB:.1f} GB", f"{made.seconds:.2f}"
    return card.name, _gib(budget), ", ".join(resident), *alone, f"{made.per_second:.2f}", together


def _of(resident: int, reachable: int) -> str:
    return "all" if resident == reachable else f"{resident / reachable:.0%}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"


def _table(rows: Sequence[Row]) -> str:
    """The rows in columns. A row may lack its last cells."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
