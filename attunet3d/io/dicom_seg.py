"""DICOM out: a pancreas mask as a segmentation object (SEG) that refers to the CT's own images.

highdicom writes and reads it; it is imported where it is needed, since it comes with an extra of its own.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from attunet3d import __version__
from attunet3d.errors import OutputError, UnsupportedImageError
from attunet3d.io.dicom_header import numbers
from attunet3d.io.slabs import LPS_TO_RAS, StoredImage, read_failed

# A SEG cannot be without these: they tie it to its study, to the patient's space, and to each image.
REQUIRED_TAGS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
# A SEG must repeat these, if only to say that they are empty, as they are once an image is de-identified.
EMPTY_IF_MISSING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
SERIES_NUMBER = 1000  # out of the way of what scanners count


def check_images(image: StoredImage) -> None:
    """Raise UnsupportedImageError unless each slice of a CT is a DICOM image or frame, which a SEG can refer to."""
    if image.facts["format"] != "dicom":
        raise UnsupportedImageError(
            f"{image.path}: not DICOM, so a DICOM SEG has no images to refer to; "
            "give the folder of the DICOM series, or write NIfTI (--format nifti)"
        )
    files = len(set(image.files))
    if files != (1 if image.frames else image.shape[2]):
        cause = "frames of several files" if files else "slices that were interpolated (--allow-uneven)"
        raise UnsupportedImageError(
            f"{image.path}: {cause}, so a DICOM SEG cannot refer to them; write NIfTI (--format nifti)"
        )


def source_headers(
    source: str | os.PathLike[str],
    files: Sequence[Path],
    affine: np.ndarray,
    notes: list[str],
    frames: Sequence[int] = (),
) -> list[pydicom.FileDataset]:
    """The headers of a CT's images, without their pixels, ready to be referred to by a SEG.

    Args:
        source: the CT as it was given, for messages.
        files: the images in the order of the slices, see `check_images`; a multi-frame one counts once.
        affine: of the CT, voxel -> RAS+ mm.
        notes: what a user should know of them is added here.
        frames: see `StoredImage`; the header of a multi-frame image is given with the functional groups of these alone.

    Raises:
        UnsupportedImageError: an image lacks a UID that a SEG must repeat, or the images are of several studies.
        UnreadableInputError: an image is no longer readable.
    """
    headers: list[pydicom.FileDataset] = []
    pixel = np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))  # mm2
    between_slices = abs(np.linalg.det(affine[:3, :3])) / pixel  # mm, along their normal
    for path in dict.fromkeys(files):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard, and quotes them
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                missing = [tag for tag in REQUIRED_TAGS if not header.get(tag)]
            except Exception as error:  # pydicom lets any parser's exception through
                raise read_failed(path) from error
        if missing:
            raise UnsupportedImageError(
                f"{path}: {missing[0]} is missing, and a DICOM SEG must repeat it; "
                "export the series again, or write NIfTI (--format nifti)"
            )
        for tag in EMPTY_IF_MISSING:
            header.setdefault(tag, "")
        if not (numbers(header, "SliceThickness", 1) or (0,))[0] > 0:  # may be empty in a CT, but not in a SEG
            header.SliceThickness = f"{between_slices:.4f}"
        if frames:  # those of another phase lie at the same places, which a SEG must not have twice
            header.PerFrameFunctionalGroupsSequence = [header.PerFrameFunctionalGroupsSequence[k] for k in frames]
            header.NumberOfFrames = len(frames)
        headers.append(header)
    if len({header.StudyInstanceUID for header in headers}) > 1:
        raise UnsupportedImageError(
            f"{source}: the images are of several studies (StudyInstanceUID), and a DICOM SEG belongs to one; "
            "export the series again, or write NIfTI (--format nifti)"
        )
    spaces = {header.FrameOfReferenceUID for header in headers}
    if len(spaces) > 1:
        # Some de-identification tools give each image one of its own. The reader found them to be one volume.
        notes.append(f"the images carry {len(spaces)} FrameOfReferenceUIDs; the DICOM SEG takes the first slice's")
        for header in headers:
            header.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    return headers


def save_seg(
    path: Path,
    mask: np.ndarray,
    affine: np.ndarray,
    sources: Sequence[pydicom.FileDataset],
    *,
    frames: Sequence[int] = (),
    checkpoint_sha256: str,
    segmentation_type: str = "BINARY",
) -> None:
    """Write a mask as DICOM SEG to a path that is temporary already, read it again, and compare it with the mask.

    Frames without pancreas are left out, unless there is none at all: then every frame is written, all zero. The
    patient and the study are those of the images, as the standard demands.

    Args:
        path: what fails here is left to its owner, see `atomic_path`.
        mask: uint8 (X, Y, Z), 1 is pancreas.
        affine: voxel -> RAS+ mm.
        sources: the header of each of the Z images, in order, or of the one multi-frame image, see `source_headers`.
        frames: of the multi-frame image, the number of each of the Z slices.
        checkpoint_sha256: of the weights, 64 hexadecimal digits: with the version it identifies the algorithm.
        segmentation_type: "BINARY", one bit a voxel, or "LABELMAP", one byte: a storage class that is newer, and that
            fewer programs read.

    Raises:
        OutputError: highdicom refuses the images, or what was written is not the mask.
        OSError: the file cannot be written.
    """
    folder = Path(str(sources[0].filename)).parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above, and highdicom does
        try:
            seg = _segmentation(mask, sources, checkpoint_sha256, segmentation_type)
            if frames:
                _refer_to_frames(seg, frames)
            seg.save_as(path)
            same = _holds(path, mask, affine)
        except OSError:
            raise
        except Exception as error:  # what is odd in a header surfaces as anything; its text may quote the patient
            raise OutputError(
                f"{folder}: highdicom cannot make a DICOM SEG of this series ({type(error).__name__}); "
                "export the series again, or write NIfTI (--format nifti)"
            ) from error
    if not same:
        raise OutputError(
            f"{folder}: the DICOM SEG of this series, read again, is not the mask, and was removed; "
            "write NIfTI (--format nifti)"
        )


def _refer_to_frames(seg: pydicom.Dataset, frames: Sequence[int]) -> None:
    """Name the frames as their file counts them: highdicom has counted the slices."""
    for group in seg.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence", []):
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = frames[int(image.ReferencedFrameNumber) - 1] + 1


def _segmentation(
    mask: np.ndarray, sources: Sequence[pydicom.FileDataset], checkpoint_sha256: str, segmentation_type: str
) -> pydicom.Dataset:
    import highdicom as hd
    from pydicom.sr.coding import Code

    algorithm = hd.AlgorithmIdentificationSequence(
        name="attunet3d",
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=__version__,
        source="attunet3d",
        parameters={"checkpoint_sha256": checkpoint_sha256},
    )
    pancreas = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Pancreas",
        # 91723000 in today's CID 7150; this is the code that 3D Slicer knows the category by.
        segmented_property_category=Code("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=Code("15776009", "SCT", "Pancreas"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=mask.transpose(2, 1, 0),
        segmentation_type=segmentation_type,
        segment_descriptions=[pancreas],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="attunet3d",
        manufacturer_model_name="attunet3d",
        software_versions=__version__,
        device_serial_number=checkpoint_sha256,  # must not be empty; the weights are what tells two devices apart
        series_description="Pancreas segmentation (research use only)",
        content_label="PANCREAS",
        content_description="Pancreas, segmented automatically (research use only)",
        content_creator_name="",  # no person, which must be said
        omit_empty_frames=bool(mask.any()),
    )


def _holds(path: Path, mask: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the SEG in a file marks those voxels of the patient that `mask` does, and no others.

    Each frame is placed by its own position, so that this holds for tilted gantries too.
    """
    import highdicom as hd

    seg = hd.seg.segread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    corners = np.array([(x, y, 0, 1) for x in (0, seg.Columns - 1) for y in (0, seg.Rows - 1)], float).T
    to_voxel = np.linalg.inv(LPS_TO_RAS @ affine)
    found = np.zeros_like(mask)
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if not frame.any():
            continue
        lps = np.eye(4)
        lps[:3, 0] = orientation[0] * between_columns
        lps[:3, 1] = orientation[1] * between_rows
        lps[:3, 3] = group.PlanePositionSequence[0].ImagePositionPatient
        placed = to_voxel @ lps @ corners
        k = int(np.rint(placed[2, 0]))
        # Each pixel must lie in its own voxel; headers round positions and directions, see `dicom_geometry`.
        if not 0 <= k < mask.shape[2] or np.abs(placed - corners - [[0], [0], [k], [0]]).max() >= 0.5:
            return False
        found[:, :, k] |= frame.T
    return np.array_equal(found, mask)
