"""Memory of this host: how much there is, and how much more of it the machine and our cgroups let us take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lightx2v.errors import OutOfMemory

LIMITS = (
    ("memory.max", "memory.current", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""The files of a cgroup's limit and use, and the prefix in its `memory.stat` of counts that include the cgroups below
it: version 2, version 1."""

CACHE = ("active_file", "inactive_file")
"""Counts of pages that were read from disk. A cgroup counts them as used, but the kernel gives them back when memory is
wanted. Shared memory is not among them."""


def total_host_memory() -> int:
    """Bytes of memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_host_memory(nbytes: int, root: Path = Path("/")) -> None:
    """Raises OutOfMemory if fewer than `nbytes` bytes can be taken: the kernel would kill the process without a word.

    `root`: the folder of `/proc` and `/sys`.
    """
    free, limit = min(_limits(root))
    if nbytes > free:
        raise OutOfMemory(
            f"the host copy of the weights takes {nbytes} bytes of memory, {limit} leaves {free}; give this node more, "
            "or set lazy_load: true with cpu_offload: true, which keeps no host copy"
        )


def _limits(root: Path) -> Iterator[tuple[int, str]]:
    meminfo = root / "proc/meminfo"
    yield _table(meminfo)["MemAvailable:"] * 1024, f"MemAvailable of {meminfo}"
    for group in _groups(root):
        for limit, used, prefix in LIMITS:
            file = group / limit
            if file.exists() and (most := file.read_text().strip()) != "max":
                stat = _table(group / "memory.stat")
                cache = sum(stat[f"{prefix}{kind}"] for kind in CACHE)
                yield max(0, int(most) - int((group / used).read_text()) + cache), str(file)


def _groups(root: Path) -> Iterator[Path]:
    """The cgroups of this process that may limit memory, and their parents. In a container they are mounted without
    the path that `/proc` names, so a folder that does not exist is no error."""
    mount = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = mount / "memory" if controllers else mount
        group = top / path.lstrip("/")
        yield from (place for place in (group, *group.parents) if place.is_relative_to(top))


def _table(file: Path) -> dict[str, int]:
    """`key value` lines by key."""
    return {key: int(value) for key, value, *_ in map(str.split, file.read_text().splitlines())}
