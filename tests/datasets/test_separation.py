"""No case is both trained on and held out, whatever its files are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series

from attunet3d.datasets import separation
from attunet3d.datasets.separation import check_cases
from attunet3d.errors import ConfigError

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def volume(seed: int) -> np.ndarray:
    """Air in the first slices, as in many CTs."""
    hu = np.random.default_rng(seed).integers(-100, 200, (8, 7, 12)).astype(np.int16)
    hu[:, :, :9] = -1000
    return hu


def case(folder: Path, name: str, seed: int = 0) -> dict[str, str]:
    label = folder / f"{name}_label.nii.gz"
    label.touch()
    image = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(volume(seed), AFFINE), image)
    return {"image": str(image), "label": str(label)}


def test_other_cases_and_repeats_pass(tmp_path: Path) -> None:
    one, other, third = (case(tmp_path, name, seed) for seed, name in enumerate("abc"))
    check_cases([one, one, other], {"validation": [third, third], "test": []})


def copies(source: Path, folder: Path) -> dict[str, Path]:
    """The same CT in other files."""
    image = nib.load(source)
    values = np.asarray(image.dataobj)
    found = {name: folder / f"{name}.nii.gz" for name in ("symlink", "hardlink", "copy", "moved", "scaled")}
    found["symlink"].symlink_to(source)
    found["hardlink"].hardlink_to(source)
    shutil.copy(source, found["copy"])
    nib.save(nib.Nifti1Image(values, image.affine + np.diag([1.0, 1, 1, 0])), found["moved"])
    scaled = nib.Nifti1Image(values.astype(np.float32), image.affine)
    scaled.set_data_dtype(np.uint16)  # with a slope and an intercept
    nib.save(scaled, found["scaled"])
    found["unpacked"] = folder / "unpacked.nii"
    nib.save(image, found["unpacked"])
    found["path"] = folder / ".." / folder.name / source.name
    found["itself"] = source
    return found


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "copy", "moved", "scaled", "unpacked", "path", "itself"])
def test_the_same_ct_in_other_files(tmp_path: Path, kind: str) -> None:
    trained, other, held_out = (case(tmp_path, name, seed) for seed, name in enumerate("abc"))
    held_out["image"] = str(copies(Path(trained["image"]), tmp_path)[kind])
    with pytest.raises(ConfigError, match=rf"{held_out['image']}: is under validation and also trained on"):
        check_cases([other, trained], {"validation": [other | {"image": "gone.nii.gz"}, held_out]})
    with pytest.raises(ConfigError, match="is under test and also trained on"):
        check_cases([other, trained], {"validation": [], "test": [held_out]})


def test_a_dicom_series_that_was_copied(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_series(tmp_path / name, volume(0))
    label = str(case(tmp_path, "a", 5)["label"])
    with pytest.raises(ConfigError, match=rf"two: is under validation .*, as {tmp_path}/one"):
        check_cases(
            [{"image": str(tmp_path / "one"), "label": label}],
            {"validation": [{"image": str(tmp_path / "two"), "label": case(tmp_path, "b", 6)["label"]}]},
        )


def test_a_label_of_two_cts_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other, third = (case(tmp_path, name, seed) for seed, name in enumerate("abc"))
    other["label"] = one["label"]
    check_cases([one, one, other], {"validation": [third]})
    assert caplog.messages == [f"{one['label']}: is the label of two CTs, {one['image']} and {other['image']}"]


def test_only_possible_duplicates_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the header of a CT of another shape, and only the first slices of one that differs in these."""
    trained = [case(tmp_path, "a", 0), case(tmp_path, "b", 1)]
    hu = volume(2)
    digest, read = separation._digest, []

    def watched(path: str, slices: int | None) -> bytes:
        read.append(slices)
        return digest(path, slices)

    monkeypatch.setattr(separation, "_digest", watched)
    for name, other, expected in (("c", hu[:, :, :11], []), ("d", hu + np.int16(5), [8, 8, 8])):
        held_out = case(tmp_path, name)
        nib.save(nib.Nifti1Image(other, AFFINE), held_out["image"])
        read.clear()
        check_cases(trained, {"validation": [held_out]})
        assert read == expected
