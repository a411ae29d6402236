"""The command line: `python -m lightx2v "a red circle" -o out.png --seed 7`. Needs no server."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lightx2v.checkpoint import read_recipe
from lightx2v.config import ENVIRONMENT, EngineSettings, parse_settings
from lightx2v.core import GenerateRequest, Picture, Progress, Size
from lightx2v.errors import InvalidRequest, LightError
from lightx2v.limits import RANDOM_SEEDS, Limits
from lightx2v.models.registry import Recipe
from lightx2v.picture import decode_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes one picture; the exit status is 0, or 1 after a message that says what to do."""
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        recipe = read_recipe(settings)
        pictures = [_read(path, recipe) for path in options.image]
        _make(settings, _request(options, recipe, pictures), pictures).save(options.output)
    except (LightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lightx2v", description="Make a picture of a prompt.")
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=_output, default="out.png", help="PNG, JPEG or WEBP (out.png)")
    parser.add_argument("-i", "--image", type=Path, action="append", default=[], help="a reference; may be repeated")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--size", help="WIDTHxHEIGHT (the model's, or the first reference's)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the model's)")
    parser.add_argument("--seed", type=int, help="the same seed makes the same picture (random)")
    for field, info in EngineSettings.model_fields.items():
        parser.add_argument(f"--{field.replace('_', '-')}", help=f"setting, as in a configuration ({info.default})")
    return parser


def _settings(options: argparse.Namespace) -> EngineSettings:
    given = {field: getattr(options, field) for field in EngineSettings.model_fields}
    flags = {field: value for field, value in given.items() if value is not None}
    return parse_settings(EngineSettings, flags, {f: variable for f, variable in ENVIRONMENT.items() if f not in flags})


def _request(options: argparse.Namespace, recipe: Recipe, pictures: Sequence[Picture]) -> GenerateRequest:
    sizes = tuple(picture.size for picture in pictures)
    request = GenerateRequest(
        id="cli",
        prompt=options.prompt,
        size=_size(options.size) if options.size else recipe.edit_size(sizes),
        steps=recipe.steps if options.steps is None else options.steps,
        seed=secrets.randbelow(RANDOM_SEEDS) if options.seed is None else options.seed,
        guidance=recipe.guidance if options.guidance is None else options.guidance,
        negative_prompt=options.negative_prompt,
        references=sizes,
    )
    Limits().check(request, recipe.multiple)
    return request


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidRequest(f"--size {text}: write WIDTHxHEIGHT in pixels, as in 1024x768", "size")
    return Size(int(width), int(height))


def _read(path: Path, recipe: Recipe) -> Picture:
    return Picture(np.asarray(recipe.fit_reference(decode_picture(path.read_bytes(), str(path))), dtype=np.uint8))


def _output(name: str) -> Path:
    """A file that Pillow can write; asked before a picture is made for it."""
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{name}: the name must end in one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{name}: there is no folder {path.parent}")
    return path


def _make(settings: EngineSettings, request: GenerateRequest, pictures: Sequence[Picture]) -> Image.Image:
    from lightx2v.pipeline import Pipeline

    with tqdm(total=request.steps, unit="step", desc=f"seed {request.seed}") as bar:

        def report(progress: Progress) -> None:
            bar.update(progress.step - bar.n)

        return Image.fromarray(Pipeline(settings).generate(request, pictures, report).pixels)


if __name__ == "__main__":
    sys.exit(main())
