"""`python -m lightx2v key NAME`: a new API key, and the entry for the server's file of keys."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence

from lightx2v.commands.options import command_parser
from lightx2v.key_hash import hash_of

BYTES = 32


def main(arguments: Sequence[str]) -> int:
    """Prints the key, which is kept nowhere, and its entry."""
    parser = command_parser("key", "Make an API key for a caller.", "key alice >> keys.yaml")
    parser.add_argument("name", metavar="NAME", help="what the log calls the caller")
    options = parser.parse_args(arguments)
    secret = f"lx-{secrets.token_urlsafe(BYTES)}"
    print(f"give the caller this key: {secret}", file=sys.stderr)
    print(f"- name: {options.name}\n  sha256: {hash_of(secret)}")
    return 0
