"""`python -m lightx2v key NAME`: a new API key, and the entry for the server's file of keys."""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Sequence

from lightx2v.commands.options import command_parser

BYTES = 32


def main(arguments: Sequence[str]) -> int:
    """Prints the key, which is kept nowhere, and its entry."""
    parser = command_parser("key", "Make an API key for a caller.", "key alice >> keys.yaml")
    parser.add_argument("name", metavar="NAME", help="what the log calls the caller")
    options = parser.parse_args(arguments)
    secret = f"lx-{secrets.token_urlsafe(BYTES)}"
    print(f"give the caller this key: {secret}", file=sys.stderr)
    print(f"- name: {options.name}\n  sha256: {hashlib.sha256(secret.encode()).hexdigest()}")
    return 0
