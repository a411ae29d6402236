"""API keys: who may ask, and how much, from a file that may change while the server runs."""

from __future__ import annotations

import hmac
import logging
from os import stat_result
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, field_validator

from lightx2v.config import Settings, parse_settings
from lightx2v.errors import InvalidSettings
from lightx2v.key_hash import hash_of

SCOPE_KEY = "lightx2v.key"
"""Where the ASGI scope of a request has the entry of its key."""
HINT = "`python -m lightx2v key NAME` makes a key, and prints the entry for this file"

log = logging.getLogger(__name__)


class Key(Settings):
    """One caller's key, by its hash, and the caller's limits. The key itself is kept nowhere."""

    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    """What the log calls the caller."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    requests_per_minute: int | None = Field(default=None, ge=1)
    """The most requests for work within any 60 s."""

    max_concurrent: int | None = Field(default=None, ge=1)
    """The most requests for work that may be open at once."""

    max_priority: int = Field(default=10, ge=-10, le=10)
    """The highest `priority` that the caller may ask for, within that of the server."""


class KeyList(Settings):
    """All keys of a file."""

    keys: tuple[Key, ...]

    @field_validator("keys")
    @classmethod
    def _differ(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in keys]
            for twice in {value for value in values if values.count(value) > 1}:
                raise ValueError(f"two have the {field} {twice!r}")
        return keys


class KeyFile:
    """The keys of a file, which is read again after it has changed: an entry that is taken out is refused from then on.

    A change that cannot be read is logged as an error, and the keys from before it stay valid. Raises InvalidSettings
    if the file cannot be read at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _state(path)  # before the content, so that a change between the two is seen
        self._keys = _read(path)

    def find(self, secret: str) -> Key | None:
        """The entry of a key; None if there is none."""
        self._refresh()
        digest = hash_of(secret)
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def _refresh(self) -> None:
        if (state := _state(self._path)) == self._seen:
            return
        self._seen = state
        try:
            self._keys = _read(self._path)
        except InvalidSettings as error:
            log.error("the keys from before stay valid: %s", error)
        else:
            log.info("%s: %d keys", self._path, len(self._keys))


def _read(path: Path) -> tuple[Key, ...]:
    """Raises InvalidSettings."""
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidSettings(f"server.keys_file: {error}; {HINT}") from error
    if not isinstance(entries, list):
        raise InvalidSettings(f"server.keys_file: {path} is no list of keys; {HINT}")
    return parse_settings(KeyList, {"keys": entries}, {}).keys


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file; None if it is not there."""
    try:
        found: stat_result = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
