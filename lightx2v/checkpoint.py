"""Finds a model's folder on disk by its name, and reads its configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint, InvalidSettings
from lightx2v.models.registry import find_family
from lightx2v.models.spec import ModelSpec
from lightx2v.types import StageName

UNREACHABLE = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
"""The errors of a failed download."""


def resolve(settings: EngineSettings, folders: Sequence[str] = ()) -> Path:
    """The folder of `settings.model`. For a hub id, its configurations and `folders` are downloaded once.

    Raises InvalidCheckpoint if there is no such folder, and no such repository that can be downloaded.
    """
    local = Path(settings.model).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or settings.model.startswith("."):
        raise InvalidCheckpoint(f"{settings.model}: no such folder")
    try:
        return Path(
            snapshot_download(settings.model, allow_patterns=["*.json", *(f"{folder}/*" for folder in folders)])
        )
    except UNREACHABLE as error:
        raise InvalidCheckpoint(
            f"{settings.model}: neither a folder here nor a repository that could be downloaded ({error}); "
            "a gated one needs `hf auth login`"
        ) from error


def resolve_loras(settings: EngineSettings) -> dict[str, Path]:
    """The file of each LoRA in `settings.loras`. Raises InvalidCheckpoint, which names a missing one."""
    return {name: _lora_file(f"lora {name}", path) for name, path in settings.loras.items()}


def _lora_file(label: str, path: str) -> Path:
    place = Path(path).expanduser()
    if not place.exists():
        if place.is_absolute() or path.startswith((".", "~")):
            raise InvalidCheckpoint(f"{label}: {path}: no such file or folder")
        place = _download_lora(label, path)
    if place.is_file():
        return place
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidCheckpoint(f"{label}: {path}: holds {len(files)} safetensors files; name one of them")
    return files[0]


def _download_lora(label: str, path: str) -> Path:
    """The local path of `owner/repository`, or of `owner/repository/file.safetensors`."""
    owner, _, rest = path.partition("/")
    repository, _, file = rest.partition("/")
    patterns = [file] if file else ["*.safetensors", "adapter_config.json"]
    try:
        return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=patterns)) / file
    except UNREACHABLE as error:
        raise InvalidCheckpoint(f"{label}: {path}: neither here nor to be downloaded ({error})") from error


def read_spec(settings: EngineSettings) -> ModelSpec:
    """The defaults and abilities of the model. Reads configurations only. Raises InvalidCheckpoint."""
    checkpoint = resolve(settings)
    return find_family(checkpoint).spec(checkpoint)


def read_stages(settings: EngineSettings) -> tuple[StageName, ...]:
    """The stages of the model, in the order in which a request passes them. Reads configurations only.

    Raises InvalidSettings for LoRAs with a model of two transformers: nothing says which of them a file is for.
    """
    checkpoint = resolve(settings)
    stages = find_family(checkpoint).stages(checkpoint)
    if settings.loras and "refine" in stages:
        raise InvalidSettings(f"loras: {settings.model} has two transformers and takes no LoRAs; omit the setting")
    return stages
