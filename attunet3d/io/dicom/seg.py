"""Write a pancreas mask as a DICOM segmentation object (SEG) that refers to the CT's images.

highdicom writes and reads it. It is imported only when needed, since it belongs to an optional extra.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import pydicom

from attunet3d.errors import AttUNet3dError, OutputError, UnsupportedImageError
from attunet3d.io.dicom.geometry import TILT_WARNING_DEG, tilt_deg
from attunet3d.io.dicom.guard import dcmread
from attunet3d.io.dicom.header import headers_of
from attunet3d.io.dicom.repeated import UIDS, add_to, repeated, stand_in, uid_of
from attunet3d.io.slabs import LPS_TO_RAS, StoredImage, read_failed
from attunet3d.version import __version__

_SERIES_NUMBER = 1000  # beyond those of scanners


def check_images(image: StoredImage) -> None:
    """Check that each slice of a CT is a DICOM image or frame that a SEG can refer to.

    Raises:
        UnsupportedImageError: the CT is not DICOM, has interpolated slices, or frames of several files.
    """
    if image.metadata["format"] != "dicom":
        raise UnsupportedImageError(
            f"{image.path}: not DICOM, so a DICOM SEG has no images to refer to; "
            'give the folder of the DICOM series, or write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        )
    files = len(set(image.files))
    if files != (1 if image.frames else image.shape[2]):
        cause = "frames of several files" if files else "slices that were interpolated (allow_uneven=True)"
        raise UnsupportedImageError(
            f'{image.path}: {cause}, so a DICOM SEG cannot refer to them; write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Accept values that violate the standard, without pydicom's warnings, which would quote them."""
    with catch_warnings(), pydicom.config.disable_value_validation():
        simplefilter("ignore")
        yield


@dataclass(frozen=True)
class SourceImages:
    """The images that a SEG refers to.

    Attributes:
        folder: folder of the images, for messages.
        images: a stand-in for each image, in the order of the slices, or for the single multi-frame image.
        series: SeriesInstanceUID of each image.
        repeated: elements of the first image that the SEG repeats.
    """

    folder: Path
    images: list[pydicom.Dataset]
    series: list[str]
    repeated: pydicom.Dataset


