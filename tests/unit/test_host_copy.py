"""The host copy of a component: one for all who read the same files in the same way, another one for anybody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.device import CpuDevice
from lightx2v.weights.host_copy import HostCopy
from lightx2v.weights.index import read_index
from lightx2v.weights.layout import Layout, make_layout, view
from tests.unit.toy import Toy, load_toy, write_toy


def layout(root: Path, blocks: int = 4, dtype: torch.dtype = torch.float32) -> Layout:
    """`blocks` of the toy's four blocks are units of their own."""
    toy = Toy(dtype=dtype)
    return make_layout(toy, read_index(root / "toy"), toy.blocks[:blocks])


def state(copy: HostCopy, of: Layout) -> dict[str, torch.Tensor]:
    states = {entry.name: view(copy.unit(unit), entry) for unit in of.units for entry in unit.entries}
    return states | {entry.name: copy.state(entry) for entry in of.host.entries}


def kept() -> set[str]:
    """The copies that this process has."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            found.add(str(link.readlink()))
    return {target for target in found if target.startswith("/memfd:lightx2v-")}


def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError("no more reads")

    monkeypatch.setattr(os, "preadv", refuse)


def test_the_second_attaches_without_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_toy(tmp_path / "toy")
    first = HostCopy(layout(tmp_path), pinned=False)
    no_reads(monkeypatch)
    second = HostCopy(layout(tmp_path), pinned=False)
    for copy in (first, second):
        read = state(copy, layout(tmp_path))
        assert read.keys() == written.keys()
        assert all(torch.equal(read[name], value) for name, value in written.items())


def test_it_is_for_the_driver_to_register(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    of = layout(tmp_path)
    copy = HostCopy(of, pinned=False)
    addresses = [copy.unit(unit).data_ptr() for unit in of.units]
    assert addresses[0] % os.sysconf("SC_PAGE_SIZE") == 0
    assert [address - addresses[0] for address in addresses] == [unit.offset for unit in of.units]


class Driver:
    """Of no card: it only refuses, as the real one does, an address that it has."""

    def __init__(self) -> None:
        self.registered: set[int] = set()

    def cudaHostRegister(self, address: int, _size: int, _flags: int) -> int:
        known = address in self.registered
        self.registered.add(address)
        return 712 if known else 0

    def cudaHostUnregister(self, address: int) -> int:
        self.registered.remove(address)
        return 0


@pytest.mark.parametrize("closed", [False, True])
def test_the_driver_is_told_once_that_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """Also when nobody closed it, because what it was for has failed."""
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    write_toy(tmp_path / "toy")
    copies = [HostCopy(layout(tmp_path), pinned=True) for _ in range(2)]
    assert len(driver.registered) == 2
    if closed:
        copies[0].close()
        assert len(driver.registered) == 1
    copies.clear()
    assert not driver.registered


@pytest.mark.parametrize("other", [{"blocks": 2}, {"dtype": torch.bfloat16}])
def test_another_layout_is_another_copy(tmp_path: Path, other: dict[str, Any]) -> None:
    write_toy(tmp_path / "toy")
    before = kept()
    copies = [HostCopy(layout(tmp_path, **values), pinned=False) for values in ({}, other, {}, other)]
    assert len(kept() - before) == 2
    assert len(copies) == 4


def overwrite(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, file.with_suffix(".new"))
    file.write_bytes(file.with_suffix(".new").read_bytes())


def replace(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("change", [overwrite, replace])
def test_a_changed_file_is_another_copy(
    tmp_path: Path, change: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    """Also if its size and its time of modification are the same as before."""
    written = write_toy(tmp_path / "toy")
    before = HostCopy(layout(tmp_path), pinned=False)
    (file,) = (tmp_path / "toy").glob("*.safetensors")
    status = file.stat()
    stored = {f"model.{name}": value + 1 for name, value in written.items()} | {"lm_head.weight": torch.zeros(3)}
    change(file, stored)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = HostCopy(layout(tmp_path), pinned=False)
    for copy, added in ((before, 0), (after, 1)):
        read = state(copy, layout(tmp_path))
        assert all(torch.equal(read[name], value + added) for name, value in written.items())


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    of = layout(tmp_path)
    (file,) = (tmp_path / "toy").glob("*.safetensors")
    file.unlink()
    with pytest.raises(InvalidCheckpoint, match=f"{file}: cannot be read"):
        HostCopy(of, pinned=False)


def test_a_closed_stage_keeps_no_host_memory(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    before = kept()
    toy, residence = load_toy(tmp_path, CpuDevice())
    residence.place(residence.reachable)
    assert len(kept() - before) == 1
    residence.close()
    assert kept() - before == set()
    assert {value.device.type for value in toy.module.state_dict().values()} == {"meta"}
