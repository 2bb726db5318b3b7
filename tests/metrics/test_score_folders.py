"""Two folders of label maps: who belongs to whom, and what becomes of the rest."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attunet3d import score_folders
from attunet3d.errors import AttUNet3dError, ConfigError, GeometryError, InputNotFoundError, UnreadableInputError
from attunet3d.metrics.masks import METRICS

CT = 9  # a value that no label map here has: a file of it is taken for a label map by mistake


def write(path: Path, size: int = 2, value: int = 1, shape: tuple[int, int, int] = (6, 6, 6)) -> Path:
    """A label map of 1 mm voxels with a cube of ``size`` voxels per side."""
    label = np.zeros(shape, np.uint8)
    label[1 : 1 + size, 1 : 1 + size, 1 : 1 + size] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label, np.eye(4)), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("p", "r"):
        (tmp_path / name).mkdir()
    return tmp_path / "p", tmp_path / "r"


@pytest.mark.parametrize(
    ("prediction", "reference", "case"),
    [
        ("a_seg.nii.gz", "a.nii.gz", "a"),
        ("a_seg.nii.gz", "a_label.nii.gz", "a"),
        ("a_seg.nii.gz", "a_seg.nii", "a"),
        ("a.nii.gz", "a.nii.gz", "a"),
        ("a_label.nii.gz", "a_label.nii.gz", "a"),
        ("a_label_seg.nii.gz", "a_label.nii.gz", "a"),
        ("case.7_seg.nii.gz", "case.7.nii", "case.7"),
        ("p1/ct_seg.nii.gz", "p1/ct.nii.gz", "p1/ct"),
        ("imagesTs/a_seg.nii.gz", "a.nii.gz", "imagesTs/a"),
        ("a_seg.nii.gz", "labelsTs/a.nii.gz", "a"),
    ],
)
def test_names_that_belong_together(folders: tuple[Path, Path], prediction: str, reference: str, case: str) -> None:
    write(folders[0] / prediction, size=1)
    write(folders[1] / reference, size=2)
    scores = score_folders(*folders)
    assert (scores.failures, scores.unpredicted) == ({}, [])
    (row,) = scores.rows
    assert tuple(row) == ("case", *METRICS)
    assert row["case"] == case
    assert row["recall"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        (["a_seg.nii.gz"], ["b.nii.gz"]),
        (["p1/ct_seg.nii.gz"], ["p2/ct.nii.gz"]),  # of another patient
        (["a_seg.nii.gz"], ["p1/a.nii.gz", "p2/a.nii.gz"]),
        (["p1/a_seg.nii.gz", "p2/a_seg.nii.gz"], ["a.nii.gz"]),
        (["a_seg.nii.gz", "a_seg.nii"], ["a.nii.gz"]),
        (["a_seg.nii.gz"], ["a.nii.gz", "a.nii"]),
        (["a_seg.nii.gz"], ["a_label.nii.gz", "a_label.nii"]),
    ],
)
def test_names_that_do_not_belong_together_or_are_ambiguous(
    folders: tuple[Path, Path], predictions: list[str], references: list[str]
) -> None:
    for folder, names in zip(folders, (predictions, references), strict=True):
        for name in names:
            write(folder / name)
    write(folders[0] / "good_seg.nii.gz")
    write(folders[1] / "good.nii.gz")
    scores = score_folders(*folders)
    assert [row["case"] for row in scores.rows] == ["good"]
    assert scores.failures
    for case, error in scores.failures.items():
        assert isinstance(error, AttUNet3dError)
        assert case in str(error)
        ambiguous = len(predictions) + len(references) > 2
        assert isinstance(error, ConfigError if ambiguous else InputNotFoundError)
        for name in (*predictions, *references) if ambiguous else ():
            assert name in str(error)


def test_same_path_goes_before_same_name(folders: tuple[Path, Path]) -> None:
    """Predictions of several patients in folders, each with a "ct", and one more beside the folders."""
    for name, size in {"ct": 1, "p1/ct": 2, "p2/ct": 3}.items():
        write(folders[0] / f"{name}_seg.nii.gz", size)
        write(folders[1] / f"{name}.nii.gz", size)
    scores = score_folders(*folders)
    assert {row["case"]: row["dice"] for row in scores.rows} == {"ct": 1.0, "p1/ct": 1.0, "p2/ct": 1.0}


def test_the_ct_beside_a_label_map_is_not_taken_for_it(folders: tuple[Path, Path]) -> None:
    for folder, ending in zip(folders, ("_seg", "_label"), strict=True):
        write(folder / "a.nii.gz", 4, CT)
        write(folder / f"a{ending}.nii.gz", 2)
    assert [row["dice"] for row in score_folders(*folders).rows] == [1.0]
    # One folder with everything: prediction, reference and CT.
    write(folders[0] / "a_label.nii.gz", 1)
    (row,) = score_folders(folders[0], folders[0]).rows
    assert row["precision"] == pytest.approx(1 / 8)


def test_other_files_are_left_alone(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a_seg.nii.gz")
    write(folders[1] / "a.nii.gz")
    write(folders[0] / "a_attention_level2.nii.gz")
    write(folders[0] / "a_attention_level2_gate1.nii.gz")
    write(folders[0] / ".tmp-1234-b_seg.nii.gz")
    (folders[0] / "a_seg.json").write_text("{}")
    scores = score_folders(*folders)
    assert ([row["case"] for row in scores.rows], scores.failures) == (["a"], {})


def test_a_case_that_fails_does_not_stop_the_others(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c", "a", "b", "d", "e"):
        write(folders[0] / f"{name}_seg.nii.gz", 1)
        write(folders[1] / f"{name}.nii.gz", 2)
    write(folders[1] / "b.nii.gz", shape=(6, 6, 7))
    (folders[0] / "c_seg.nii.gz").write_bytes(b"noise")
    (folders[1] / "e.nii.gz").unlink()
    write(folders[1] / "later.nii.gz")
    calls: list[tuple[int, int]] = []
    scores = score_folders(*folders, progress=lambda done, total: calls.append((done, total)))
    assert [row["case"] for row in scores.rows] == ["a", "d"]
    assert {case: type(error) for case, error in scores.failures.items()} == {
        "b": GeometryError,
        "c": UnreadableInputError,
        "e": InputNotFoundError,
    }
    assert scores.unpredicted == ["later"]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def broken(*_: object, **__: object) -> dict[str, float]:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("attunet3d.metrics.folders.score", broken)
    assert type(score_folders(*folders).failures["a"]) is RuntimeError


def test_options_reach_every_case(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a_seg.nii.gz", 2, value=5)
    label = np.zeros((6, 6, 6), np.uint8)
    label[1:3, 1:3, 1:2], label[1:3, 1:3, 2:3], label[4:, 4:, 4:] = 1, 2, 3
    nib.save(nib.Nifti1Image(label, np.eye(4)), folders[1] / "a.nii.gz")
    assert score_folders(*folders, prediction_label=5, reference_label=3).rows[0]["reference_ml"] == 0.008
    scores = score_folders(*folders, prediction_label=4, reference_label=3)
    assert scores.rows[0]["prediction_ml"] == 0.0
    assert scores.notes == [f"{folders[0]}/a_seg.nii.gz: an empty mask: no voxel has the value 4; it holds 0, 5"]
    named = {"prediction_label": 5, "reference_label": [1, 2, 3]}
    strict, lax = (score_folders(*folders, **named, tolerance_mm=t).rows[0]["nsd"] for t in (0.0, 100.0))
    assert strict < lax == 1.0
    for wrong in ({"reference_label": []}, {"tolerance_mm": -1.0}):
        with pytest.raises(ConfigError):
            score_folders(*folders, **{**named, **wrong})  # type: ignore[arg-type]


def test_values_that_nothing_explains_fail_by_case(folders: tuple[Path, Path]) -> None:
    for name, value in {"a": 1, "b": 255}.items():
        write(folders[0] / f"{name}_seg.nii.gz")
        write(folders[1] / f"{name}.nii.gz", value=value)
    scores = score_folders(*folders)
    assert [row["case"] for row in scores.rows] == ["a"]
    assert str(scores.failures["b"]).startswith(f"{folders[1]}/b.nii.gz: holds the values 0, 255, not 0, 1")


def test_folders_without_label_maps_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(folders[0] / "a_seg.nii.gz")
    with pytest.raises(InputNotFoundError, match="no label maps"):
        score_folders(*folders)
    with pytest.raises(InputNotFoundError, match="no such folder"):
        score_folders(tmp_path / "none", folders[0])
