"""Arguments that several commands take: the engine's settings, and sizes."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from lightx2v.config import ENVIRONMENT, EngineSettings, parse_settings
from lightx2v.errors import InvalidRequest
from lightx2v.limits import Limits
from lightx2v.models.request import choose_size
from lightx2v.models.spec import ModelSpec
from lightx2v.sizes import parse_size
from lightx2v.types import Size


def command_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of the command `name`. Its help ends with `example`, the words after `python -m lightx2v`."""
    return argparse.ArgumentParser(
        f"python -m lightx2v {name}".rstrip(),
        description=description,
        epilog=f"example: python -m lightx2v {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_settings(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Adds an option for each setting of the engine, besides those in `without`. A switch needs no value."""
    for field, info in EngineSettings.model_fields.items():
        if field in without:
            continue
        name, usual = f"--{field.replace('_', '-')}", info.get_default(call_default_factory=True)
        help = f"setting, as in a configuration ({usual})"
        if info.annotation is bool:
            parser.add_argument(name, help=help, nargs="?", const="true")
        else:
            parser.add_argument(name, help=help)


def settings_of(options: argparse.Namespace, **defaults: object) -> EngineSettings:
    """The settings that `options` give, else the environment, else `defaults`. Raises InvalidSettings."""
    given = {field: getattr(options, field, None) for field in EngineSettings.model_fields}
    flags = {field: value for field, value in given.items() if value is not None}
    variables = {field: variable for field, variable in ENVIRONMENT.items() if field not in flags}
    return parse_settings(EngineSettings, defaults | flags, variables)


def size_of(text: str | None, spec: ModelSpec, limits: Limits) -> Size | None:
    """The size in `text`: WIDTHxHEIGHT, or an aspect at the model's usual area. Raises InvalidRequest."""
    if text is None:
        return None
    try:
        return choose_size(parse_size(text), spec, limits)
    except ValueError as error:
        raise InvalidRequest(f"--size {text}: {error}", "size") from None
