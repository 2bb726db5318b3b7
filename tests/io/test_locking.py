"""One run at a time in a folder, if its storage has locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from attunet3d.errors import OutputError
from attunet3d.io import locking
from attunet3d.io.locking import hold_folder, locked, release_folder


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


@pytest.mark.skipif(os.name == "nt", reason="Windows opens links")
def test_a_linked_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"\.run\.lock: cannot be written"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "text"
