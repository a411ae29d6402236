"""`python -m lightx2v "a red circle" -o out.png --seed 7`: makes one picture or video, without a server."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lightx2v.checkpoint import read_spec
from lightx2v.commands import COMMANDS
from lightx2v.commands.options import add_settings, command_parser, settings_of, size_of
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidRequest, LightError
from lightx2v.limits import Limits
from lightx2v.media.encode import PICTURE_FORMATS, VIDEO_FORMATS, encode, format_of, suffixes
from lightx2v.media.mask import decode_mask
from lightx2v.media.picture import decode_picture
from lightx2v.models.reference_image import make_reference
from lightx2v.models.request import check_request, choose_loras, complete
from lightx2v.models.spec import ModelSpec
from lightx2v.types import ChosenLora, GenerateRequest, Picture, Progress, Reference, Video

EXAMPLE = '"a lighthouse at dawn" -o out.png --size 768x512 --seed 7'


def main(arguments: Sequence[str]) -> int:
    """Makes one picture or video. Returns the exit status: 0, or 1 after a message that says what to do."""
    options = _parser().parse_args(arguments)
    try:
        settings = settings_of(options, compile=False)  # one picture takes less time than compiling for it
        spec = read_spec(settings)
        references = _references(options, spec)
        request = _request(options, settings, spec, references)
        output = _matching(options.output, request)
        output.write_bytes(encode(_make(settings, request, references), format_of(output.suffix.lower())))
    except (LightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("", "Make a picture or a video from a prompt.", EXAMPLE)
    commands = "\n".join(f"  {name:10}{purpose}" for name, purpose in COMMANDS.items())
    parser.epilog = f"{parser.epilog}\n\ncommands, as in `python -m lightx2v COMMAND --help`:\n{commands}"
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=_output, help="PNG, JPEG, WEBP or MP4 (out.png or out.mp4)")
    parser.add_argument("-i", "--image", type=Path, action="append", default=[], help="a reference; may be repeated")
    parser.add_argument("--mask", type=Path, help="change the first reference only where this is transparent, or white")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--size", help="WIDTHxHEIGHT, or an aspect as in 16:9 (the model's, or the first reference's)")
    parser.add_argument("--frames", type=int, help="frames of a video; 1 makes a picture (the model's)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the model's)")
    parser.add_argument("--strength", type=float, help="image-to-image strength, up to 1 (0.6; 1 with a mask)")
    parser.add_argument("--seed", type=int, help="the same seed makes the same picture (random)")
    parser.add_argument("--lora", help="the name of one of --loras, or several: name=scale,name=scale (none)")
    parser.add_argument("--lora-scale", type=float, help="the factor of the LoRA (1.0)")
    parser.add_argument("--shift", type=float, help="the shift of the noise schedule (the model's)")
    add_settings(parser)
    return parser


def _request(
    options: argparse.Namespace, settings: EngineSettings, spec: ModelSpec, references: Sequence[Reference]
) -> GenerateRequest:
    limits = Limits(loras=tuple(settings.loras))
    request = complete(
        options.prompt,
        spec,
        [reference.fitted.size for reference in references],
        size=size_of(options.size, spec, limits),
        steps=options.steps,
        seed=options.seed,
        guidance=options.guidance,
        strength=options.strength,
        frames=options.frames,
        negative_prompt=options.negative_prompt,
        loras=_loras(options.lora, options.lora_scale),
        shift=options.shift,
        is_masked=options.mask is not None,
    )
    check_request(request, spec, limits)
    return request


def _loras(text: str | None, scale: float | None) -> tuple[ChosenLora, ...]:
    if text is None or not re.search("[=,]", text):
        return choose_loras(text, scale, None)
    try:
        pairs = [pair.partition("=") for pair in text.split(",")]
        loras = [ChosenLora(name.strip(), float(factor) if equals else 1.0) for name, equals, factor in pairs]
    except ValueError:
        raise InvalidRequest(f"--lora {text}: write name, or name=scale,name=scale", "lora") from None
    return choose_loras(None, scale, loras)


def _references(options: argparse.Namespace, spec: ModelSpec) -> list[Reference]:
    mask = None if options.mask is None else decode_mask(options.mask.read_bytes(), str(options.mask))
    pictures = (decode_picture(path.read_bytes(), str(path)) for path in options.image)
    return [make_reference(picture, spec, None if index else mask) for index, picture in enumerate(pictures)]


def _output(name: str) -> Path:
    """The output path of an argument. It is checked before anything is made. Raises ArgumentTypeError."""
    path = Path(name)
    known = suffixes(PICTURE_FORMATS + VIDEO_FORMATS)
    if path.suffix.lower() not in known:
        raise argparse.ArgumentTypeError(f"{name}: the name must end in one of {', '.join(known)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{name}: there is no folder {path.parent}")
    return path


def _matching(output: Path | None, request: GenerateRequest) -> Path:
    """The output file of a request. Raises InvalidRequest if its suffix is for a video and a picture is made, or the
    other way round."""
    known = suffixes(VIDEO_FORMATS if request.frames > 1 else PICTURE_FORMATS)
    if output is None:
        return Path(f"out{known[0]}")
    if output.suffix.lower() not in known:
        kind = "a video" if request.frames > 1 else "a picture"
        raise InvalidRequest(f"{output}: the name of {kind} must end in one of {', '.join(known)}")
    return output


def _make(settings: EngineSettings, request: GenerateRequest, references: Sequence[Reference]) -> Picture | Video:
    from lightx2v.pipeline import Pipeline

    with tqdm(total=request.steps, unit="step", desc=f"seed {request.seed}") as bar:

        def report(progress: Progress) -> None:
            bar.total = progress.total
            bar.update(progress.step - bar.n)

        return Pipeline(settings).generate(request, references, report)
