"""One run at a time in a folder, if its storage has locks."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attunet3d.errors import OutputError
from attunet3d.io import locking
from attunet3d.io.locking import hold_folder, locked, release_folder


@pytest.fixture(autouse=True, params=["here", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As it is here, and as on Windows: without ``fcntl`` and O_NOFOLLOW, ``msvcrt`` over this system's locks."""
    if request.param == "windows":
        fcntl = pytest.importorskip("fcntl")

        def lock(descriptor: int, mode: int, size: int) -> None:
            assert os.lseek(descriptor, 0, os.SEEK_CUR) > 10_000, "others can still read what the file says"
            assert (mode, size) == (2, 1)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PermissionError(errno.EACCES, "Permission denied") from None

        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=lock, LK_NBLCK=2))  # type: ignore[arg-type]
        monkeypatch.delattr(os, "O_NOFOLLOW")
    return str(request.param)


def test_a_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OutputError, match=r"cannot be locked \(this system has no such locks\)"), locked(tmp_path):
        pass


def test_a_lock_that_fails_is_not_taken_for_another_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=fail, LK_NBLCK=2))  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"cannot be locked \(Invalid argument\)"), locked(tmp_path):
        pass


def test_a_held_folder_is_locked_until_it_is_released(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hold_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    hold_folder(tmp_path / "link")
    with pytest.raises(OutputError, match=f"another run writes here \\(process {os.getpid()} on "), locked(folder):
        pass
    release_folder(tmp_path / "link")
    release_folder(folder)
    with locked(folder), pytest.raises(OutputError, match="another run writes here"):
        hold_folder(folder)
    hold_folder(folder)
    release_folder(folder)


def test_storage_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locking, "_lock", refuse)
    with pytest.raises(OutputError, match=r"cannot be locked \(No locks available\)"), locked(tmp_path):
        pass
    hold_folder(tmp_path)
    release_folder(tmp_path)
    assert "see that no other run writes there" in caplog.text


def test_the_description_of_another_run_is_printable(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / ".run.lock").write_bytes(b"\xff\x1b[2J\nrun" + b"x" * 10_000)
        with (
            pytest.raises(OutputError, match=r"another run writes here \(\W\\x1b\[2J runx{200,300}\); wait"),
            locked(tmp_path),
        ):
            pass


def test_a_linked_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"\.run\.lock: cannot be written"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "text"
