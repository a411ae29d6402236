"""`python -m lightx2v convert CONFIG.json`: a configuration of LightX2V as one of this server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from lightx2v.commands.options import command_parser
from lightx2v.commands.upstream.conversion import Config, Conversion, Note
from lightx2v.commands.upstream.rules import convert
from lightx2v.errors import InvalidSettings, LightError

FROM_COMMAND_LINE = ("model_cls", "task", "model_path")
"""What LightX2V takes on its command line, or in the file."""

EXAMPLE = "convert wan_i2v.json --model_cls wan2.1 --task i2v -o serve.yaml"
HEADER = """# Made from LightX2V's {name} by `python -m lightx2v convert`.
# Start it with `make serve CONFIG=FILE`.
"""
DEFAULTS = """# Defaults of requests, for generation_config.json in the model's folder, or for each request:
# {}
"""


def main(arguments: Sequence[str]) -> int:
    """Writes the configuration, and says on stderr what became of every key. Returns 0, or 1 if it cannot be made."""
    parser = command_parser("convert", "Turn a configuration of LightX2V into one of this server.", EXAMPLE)
    parser.add_argument("config", type=Path, help="LightX2V's JSON file")
    parser.add_argument("-o", "--output", type=Path, help="the YAML file (stdout)")
    for key in FROM_COMMAND_LINE:
        parser.add_argument(f"--{key}", f"--{key.replace('_', '-')}", help="as on LightX2V's command line")
    options = parser.parse_args(arguments)
    try:
        given = {key: value for key in FROM_COMMAND_LINE if (value := getattr(options, key)) is not None}
        made = convert(_read(options.config) | given)
        text = to_yaml(options.config.name, made)
        if options.output is not None:
            options.output.write_text(text, encoding="utf-8")
    except (LightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.output is None:
        print(text, end="")
    print(report(made), file=sys.stderr)
    return 0


def to_yaml(name: str, made: Conversion) -> str:
    """The file that `serve run` takes. `name`: of the file it was made from."""
    application = {
        "name": "lightx2v",
        "route_prefix": "/",
        "import_path": "deployments.app:build",
        "args": made.settings,
    }
    document = {"http_options": {"host": "127.0.0.1", "port": 8000}, "applications": [application]}
    defaults = DEFAULTS.format(json.dumps(made.defaults)) if made.defaults else ""
    return HEADER.format(name=name) + defaults + yaml.safe_dump(document, sort_keys=False)


def report(made: Conversion) -> str:
    """A line for every key, and the defaults of requests."""
    lines = [f"{note.verdict:8} {note.key}: {note.reason}" for note in sorted(made.notes, key=_rank)]
    if made.defaults:
        lines.append(f"defaults of requests, for generation_config.json: {json.dumps(made.defaults)}")
    return "\n".join(lines)


def _rank(note: Note) -> int:
    return ("kept", "changed", "dropped", "unknown").index(note.verdict)


def _read(file: Path) -> Config:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSettings(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise InvalidSettings(f"{file}: expected a JSON object")
    return config
