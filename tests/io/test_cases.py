"""Finding CTs in a folder and naming their masks."""

from __future__ import annotations

from pathlib import Path

import pytest

from attunet3d.errors import InputNotFoundError
from attunet3d.io import MaskLayout, case_name, find_cases


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/case_7.nii.gz", "case_7"),
        ("case.7.NII.GZ", "case.7"),
        ("case.mha", "case"),
        ("1.2.840.113", "1.2.840.113"),
        ("folder/", "folder"),
        (".nii", ".nii"),
    ],
)
def test_case_name(path: str, name: str) -> None:
    assert case_name(path) == name


def test_find_cases(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "notes.txt", ".hidden.nii"):
        (tmp_path / name).touch()
    (tmp_path / "series").mkdir()
    assert find_cases(tmp_path) == [{"image": str(tmp_path / name)} for name in ("a.mha", "b.nii.gz", "series")]
    (tmp_path / "series" / "0001").touch()
    assert find_cases(tmp_path / "series") == [{"image": str(tmp_path / "series")}]
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "nowhere"):
        with pytest.raises(InputNotFoundError, match=missing):
            find_cases(tmp_path / missing)


def test_series_named_by_uids_do_not_share_a_file(tmp_path: Path) -> None:
    layout = MaskLayout(tmp_path / "out")
    names = {layout.filename(subject=f"cts/1.2.3.{i}") for i in range(3)}
    assert names == {str(tmp_path / "out" / f"1.2.3.{i}_seg.nii.gz") for i in range(3)}
