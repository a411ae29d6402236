"""The options that commands which load servers share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from benchmarks.ask import Ask
from benchmarks.load.mix import Mix, even, parse_size, read_mix
from deployments.settings import ModelSettings
from lightx2v.config import parse_settings
from lightx2v.errors import InvalidSettings
from lightx2v.types import Size

EVERY_PROMPT: Mapping[str, Any] = MappingProxyType({"conditioning_cache": 0})
"""A setting of loaded servers: a request that is made again, to compare its picture, is encoded again."""


def add_ask(parser: argparse.ArgumentParser, size: Size) -> None:
    """Options of one kind of request."""
    parser.add_argument("--size", type=parse_size, default=size, help=f"of pictures; absent: {size}")
    parser.add_argument("--steps", type=int, help="absent: the model's own, as the next")
    parser.add_argument("--guidance", type=float)


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", type=parse_setting, action="append", default=[], metavar="NAME=VALUE", help="of configs/flux2.yaml"
    )


def mix_of(options: argparse.Namespace, models: list[str]) -> Mix:
    """That of `--mix`, or one kind for each of the models (of the server's first, if none is named)."""
    file: Path | None = getattr(options, "mix", None)
    if file is not None:
        return read_mix(file)
    ask = Ask(options.size, options.steps, options.guidance)
    return even(*(replace(ask, model=model) for model in models)) if models else even(ask)


def parse_setting(text: str) -> tuple[str, Any]:
    """'fp8=true' as a name and a value, which is read as YAML. Raises ArgumentTypeError, also for what no server takes:
    none would be asked before the computation has been measured."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write name=value")
    setting = {name: yaml.safe_load(value)}
    try:
        parse_settings(ModelSettings, setting, {})
    except InvalidSettings as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name, setting[name]


def application(checkpoints: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `args` of a server of these checkpoints, each named by its folder."""
    if len(checkpoints) == 1:
        return {**settings, "model": checkpoints[0]}
    return {**settings, "models": [{"model": checkpoint, "name": Path(checkpoint).name} for checkpoint in checkpoints]}
