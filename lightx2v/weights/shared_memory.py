"""Memory that a user's processes on a node share: the first makes it, others find it, the last one's end frees it.

The memory has no path (a memfd), so nothing can stay behind: the kernel frees it with its last mapping, however that
process ended. It takes no room in /dev/shm either, which Docker makes 64 MB and Ray's object store counts on. Processes
find it through the descriptors in /proc of those that have it, which the kernel opens to processes of the same user
only. Another container does not see it and makes its own.

What can go wrong between processes, and why it does not:
- Two look for it at once and neither finds it: looking and making are one step, under a lock file.
- Its maker dies before it is full: filling needs the memory's own lock and ends in a seal. The lock goes with its
  holder; whoever waited for it sees no seal, and fills the same memory from the start. With nobody waiting it is freed.
- The process that it is found at dies meanwhile: the open either fails, and the search goes on, or holds the memory.
- The descriptor found is closed and its number used again before it is opened: what was opened is looked at again.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lightx2v.errors import OutOfMemory
from lightx2v.weights.file_lock import locked, private_file
from lightx2v.weights.host_memory import require_host_memory

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Seals that are set when the memory is full. Its size is then fixed, so no mapping can lose a page."""

NOT_OURS = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Errors of a descriptor that is closed by now, of a process that has ended, and of another user's process."""

PREFIX = "/memfd:lightx2v-"
"""How links in /proc to the memory of this module begin."""

log = logging.getLogger(__name__)


def share(name: str, nbytes: int, fill: Callable[[mmap.mmap], None]) -> mmap.mmap:
    """The shared memory called lightx2v-`name`, of `nbytes` bytes. `fill` writes it if no process has; after that it is
    never written.

    Waits while another process fills it. Others find it here until the mapping is no longer referenced. Raises
    OutOfMemory if there is no room to make it, and what `fill` raises.
    """
    with _search():
        descriptor = _find(name)
        if descriptor is None:
            descriptor = _make(name, nbytes)
    try:
        memory = mmap.mmap(descriptor, nbytes)  # with a descriptor of its own
        _complete(descriptor, memory, name, fill)
    finally:
        os.close(descriptor)
    return memory


def used_by(pid: int) -> dict[str, int]:
    """All memory that a process of this node shares: a descriptor, which keeps it from being freed, by name."""
    found: dict[str, int] = {}
    for link in glob.iglob(f"/proc/{pid}/fd/*"):
        with suppress(*NOT_OURS):
            name = os.readlink(link).removesuffix(" (deleted)").removeprefix(PREFIX)
            if _is(link, name) and name not in found and (descriptor := _open(link, name)) is not None:
                found[name] = descriptor
    return found


def _complete(descriptor: int, memory: mmap.mmap, name: str, fill: Callable[[mmap.mmap], None]) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL:
            log.info("%s: attached, %d bytes", name, len(memory))
            return
        fill(memory)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        log.info("%s: loaded, %d bytes", name, len(memory))
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def _search() -> Iterator[None]:
    """A lock that one process of this user holds while it looks for memory or reserves it, never while it fills it."""
    path = private_file("search.lock")
    with locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _find(name: str) -> int | None:
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with suppress(*NOT_OURS):
            if _is(link, name) and (descriptor := _open(link, name)) is not None:
                return descriptor
    return None


def _open(link: str, name: str) -> int | None:
    descriptor = os.open(link, os.O_RDWR | os.O_CLOEXEC)
    if _is(f"/proc/self/fd/{descriptor}", name) and os.fstat(descriptor).st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    return None


def _is(link: str, name: str) -> bool:
    return os.readlink(link) == f"{PREFIX}{name} (deleted)"


def _make(name: str, nbytes: int) -> int:
    """A descriptor of new memory. All of it is reserved at once, because missing memory would be a SIGBUS later."""
    require_host_memory(nbytes)
    descriptor = os.memfd_create(f"lightx2v-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(descriptor, 0o600)
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOMEM, errno.ENOSPC):
            raise OutOfMemory(f"{nbytes} bytes of host memory for {name}: {error}") from error
        raise
    return descriptor
