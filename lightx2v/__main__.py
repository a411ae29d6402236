"""The command line. `python -m lightx2v "a red circle" -o out.png` makes a picture; a first word that names a command
runs that command instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightx2v.commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, or `generate` if the first argument names none. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given and given[0] in COMMANDS else "generate"
    run: Callable[[Sequence[str]], int] = import_module(f"lightx2v.commands.{name}").main
    return run(given)


if __name__ == "__main__":
    sys.exit(main())
