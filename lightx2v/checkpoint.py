"""From the name of a model to its folder on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint
from lightx2v.models.registry import Recipe, find_family

PARTS = ("text_encoder", "tokenizer", "transformer", "vae")
"""The folders with more than configurations in them. A copy of the transformer at the root, as some repositories have,
is not read."""


def resolve(settings: EngineSettings, parts: Sequence[str] = PARTS) -> Path:
    """The folder of `settings.model`; if that is a hub id, its configurations and `parts` are downloaded once.

    Raises InvalidCheckpoint if there is neither such a folder nor such a repository within reach.
    """
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or settings.model.startswith("."):
        raise InvalidCheckpoint(f"{settings.model}: no such folder")
    try:
        return Path(snapshot_download(settings.model, allow_patterns=["*.json", *(f"{part}/*" for part in parts)]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidCheckpoint(
            f"{settings.model}: neither a folder here nor a repository that could be downloaded ({error}); "
            "a gated one needs `hf auth login`"
        ) from error


def read_recipe(settings: EngineSettings) -> Recipe:
    """What a request to the model looks like when it says nothing. Reads configurations only."""
    checkpoint = resolve(settings, ())
    return find_family(checkpoint).recipe(checkpoint)
