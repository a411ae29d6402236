"""The command line: `python -m lightx2v "a red circle" -o out.png --seed 7`. It needs no server."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lightx2v.checkpoint import read_spec
from lightx2v.config import ENVIRONMENT, EngineSettings, parse_settings
from lightx2v.errors import InvalidRequest, LightError
from lightx2v.limits import Limits
from lightx2v.media.encode import PICTURE_FORMATS, VIDEO_FORMATS, encode, format_of, suffixes
from lightx2v.media.picture import decode_picture
from lightx2v.models.reference_image import make_reference
from lightx2v.models.request import check_request, choose_loras, complete
from lightx2v.models.spec import ModelSpec
from lightx2v.types import ChosenLora, GenerateRequest, Picture, Progress, Reference, Size, Video


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes one picture or video. Returns the exit status: 0, or 1 after a message that says what to do."""
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        spec = read_spec(settings)
        references = [_read(path, spec) for path in options.image]
        request = _request(options, settings, spec, references)
        output = _matching(options.output, request)
        output.write_bytes(encode(_make(settings, request, references), format_of(output.suffix.lower())))
    except (LightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lightx2v", description="Make a picture or a video from a prompt.")
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=_output, help="PNG, JPEG, WEBP or MP4 (out.png or out.mp4)")
    parser.add_argument("-i", "--image", type=Path, action="append", default=[], help="a reference; may be repeated")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--size", help="WIDTHxHEIGHT (the model's, or the first reference's)")
    parser.add_argument("--frames", type=int, help="frames of a video; 1 makes a picture (the model's)")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the model's)")
    parser.add_argument("--strength", type=float, help="image-to-image strength, up to 1 (0.6)")
    parser.add_argument("--seed", type=int, help="the same seed makes the same picture (random)")
    parser.add_argument("--lora", help="the name of one of --loras, or several: name=scale,name=scale (none)")
    parser.add_argument("--lora-scale", type=float, help="the factor of the LoRA (1.0)")
    parser.add_argument("--shift", type=float, help="the shift of the noise schedule (the model's)")
    for field, info in EngineSettings.model_fields.items():
        parser.add_argument(
            f"--{field.replace('_', '-')}",
            help=f"setting, as in a configuration ({info.get_default(call_default_factory=True)})",
        )
    return parser


def _settings(options: argparse.Namespace) -> EngineSettings:
    given = {field: getattr(options, field) for field in EngineSettings.model_fields}
    flags = {field: value for field, value in given.items() if value is not None}
    flags.setdefault("compile", False)  # making one picture takes less time than compiling for it
    return parse_settings(EngineSettings, flags, {f: variable for f, variable in ENVIRONMENT.items() if f not in flags})


def _request(
    options: argparse.Namespace, settings: EngineSettings, spec: ModelSpec, references: Sequence[Reference]
) -> GenerateRequest:
    request = complete(
        options.prompt,
        spec,
        [reference.fitted.size for reference in references],
        size=_size(options.size) if options.size else None,
        steps=options.steps,
        seed=options.seed,
        guidance=options.guidance,
        strength=options.strength,
        frames=options.frames,
        negative_prompt=options.negative_prompt,
        loras=_loras(options.lora, options.lora_scale),
        shift=options.shift,
    )
    check_request(request, spec, Limits(loras=tuple(settings.loras)))
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


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidRequest(f"--size {text}: write WIDTHxHEIGHT in pixels, as in 1024x768", "size")
    return Size(int(width), int(height))


def _read(path: Path, spec: ModelSpec) -> Reference:
    return make_reference(decode_picture(path.read_bytes(), str(path)), spec)


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


if __name__ == "__main__":
    sys.exit(main())
