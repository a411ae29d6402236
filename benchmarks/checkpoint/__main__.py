"""Writes a checkpoint of random weights in the diffusers layout, of a published size, as fast as the disk takes it.

    python -m benchmarks.checkpoint FOLDER --model klein-9b
    python -m benchmarks.checkpoint FOLDER --model klein-9b --form q4_k

Bytes: klein-4b 16 GB, klein-9b 35 GB, z-image-turbo 21 GB, qwen-image 55 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.checkpoint import flux2, qwen_image, z_image
from benchmarks.checkpoint.forms import FORMS, write_form

WRITERS: dict[str, Callable[[Path], None]] = {
    **{name: partial(flux2.write_checkpoint, shape=shape) for name, shape in flux2.SHAPES.items()},
    "qwen-image": partial(qwen_image.write_checkpoint, shape=qwen_image.SHAPE),
    "z-image-turbo": partial(z_image.write_checkpoint, shape=z_image.TURBO),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a checkpoint of random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(WRITERS), default="klein-9b")
    parser.add_argument("--form", choices=["bf16", *FORMS], default="bf16", help="of text encoder and transformer")
    arguments = parser.parse_args()
    WRITERS[arguments.model](arguments.folder)
    if arguments.form != "bf16":
        write_form(arguments.folder, arguments.form)


if __name__ == "__main__":
    main()
