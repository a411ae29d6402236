"""The hash by which an API key is known. The key itself is kept nowhere."""

from __future__ import annotations

import hashlib


def hash_of(secret: str) -> str:
    """SHA-256 in hexadecimal digits. A key is random and long, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()
