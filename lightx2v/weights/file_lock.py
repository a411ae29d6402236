"""Lock files between a user's processes of a node. A file exists only while it is of use. Linux only."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightx2v.errors import InvalidSettings


def private_file(name: str) -> Path:
    """The path of a file in `lightx2v-UID` of the folder for temporary files, which no other user can have created.

    The folder depends on the user alone: XDG_RUNTIME_DIR is set in a login session but not in a service of the same
    user, and their processes have to meet. Raises InvalidSettings if the folder is not private.
    """
    folder = Path(tempfile.gettempdir()) / f"lightx2v-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise InvalidSettings(
            f"{folder}: must be a folder of user {os.geteuid()} with mode 700, is {stat.filemode(status.st_mode)} of "
            f"user {status.st_uid}; remove it, or set TMPDIR to another folder for all processes of this node"
        )
    return folder / name


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Holds the lock of the file at `path`, and gives its descriptor. The holder may remove the file: those that wait
    then open a new one. The kernel releases the lock of a process that died."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                yield descriptor
                return
        finally:
            os.close(descriptor)
