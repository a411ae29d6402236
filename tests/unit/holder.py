"""A process that takes a share of some memory and then does as it is told; `holding` starts one.

    python -m tests.unit.holder NAME NBYTES

It says `looking`; `filling` in the middle of filling, and goes on when it hears a line; `ready` when it has the memory;
then answers `get` with its first and last byte, and `set N` after writing N to every byte. It ends with its input.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightx2v.weights.shared_memory import share

ROOT = Path(__file__).parents[2]


class Holder:
    """The other end of such a process."""

    def __init__(self, name: str, nbytes: int) -> None:
        command = [sys.executable, "-m", "tests.unit.holder", name, str(nbytes)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.hear() == "looking"

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")

    def hear(self) -> str:
        """Its next line; empty when it is gone."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.hear()

    def fill(self) -> None:
        """Lets one that has to fill do so."""
        assert self.hear() == "filling"
        assert self.ask("go on") == "ready"

    def leave(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def holding(name: str, nbytes: int) -> Iterator[Holder]:
    holder = Holder(name, nbytes)
    try:
        yield holder
    finally:
        holder.kill()


def say(line: str) -> None:
    print(line, flush=True)


def fill(memory: mmap.mmap) -> None:
    half = len(memory) // 2
    memory[:half] = b"\1" * half
    say("filling")
    sys.stdin.readline()
    memory[half:] = b"\1" * (len(memory) - half)


def main(name: str, nbytes: int) -> None:
    say("looking")
    memory = share(name, nbytes, fill)
    say("ready")
    for line in sys.stdin:
        if line.startswith("set"):
            memory[:] = bytes([int(line.split()[1])]) * nbytes
        say(f"{memory[0]} {memory[-1]}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
