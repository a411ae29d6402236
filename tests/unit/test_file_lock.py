"""Lock files lie where no other user can have created them first."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from lightx2v.errors import InvalidSettings
from lightx2v.weights.emulated_card import EmulatedCard
from lightx2v.weights.file_lock import private_file
from lightx2v.weights.shared_memory import share


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's, not there yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"lightx2v-{os.geteuid()}"


def use_locks() -> None:
    share("test-lock", 1, lambda memory: None)
    EmulatedCard("test-lock", 1).take(0)


def test_nothing_else_is_created_and_others_cannot_look_in(folder: Path) -> None:
    use_locks()
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_file("a.lock") == private_file("a.lock") == folder / "a.lock"


def test_the_environment_of_a_session_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.parent / "runtime"))
    assert private_file("a.lock").parent == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(folder: Path) -> None:
    folder.mkdir(0o700)
    os.chown(folder, 1234, 1234)
    with pytest.raises(InvalidSettings, match=f"^{folder}: .* of user 1234; remove it, or set TMPDIR"):
        use_locks()


def test_a_folder_that_others_can_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(InvalidSettings, match="drwxrwxrwx"):
        use_locks()


def test_a_link_to_a_private_folder_is_refused(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(0o700)
    folder.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(InvalidSettings, match="lrwxrwxrwx"):
        use_locks()


def test_a_file_in_its_place_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(InvalidSettings, match="must be a folder"):
        use_locks()
