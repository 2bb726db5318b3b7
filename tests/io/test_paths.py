"""Folders with links, pipes, devices, and subfolders that cannot be listed."""

import os
from pathlib import Path

import numpy as np
import pytest
from dicom_files import phantom, write_series

from attunet3d.errors import InputNotFoundError, UnreadableInputError
from attunet3d.io import read_ct
from attunet3d.io.paths import files_below


def test_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/z", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert files_below(tmp_path) == ([tmp_path / name for name in ("c", "a/z", "b/1", "b/2")], 0)


def test_pipes_and_devices_are_left_out_and_so_are_links_to_them(tmp_path: Path) -> None:
    """Opening a pipe waits for a writer forever; /dev/zero never ends."""
    hu = phantom()
    write_series(tmp_path / "scan", hu)
    os.mkfifo(tmp_path / "scan" / "pipe")
    (tmp_path / "scan" / "link.dcm").symlink_to("pipe")
    (tmp_path / "scan" / "zero.dcm").symlink_to("/dev/zero")
    np.testing.assert_array_equal(read_ct(tmp_path / "scan")[0], hu)


def test_links_to_files_are_read_and_broken_links_reported(tmp_path: Path) -> None:
    hu = phantom()
    paths = write_series(tmp_path / "store", hu)
    (tmp_path / "scan").mkdir()
    for path in paths:
        (tmp_path / "scan" / path.name).symlink_to(path)
    np.testing.assert_array_equal(read_ct(tmp_path / "scan")[0], hu)
    paths[3].unlink()
    with pytest.raises(UnreadableInputError, match=f"{paths[3].name}: a broken link"):
        read_ct(tmp_path / "scan")


def test_links_to_folders_are_not_followed_but_told_of(tmp_path: Path) -> None:
    hu = phantom()
    write_series(tmp_path / "store", hu)
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "elsewhere").symlink_to(tmp_path / "store")
    (tmp_path / "scan" / "loop").symlink_to(tmp_path / "scan")
    with pytest.raises(InputNotFoundError, match=r"\(0 other files, 2 links to folders, which are not followed\)"):
        read_ct(tmp_path / "scan")
    (tmp_path / "whole").symlink_to(tmp_path / "store")
    np.testing.assert_array_equal(read_ct(tmp_path / "whole")[0], hu, "a link that is given itself is followed")


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold a part of the scan: without it the series would pass for complete."""
    hu = phantom()
    write_series(tmp_path, hu)
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied", str(locked))
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UnreadableInputError, match=r"locked: the folder cannot be listed \(Permission denied\)"):
        read_ct(tmp_path)
