"""Memory that processes share: filled once, found by whoever comes later, gone with its last user, killed or not."""

from __future__ import annotations

import errno
import fcntl
import glob
import mmap
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.errors import OutOfMemory
from lightx2v.weights import shared_memory
from lightx2v.weights.file_lock import locked, private_file
from lightx2v.weights.host_memory import require_host_memory
from lightx2v.weights.shared_memory import share
from tests.unit.holder import Holder, holding

NBYTES = 3 * mmap.PAGESIZE + 1


@pytest.fixture(autouse=True, scope="module")
def lock_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of this module's processes alone."""
    folder = tmp_path_factory.mktemp("lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        yield private_file("search.lock")


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex}"


def write(content: bytes) -> Callable[[mmap.mmap], None]:
    def fill(memory: mmap.mmap) -> None:
        memory[:] = content

    return fill


def never(*_: object) -> None:
    pytest.fail("was done and should not be")


def links(name: str) -> list[Path]:
    """Where processes have it open or mapped."""
    found = []
    for link in map(Path, glob.glob("/proc/[0-9]*/fd/*")):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if name in str(link.readlink()):
                found.append(link)
    return found


def holders(name: str) -> set[int]:
    """The processes that keep it."""
    return {int(link.parts[2]) for link in links(name)}


@given(content=st.binary(min_size=1, max_size=3 * mmap.PAGESIZE))
def test_what_was_filled_is_found(content: bytes) -> None:
    name = f"test-{uuid.uuid4().hex}"
    first = share(name, len(content), write(content))
    second = share(name, len(content), never)
    assert bytes(first) == bytes(second) == content


def test_another_process_has_the_same_pages(name: str) -> None:
    with holding(name, NBYTES) as other:
        other.fill()
        memory = share(name, NBYTES, never)
        assert bytes(memory) == b"\1" * NBYTES
        assert other.ask("set 7") == "7 7"
        assert bytes(memory) == b"\7" * NBYTES


def test_its_size_is_fixed(name: str) -> None:
    memory = share(name, NBYTES, write(bytes(NBYTES)))
    (link,) = links(name)
    for nbytes in (0, NBYTES + 1):
        with pytest.raises(PermissionError):
            os.truncate(link, nbytes)
    assert len(memory) == NBYTES


def test_another_name_is_other_memory(name: str) -> None:
    first = share(f"{name}0", 1, write(b"a"))
    second = share(name, 1, write(b"b"))
    assert (bytes(first), bytes(second)) == (b"a", b"b")


