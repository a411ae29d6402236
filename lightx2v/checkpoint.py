"""Finds a model's folder on disk by its name, and reads its configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lightx2v.config import EngineSettings, LoraSettings
from lightx2v.errors import InvalidCheckpoint, InvalidSettings
from lightx2v.models.configuration import has_part, read_configuration
from lightx2v.models.registry import INDEX, find_family
from lightx2v.models.spec import ModelSpec, Recipe
from lightx2v.types import LoraFile, StageName

UNREACHABLE = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
"""The errors of a failed download."""

SAFE = (".safetensors", ".sft", ".gguf")
"""Names of files with weights end so."""
FILES = (*SAFE, ".ckpt", ".pt", ".pth", ".bin")
"""The same, with those that are not read."""

OPTIONAL = ("transformer_2", "image_encoder")
"""The folders that some models have and others of their family do not."""


def resolve(settings: EngineSettings, folders: Sequence[str] = ()) -> Path:
    """The folder of `settings.model`. For a hub id, its configurations and those of `folders` that no setting replaces
    are downloaded once.

    Raises InvalidCheckpoint if there is no such folder, and no such repository that can be downloaded.
    """
    local = Path(settings.model).expanduser()
    if local.is_dir():
        return local
    if local.is_file() or local.suffix in FILES:
        raise InvalidCheckpoint(
            f"{settings.model}: a file holds parts of a model; name it under `transformer`, `text_encoder` or `vae`, "
            "and under `model` a folder in the diffusers layout, or a hub id, for configurations and the other parts"
        )
    if local.is_absolute() or settings.model.startswith("."):
        raise InvalidCheckpoint(f"{settings.model}: no such folder")
    wanted = [f"{folder}/*" for folder in folders if folder not in settings.parts]
    try:
        return Path(snapshot_download(settings.model, allow_patterns=["*.json", *wanted]))
    except UNREACHABLE as error:
        raise InvalidCheckpoint(
            f"{settings.model}: neither a folder here nor a repository that could be downloaded ({error}); "
            "a gated one needs `hf auth login`"
        ) from error


def resolve_parts(settings: EngineSettings, checkpoint: Path, folders: Sequence[str]) -> list[Path]:
    """Where the weights of each of the model's `folders` lie: where its setting says, or else in `checkpoint`.

    Raises InvalidCheckpoint, which names the setting, if there is nothing there.
    """
    given = settings.parts
    return [_part(folder, given[folder]) if folder in given else checkpoint / folder for folder in folders]


def resolve_loras(settings: EngineSettings, stage: StageName) -> dict[str, LoraFile]:
    """The file of each LoRA in `settings.loras` for the transformer of a stage, or why it cannot be had."""
    return {name: _resolve_lora(f"lora {name}", lora, stage) for name, lora in settings.loras.items()}


def _resolve_lora(label: str, lora: LoraSettings, stage: StageName) -> LoraFile:
    part = lora.low if stage == "refine" else lora.high
    path, scale = (lora.path, lora.scale) if part is None else (part.path, lora.scale * part.scale)
    if path is None:
        return LoraFile(None)
    try:
        return LoraFile(_lora_file(label, path), scale)
    except InvalidCheckpoint as error:
        return LoraFile(None, refusal=str(error))


def _part(label: str, path: str) -> Path:
    place = _find(label, path, ["*.safetensors", "*.safetensors.index.json"])
    if place.is_file() and place.suffix not in SAFE:
        raise InvalidCheckpoint(
            f"{label}: {path}: only {' and '.join(SAFE)} files are read, because others may hold programs; convert it"
        )
    return place


def _lora_file(label: str, path: str) -> Path:
    place = _find(label, path, ["*.safetensors", "adapter_config.json"])
    if place.is_file():
        return place
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidCheckpoint(f"{label}: {path}: holds {len(files)} safetensors files; name one of them")
    return files[0]


def _find(label: str, path: str, patterns: list[str]) -> Path:
    """The file or folder `path`, here or in a hub repository. `patterns`: the files that are wanted of a folder."""
    place = Path(path).expanduser()
    if place.exists():
        return place
    if place.is_absolute() or path.startswith((".", "~")):
        raise InvalidCheckpoint(f"{label}: {path}: no such file or folder")
    place = _download(label, path, patterns)
    if not place.exists():
        raise InvalidCheckpoint(f"{label}: {path}: neither here nor in the hub repository")
    return place


def _download(label: str, path: str, patterns: list[str]) -> Path:
    """The local path of `owner/repository`, or of a file or folder in it. Nothing below a folder is downloaded."""
    owner, _, rest = path.partition("/")
    repository, _, inner = rest.partition("/")
    wanted = [inner] if Path(inner).suffix in FILES else [str(Path(inner, pattern)) for pattern in patterns]
    below = [str(Path(inner, "*/*"))]
    try:
        return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=wanted, ignore_patterns=below)) / inner
    except UNREACHABLE as error:
        raise InvalidCheckpoint(f"{label}: {path}: neither here nor to be downloaded ({error})") from error


def read_spec(settings: EngineSettings) -> ModelSpec:
    """The defaults and abilities of the model and of its LoRAs. Reads configurations only.

    Raises InvalidCheckpoint, and InvalidSettings for a LoRA with a shift that the model's schedule does not take.
    """
    checkpoint = resolve(settings)
    spec = find_family(checkpoint).spec(checkpoint)
    shifted = [name for name, lora in settings.loras.items() if lora.shift is not None]
    if shifted and not spec.takes_shift:
        raise InvalidSettings(f"loras.{shifted[0]}.shift: {settings.model} computes its own; leave it out")
    recipes = {name: Recipe(lora.steps, lora.guidance, lora.shift) for name, lora in settings.loras.items()}
    return replace(spec, recipes=recipes)


def read_stages(settings: EngineSettings) -> tuple[StageName, ...]:
    """The stages of the model, in the order in which a request passes them. Reads configurations only.

    Raises InvalidSettings for a LoRA that does not say which of two transformers its file is for, or that has files
    for two where there is one. Also for the weights of a part that the model does not have.
    """
    checkpoint = resolve(settings)
    stages = find_family(checkpoint).stages(checkpoint)
    index = read_configuration(checkpoint, INDEX)
    for part in OPTIONAL:
        if part in settings.parts and not has_part(index, part):
            raise InvalidSettings(f"{part}: {settings.model} has no such part; omit the setting")
    for name, lora in settings.loras.items():
        if lora.path is not None and "refine" in stages:
            raise InvalidSettings(
                f"loras.{name}: {settings.model} has two transformers; name a file for each, or for one: "
                f"{{high: {lora.path}, low: ...}}"
            )
        if lora.path is None and "refine" not in stages:
            raise InvalidSettings(f"loras.{name}: {settings.model} has one transformer; name one path")
    return stages
