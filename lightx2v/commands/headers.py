"""A model's headers and configurations without its weights: of a folder as they are there, of a hub repository by a few
small requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the one that the client uses

from lightx2v.checkpoint import UNREACHABLE
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.registry import FOLDERS

WEIGHTS = ".safetensors"
SMALL = ["*.json", *(f"{folder}/*" for folder in FOLDERS["encode"])]
"""The files that are taken as they are, unless they hold weights."""
LARGE = [f"*{ending}" for ending in (WEIGHTS, ".bin", ".pth", ".pt", ".gguf", ".msgpack", ".h5", ".onnx")]

UNREADABLE = (*UNREACHABLE, NotASafetensorsRepoError, SafetensorsParsingError, httpx.HTTPError)


@contextmanager
def with_headers(settings: EngineSettings) -> Iterator[EngineSettings]:
    """The settings, their model a folder in which every header and configuration can be read, and no weight has to be.
    For a hub id it is a temporary one. Raises InvalidCheckpoint if there is no such repository."""
    name = settings.model
    local = Path(name).expanduser()
    if local.exists() or local.is_absolute() or name.startswith("."):
        yield settings
        return
    with TemporaryDirectory(prefix="lightx2v-headers-") as folder:
        download_headers(name, Path(folder), HfApi())
        yield settings.model_copy(update={"model": folder})


def download_headers(repository: str, folder: Path, api: HfApi) -> None:
    """Writes the repository into `folder`: small files as they are, and weight files as their headers, each in a sparse
    file of the true length. Raises InvalidCheckpoint."""
    used = {name for folders in FOLDERS.values() for name in folders}
    try:
        api.snapshot_download(repository, allow_patterns=SMALL, ignore_patterns=LARGE, local_dir=folder)
        for name in map(PurePosixPath, api.list_repo_files(repository)):
            if name.suffix == WEIGHTS and name.parts[0] in used:
                write_header(folder / name, _header(api, repository, str(name)))
    except UNREADABLE as error:
        raise InvalidCheckpoint(
            f"{repository}: neither a folder here nor a repository whose headers could be read ({error}); a gated one "
            "needs `hf auth login`"
        ) from error


def write_header(file: Path, header: Mapping[str, Any]) -> None:
    """Writes a safetensors file with this header. Its tensors are holes, which take no space."""
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        stream.truncate(stream.tell() + max(ends, default=0))


def _header(api: HfApi, repository: str, name: str) -> dict[str, Any]:
    """The header of one weight file, as it is stored."""
    header = api.parse_safetensors_file_metadata(repository, name)
    tensors = {
        tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for tensor, info in header.tensors.items()
    }
    return {"__metadata__": header.metadata, **tensors} if header.metadata else tensors