def test_who_comes_second_waits_until_it_is_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def wait(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and name in os.readlink(f"/proc/self/fd/{descriptor}"):
            with pytest.raises(BlockingIOError):
                flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other.tell("go on")
        flock(descriptor, operation)

    with holding(name, NBYTES) as other:
        assert other.hear() == "filling"
        monkeypatch.setattr(fcntl, "flock", wait)
        assert bytes(share(name, NBYTES, never)) == b"\1" * NBYTES


def test_of_many_at_once_one_fills(name: str) -> None:
    """The others are ready without a word of filling, and all of them have what it wrote."""
    with ExitStack() as stack:
        others = [stack.enter_context(holding(name, NBYTES)) for _ in range(3)]
        for other in others:
            other.tell("go on")
        heard = [other.hear() for other in others]
        assert sorted(heard) == ["filling", "ready", "ready"]
        assert others[heard.index("filling")].hear() == "ready"
        assert [other.ask("get") for other in others] == ["1 1"] * 3


def test_looking_and_making_are_one_step(name: str, lock_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same lock: a mark that is left while looking is there while making."""
    find, make = shared_memory._find, shared_memory._make

    def mark_and_find(wanted: str) -> int | None:
        lock_file.write_text("mark")
        with lock_file.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return find(wanted)

    def see_and_make(wanted: str, nbytes: int) -> int:
        assert lock_file.read_text() == "mark"
        return make(wanted, nbytes)

    monkeypatch.setattr(shared_memory, "_find", mark_and_find)
    monkeypatch.setattr(shared_memory, "_make", see_and_make)
    share(name, NBYTES, write(bytes(NBYTES)))


def test_who_waits_takes_over_from_a_killed_filler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = shared_memory._find

    def find_and_kill(wanted: str) -> int | None:
        descriptor = find(wanted)
        assert descriptor is not None
        other.kill()
        return descriptor

    with holding(name, NBYTES) as other:
        assert other.hear() == "filling"
        monkeypatch.setattr(shared_memory, "_find", find_and_kill)
        memory = share(name, NBYTES, write(b"\2" * NBYTES))
    assert bytes(memory) == b"\2" * NBYTES


def test_a_waiting_process_wakes_up_when_the_filler_is_killed(name: str) -> None:
    with holding(name, NBYTES) as first:
        assert first.hear() == "filling"
        with holding(name, NBYTES) as second:
            first.kill()
            second.fill()
            assert second.ask("get") == "1 1"


def test_a_killed_filler_leaves_nothing(name: str) -> None:
    with holding(name, NBYTES) as other:
        assert other.hear() == "filling"
        assert holders(name) == {other.process.pid}
        other.kill()
        assert holders(name) == set()
    assert bytes(share(name, NBYTES, write(b"\2" * NBYTES))) == b"\2" * NBYTES


def test_a_killed_user_is_not_noticed(name: str) -> None:
    """The copy outlives the process that made it, and who comes then attaches."""
    with holding(name, NBYTES) as first, holding(name, NBYTES) as second:
        first.fill()
        assert second.hear() == "ready"
        first.kill()
        assert second.ask("get") == "1 1"
        assert bytes(share(name, NBYTES, never)) == b"\1" * NBYTES


@pytest.mark.parametrize("end", [Holder.leave, Holder.kill])
def test_nothing_stays_behind_the_last_user(name: str, end: Callable[[Holder], None], lock_file: Path) -> None:
    with holding(name, NBYTES) as first, holding(name, NBYTES) as second:
        first.fill()
        assert second.hear() == "ready"
        assert holders(name) == {first.process.pid, second.process.pid}
        end(first)
        assert holders(name) == {second.process.pid}
        end(second)
        assert holders(name) == set()
    assert not lock_file.exists()


def test_it_is_given_up_with_the_mapping(name: str) -> None:
    memory = share(name, NBYTES, write(bytes(NBYTES)))
    assert holders(name) == {os.getpid()}
    del memory
    assert holders(name) == set()


def test_the_lock_file_of_a_killed_process_is_in_nobodys_way(name: str, lock_file: Path) -> None:
    lock_file.touch()
    share(name, NBYTES, write(bytes(NBYTES)))
    assert not lock_file.exists()


def test_a_lock_file_may_be_removed_by_its_holder(tmp_path: Path) -> None:
    path, inside, together = tmp_path / "lock", [], []

    def enter(_: int) -> None:
        with locked(path):
            inside.append(1)
            together.append(len(inside))
            inside.pop()
            path.unlink()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(400)))
    assert together == [1] * 400


def test_a_failed_fill_is_told_and_not_kept(name: str) -> None:
    def fail(memory: mmap.mmap) -> None:
        memory[:1] = b"x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share(name, NBYTES, fail)
    assert bytes(share(name, NBYTES, write(b"\2" * NBYTES))) == b"\2" * NBYTES


def test_another_users_memory_is_not_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = share(name, 1, write(b"a"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(shared_memory, "private_file", tmp_path.joinpath)  # their folder is not ours to make
    ours = share(name, 1, write(b"b"))
    assert (bytes(theirs), bytes(ours)) == (b"a", b"b")


def test_a_descriptor_that_became_another_file_is_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile() as file, monkeypatch.context() as patch:
        link = f"/proc/self/fd/{file.fileno()}"
        patch.setattr(glob, "iglob", lambda _: iter([link]))
        readlink = os.readlink
        patch.setattr(
            os, "readlink", lambda path: f"{shared_memory.PREFIX}{name} (deleted)" if path == link else readlink(path)
        )
        assert shared_memory._find(name) is None


def test_too_little_room_is_said_before_anything_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", never)
    with pytest.raises(OutOfMemory, match=rf"takes {1 << 60} bytes of memory, .* leaves \d+; .* lazy_load"):
        share(name, 1 << 60, never)
    assert holders(name) == set()


def test_attaching_takes_no_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = share(name, 1, write(b"a"))
    monkeypatch.setattr(shared_memory, "require_host_memory", never)
    assert bytes(share(name, 1, never)) == bytes(first)


def test_a_refused_reservation_is_an_out_of_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutOfMemory, match=f"{NBYTES} bytes of host memory for {name}"):
        share(name, NBYTES, never)
    assert holders(name) == set()


V2, V1 = "0::/pod/worker\n", "9:name=systemd:/x\n4:cpu,memory:/pod/worker\n0::/\n"
UNLIMITED = {"memory.max": "max", "memory.current": "900", "memory.stat": "active_file 0\ninactive_file 0\n"}
LIMITED = {"memory.max": "1000", "memory.current": "900", "memory.stat": "anon 500\nactive_file 30\ninactive_file 70\n"}
OLD = {
    "memory.limit_in_bytes": "1000",
    "memory.usage_in_bytes": "900",
    "memory.stat": "active_file 1\ninactive_file 1\ntotal_active_file 30\ntotal_inactive_file 70\n",
}
FULL = {**LIMITED, "memory.current": "1200"}


@pytest.mark.parametrize(
    ("cgroup", "groups", "free", "limit"),
    [
        ("0::/\n", {}, 4096, "MemAvailable"),
        (V2, {"pod/worker": UNLIMITED}, 4096, "MemAvailable"),
        (V2, {"pod/worker": LIMITED}, 200, "pod/worker/memory.max"),
        (V2, {"pod/worker": UNLIMITED, "pod": LIMITED}, 200, "pod/memory.max"),
        (V2, {"": LIMITED}, 200, "cgroup/memory.max"),
        (V2, {"pod": FULL}, 0, "pod/memory.max"),
        (V2, {"neighbour": LIMITED}, 4096, "MemAvailable"),
        (V2, {"..": LIMITED}, 4096, "MemAvailable"),
        (V1, {"memory/pod/worker": OLD}, 200, "worker/memory.limit_in_bytes"),
        (V1, {"memory": OLD}, 200, "memory/memory.limit_in_bytes"),
        (V1, {"cpu/pod/worker": OLD}, 4096, "MemAvailable"),
    ],
)
def test_every_limit_counts(
    tmp_path: Path, cgroup: str, groups: dict[str, dict[str, str]], free: int, limit: str
) -> None:
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\nHugePages_Total: 0\n", "proc/self/cgroup": cgroup}
    files |= {f"sys/fs/cgroup/{group}/{file}": text for group, table in groups.items() for file, text in table.items()}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    require_host_memory(free, tmp_path)
    with pytest.raises(OutOfMemory, match=rf"takes {free + 1} bytes .*{limit}.* leaves {free};"):
        require_host_memory(free + 1, tmp_path)
