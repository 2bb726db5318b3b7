"""Segmentation sessions: geometry of what comes out, the record, equality of the ways to run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SHARED_DATA, TINY, needs_data
from dicom_files import write_series

from attunet3d import Segmenter, score, segment
from attunet3d.errors import AttUNet3dError, CheckpointError, ConfigError, InputNotFoundError, OutputError


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **TINY)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique"])
def test_mask_has_the_ct_shape_and_affine(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, orientation: str
) -> None:
    ct = write_phantom(orientation)
    result = session.segment(ct, tmp_path)
    assert result.path == tmp_path / f"phantom_{orientation}_0_seg.nii.gz"
    source, mask = nib.load(ct), nib.load(result.path)
    assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, source.affine)
    np.testing.assert_array_equal(mask.get_sform(), source.get_sform())
    np.testing.assert_array_equal(np.asarray(mask.dataobj), result.mask)
    assert set(np.unique(result.mask)) == {0, 1}


def test_orientation_of_the_file_does_not_move_the_mask(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """The same voxels stored with flipped and permuted axes give the same mask in the patient."""
    ct = nib.load(write_phantom("LPS"))
    turned = nib.as_closest_canonical(ct).slicer[:, :, :]
    permuted = nib.Nifti1Image(
        np.ascontiguousarray(np.asarray(turned.dataobj).transpose(2, 0, 1)), turned.affine[:, [2, 0, 1, 3]]
    )
    nib.save(ct, tmp_path / "a.nii.gz")
    nib.save(permuted, tmp_path / "b.nii.gz")
    first = session.segment(tmp_path / "a.nii.gz", tmp_path)
    second = session.segment(tmp_path / "b.nii.gz", tmp_path)
    assert score(first.path, second.path)["dice"] > 0.999
    assert first.mask.shape != second.mask.shape


def test_dicom_folder_and_nifti_give_the_same_mask(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    nifti = nib.load(write_phantom("LPS"))
    hu = np.asarray(nifti.dataobj)
    affine = nifti.affine
    spacing = nib.affines.voxel_sizes(affine)
    write_series(
        tmp_path / "series",
        hu,
        origin=tuple(affine[:3, 3] * [-1, -1, 1]),
        step=(0.0, 0.0, float(spacing[2])),
        PixelSpacing=[float(spacing[1]), float(spacing[0])],
    )
    from_dicom = session.segment(tmp_path / "series", tmp_path)
    from_nifti = session.segment(write_phantom("LPS"), tmp_path)
    assert score(from_dicom.path, from_nifti.path)["dice"] > 0.999
    assert from_dicom.record["source"]["format"] == "dicom"
    assert from_dicom.record["source"]["series_uid"]


def test_record_says_how_the_mask_came_about(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    stages: list[tuple[str, int, int]] = []
    result = session.segment(write_phantom(), tmp_path, qc=True, progress=lambda *step: stages.append(step))
    record = json.loads((tmp_path / "phantom_RAS_0_seg.json").read_text())
    assert record == result.record
    voxel_ml = abs(np.linalg.det(result.affine[:3, :3])) / 1000
    assert record["volume_ml"] == pytest.approx(result.mask.sum() * voxel_ml)
    assert set(record["seconds"]) == {"read", "preprocess", "network", "postprocess", "write"}
    assert record["config"]["spacing"] == TINY["spacing"]
    assert record["config"]["channels"] == TINY["channels"]
    assert record["precision"] == "float32"
    assert len(record["checkpoint"]["sha256"]) == 64
    assert record["geometry"]["orientation"] == "RAS"
    assert (tmp_path / "phantom_RAS_0_seg.png").read_bytes().startswith(b"\x89PNG")
    network = [(done, total) for stage, done, total in stages if stage == "network"]
    assert network[-1][0] == network[-1][1] == len(network)
    assert str(tmp_path) not in json.dumps(record)


def test_without_an_output_folder_nothing_is_written(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = session.segment(write_phantom())
    assert result.path is None
    assert list(tmp_path.iterdir()) == []


def test_segment_in_one_call(tiny_checkpoint: Path, write_phantom: Callable[..., Path], session: Segmenter) -> None:
    result = segment(write_phantom(), checkpoint=tiny_checkpoint, device="cpu", precision="fp32", **TINY)
    np.testing.assert_array_equal(result.mask, session.segment(write_phantom()).mask)


def test_only_one_component_is_left(session: Segmenter, write_phantom: Callable[..., Path]) -> None:
    import cc3d

    mask = session.segment(write_phantom()).mask
    assert cc3d.connected_components(mask, connectivity=26).max() == 1


def test_a_failed_case_leaves_nothing_and_the_session_goes_on(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(write_phantom().read_bytes()[:20000])
    with pytest.raises(AttUNet3dError, match=r"broken\.nii\.gz"):
        session.segment(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    session.segment(write_phantom(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "phantom_RAS_0_seg.json",
        "phantom_RAS_0_seg.nii.gz",
    ]


def test_a_write_that_fails_leaves_nothing(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        session.segment(write_phantom(), tmp_path / "out", qc=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes_name_the_cure(tiny_checkpoint: Path, tmp_path: Path, write_phantom: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Segmenter(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="preset it was trained with"):
        Segmenter(tiny_checkpoint)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Segmenter(tmp_path / "text.pt")
    with pytest.raises(ConfigError, match="'overlapp'"):
        Segmenter(tiny_checkpoint, overlapp=0.5)
    with pytest.raises(ConfigError, match=r"'nih'.*phantom"):
        Segmenter(tiny_checkpoint, presets=["nih"])
    with pytest.raises(ConfigError, match="overlap must be"):
        Segmenter(tiny_checkpoint, **{**TINY, "overlap": 1.5})
    with pytest.raises(ConfigError, match="fp16"):
        Segmenter(tiny_checkpoint, device="cpu", precision="fp16")
    with pytest.raises(ConfigError, match="tpu9"):
        Segmenter(tiny_checkpoint, device="tpu9")
    with pytest.raises(InputNotFoundError, match="nowhere"):
        Segmenter(tiny_checkpoint, **TINY).segment(tmp_path / "nowhere.nii.gz")


@needs_data
def test_real_ct_keeps_its_grid(session: Segmenter, tmp_path: Path) -> None:
    result = session.segment(SHARED_DATA / "lidc0001" / "dicom", tmp_path)
    labels = nib.load(SHARED_DATA / "lidc0001" / "totalsegmentator_organs.nii.gz")
    assert result.mask.shape == labels.shape
    assert score(result.path, SHARED_DATA / "lidc0001" / "totalsegmentator_organs.nii.gz")["reference_ml"] > 0
