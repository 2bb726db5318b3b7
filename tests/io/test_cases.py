"""Finding CTs in a folder and naming their masks."""

from __future__ import annotations

from pathlib import Path

import pytest

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io import MaskLayout, case_name, find_cases
from attunet3d.io.cases import name_collisions, quote_collision


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


def test_two_cts_with_the_same_name_are_refused(tmp_path: Path) -> None:
    for name in ("ct.nii.gz", "ct.mha"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match='several CTs named "ct"; '):
        find_cases(tmp_path)


@pytest.mark.parametrize(("one", "other"), [("CT", "ct"), ("caf\u00e9", "cafe\u0301"), ("\u00df", "SS")])
def test_names_that_collide_on_some_file_systems(tmp_path: Path, one: str, other: str) -> None:
    assert name_collisions(["third", one, other, one, "fourth"]) == [[1, 2, 3]]
    for name in (one, other):
        (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(ConfigError, match=r'several CTs named ".*" and ".*", which differ only in capitals'):
        find_cases(tmp_path)


def test_colliding_names_are_quoted_on_one_line() -> None:
    assert quote_collision(["ct", "ct"]) == '"ct"'
    assert quote_collision(["a\n", "A\n", "a\n"]).startswith(r'"a\n" and "A\n", which differ only in capitals')


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "3fa9.nii.gz").touch()
    (tmp_path / "patient.nii.gz").symlink_to(tmp_path / "3fa9.nii.gz")
    assert case_name(tmp_path / "patient.nii.gz") == "patient"


def test_masks_do_not_share_a_file(tmp_path: Path) -> None:
    """Neither series in folders named by UIDs, nor CTs of the same name in different folders."""
    layout = MaskLayout(tmp_path / "out", tmp_path / "data")
    names = {layout.filename(subject=tmp_path / "data" / f"1.2.3.{i}") for i in range(3)}
    assert names == {str(tmp_path / "out" / f"1.2.3.{i}_seg.nii.gz") for i in range(3)}
    names = {layout.filename(subject=tmp_path / "data" / case / "ct.nii.gz") for case in "ab"}
    assert names == {str(tmp_path / "out" / case / "ct_seg.nii.gz") for case in "ab"}
    assert layout.filename(subject="/elsewhere/ct.nii.gz") == str(tmp_path / "out" / "ct_seg.nii.gz")