@_quiet()
def source_headers(
    source: str | os.PathLike[str],
    files: Sequence[Path],
    affine: np.ndarray,
    warnings: list[str],
    frames: Sequence[int] = (),
    segmentation_type: str = "BINARY",
) -> SourceImages:
    """Read the headers of the images that a SEG will refer to, and test them by making a SEG of a single voxel.

    Args:
        source: the CT as given, for messages.
        files: the images in the order of the slices, see ``check_images``; a multi-frame image counts once.
        affine: affine of the CT from voxel indices to RAS+ mm.
        warnings: new ones are added to this list.
        frames: see ``StoredImage``; only these frames of a multi-frame image are referred to.
        segmentation_type: see ``save_seg``.

    Raises:
        UnsupportedImageError: an image lacks a UID that a SEG must repeat, the images are of several studies, or have
            elements that cannot be repeated.
        UnreadableInputError: an image can no longer be read.
        OutputError: highdicom refuses the images.
    """
    images: list[pydicom.Dataset] = []
    pixel = np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))  # mm2
    between_slices = abs(np.linalg.det(affine[:3, :3])) / pixel  # mm, along their normal
    for path in dict.fromkeys(files):
        try:
            header = dcmread(path, stop_before_pixels=True, force=True)
            if not images:
                first = repeated(header)
            _check_uids(path, header)
            slices = headers_of(header, path)
            images.append(stand_in(header, [slices[k] for k in frames] or slices, between_slices))
        except AttUNet3dError:
            raise
        except Exception as error:  # pydicom does not catch its parsers' exceptions
            raise read_failed(path) from error
    series = [image.SeriesInstanceUID for image in images]
    if len({image.SOPInstanceUID for image in images}) < len(images):
        raise UnsupportedImageError(
            f"{source}: several images have one SOPInstanceUID, so that a DICOM SEG cannot tell which it refers to; "
            'export the series again, or write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        )
    if len({image.StudyInstanceUID for image in images}) > 1:
        raise UnsupportedImageError(
            f"{source}: the images are of several studies (StudyInstanceUID), and a DICOM SEG belongs to one; "
            'export the series again, or write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        )
    spaces = {image.FrameOfReferenceUID for image in images}
    if len(spaces) > 1:
        # Some de-identification tools give each image its own. The reader has checked that they are one volume.
        warnings.append(f"the images carry {len(spaces)} FrameOfReferenceUIDs; the DICOM SEG takes the first slice's")
    for image in images:  # highdicom only accepts one series and frame of reference
        image.FrameOfReferenceUID, image.SeriesInstanceUID = images[0].FrameOfReferenceUID, series[0]
    if tilt_deg(affine) > TILT_WARNING_DEG:
        warnings.append("dcmqi, and programs that read SEG with it, cannot place the slices of a tilted gantry")
    found = SourceImages(Path(files[0]).parent, images, series, first)
    _test_seg(found, affine, frames, segmentation_type)
    return found


def _check_uids(path: Path, header: pydicom.Dataset) -> None:
    missing = [name for name in UIDS if not uid_of(header, name)]
    if missing:
        raise UnsupportedImageError(
            f"{path}: {missing[0]} is missing, or not one UID, and a DICOM SEG must repeat it; "
            'export the series again, or write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        )


def _test_seg(sources: SourceImages, affine: np.ndarray, frames: Sequence[int], segmentation_type: str) -> None:
    """Make a SEG with one voxel in the first slice, so that unsuitable images are refused before the network runs."""
    small = [pydicom.Dataset() for _ in sources.images]
    for new, image in zip(small, sources.images, strict=True):
        new.update(image)
        for name in ("Rows", "Columns"):
            new.add_new(name, "US", 1)
    mask = np.zeros((1, 1, len(frames) or len(small)), np.uint8)
    mask[0, 0, 0] = 1
    save_seg(
        BytesIO(),
        mask,
        affine,
        replace(sources, images=small),
        frames=frames,
        checkpoint_sha256="0" * 64,
        segmentation_type=segmentation_type,
    )


@_quiet()
def save_seg(
    path: Path | BytesIO,
    mask: np.ndarray,
    affine: np.ndarray,
    sources: SourceImages,
    *,
    frames: Sequence[int] = (),
    checkpoint_sha256: str,
    segmentation_type: str = "BINARY",
) -> None:
    """Write a mask as DICOM SEG to a path that is already temporary, read it back, and compare it with the mask.

    Frames without pancreas are left out, unless the mask is empty: then all frames are written. Patient and study are
    those of the images, byte for byte.

    Args:
        path: a temporary path (see ``atomic_path``), which is not cleaned up here, or a buffer.
        mask: uint8 (X, Y, Z), 1 is pancreas.
        affine: from voxel indices to RAS+ mm.
        sources: the Z images, or the single multi-frame image, see ``source_headers``.
        frames: frame number of each of the Z slices in a multi-frame image.
        checkpoint_sha256: hash of the weights, 64 hexadecimal digits; with the version it identifies the algorithm.
        segmentation_type: "BINARY", one bit per voxel, or "LABELMAP", one byte: a newer storage class that fewer
            programs read.

    Raises:
        OutputError: highdicom refuses the images, or the file read back is not the mask.
        OSError: the file cannot be written.
    """
    try:
        seg = _segmentation(mask, sources.images, checkpoint_sha256, segmentation_type)
        _refer_to_series(seg, sources.series)
        if frames:
            _refer_to_frames(seg, frames)
        add_to(seg, sources.repeated)
        seg.save_as(path)
        same = _holds(path, mask, affine)
    except OSError:
        raise
    except Exception as error:  # its text may quote patient data
        raise OutputError(
            f"{sources.folder}: highdicom cannot make a DICOM SEG of this series ({type(error).__name__}); "
            'export the series again, or write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        ) from error
    if not same:
        raise OutputError(
            f"{sources.folder}: the DICOM SEG of this series, read again, is not the mask, and was removed; "
            'write NIfTI (output_format="nifti")',
            arguments=("output_format",),
        )


def _refer_to_series(seg: pydicom.Dataset, series: Sequence[str]) -> None:
    """Refer to each image in its own series: highdicom only accepts images of one."""
    of_series: dict[str, list[pydicom.Dataset]] = {}
    for uid, image in zip(series, seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence, strict=True):
        of_series.setdefault(uid, []).append(image)
    seg.ReferencedSeriesSequence = [pydicom.Dataset() for _ in of_series]
    for item, (uid, images) in zip(seg.ReferencedSeriesSequence, of_series.items(), strict=True):
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, images


def _refer_to_frames(seg: pydicom.Dataset, frames: Sequence[int]) -> None:
    """Refer to the frames by their numbers in the file: highdicom has numbered the slices."""
    for group in seg.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence", []):
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = frames[int(image.ReferencedFrameNumber) - 1] + 1


def _segmentation(
    mask: np.ndarray, images: Sequence[pydicom.Dataset], checkpoint_sha256: str, segmentation_type: str
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
        source_images=images,
        pixel_array=mask.transpose(2, 1, 0),
        segmentation_type=segmentation_type,
        segment_descriptions=[pancreas],
        series_instance_uid=hd.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="attunet3d",
        manufacturer_model_name="attunet3d",
        software_versions=__version__,
        device_serial_number=checkpoint_sha256,  # must not be empty; the weights distinguish two devices
        series_description="Pancreas segmentation (research use only)",
        content_label="PANCREAS",
        content_description="Pancreas, segmented automatically (research use only)",
        content_creator_name="",  # required, but no person
        omit_empty_frames=bool(mask.any()),
    )


def _holds(path: Path | BytesIO, mask: np.ndarray, affine: np.ndarray) -> bool:
    """Return whether the SEG in a file marks the same voxels as ``mask``.

    Each frame is placed by its own position, since slices of a tilted gantry are not on an orthogonal grid.
    """
    import highdicom as hd

    if isinstance(path, BytesIO):
        path.seek(0)
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
        # Each pixel must lie in its own voxel; headers round positions and directions, see geometry.py.
        if not 0 <= k < mask.shape[2] or np.abs(placed - corners - [[0], [0], [k], [0]]).max() >= 0.5:
            return False
        found[:, :, k] |= frame.T
    return np.array_equal(found, mask)
