"""Read NRRD and MetaImage files with SimpleITK, and convert LPS to RAS+."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from attunet3d.errors import UnreadableInputError, UnsupportedImageError
from attunet3d.io.formats import format_of
from attunet3d.io.itk_header import check_units, data_file, most_bytes, skipped_bytes
from attunet3d.io.slabs import LPS_TO_RAS, StoredImage, read_failed


def open_itk(path: Path) -> StoredImage:
    """Open a NRRD or MetaImage file, and read its header; the suffix decides if the content does not tell the format.

    A separate data file must be in the folder of the header.

    Raises:
        UnreadableInputError: the file is damaged, or its data file is missing.
        UnsupportedImageError: not a single 3D scalar image, or the data file is in another folder.
        GeometryError: lengths in units other than mm.
    """
    try:
        by_content = format_of(path)
        nrrd = by_content == "nrrd" or (by_content is None and path.suffix.lower() in (".nrrd", ".nhdr"))
        kind = "nrrd" if nrrd else "metaimage"
        data = data_file(path, kind)
        check_units(path, kind)
        room = most_bytes(path, data) - skipped_bytes(path, kind, data)
    except OSError as e:
        raise read_failed(path, e) from e
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    with _itk_errors(path):
        reader.ReadImageInformation()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    size = tuple(reader.GetSize())
    if reader.GetNumberOfComponents() != 1 or "complex" in pixel:
        raise UnsupportedImageError(
            f"{path}: {reader.GetNumberOfComponents()} values per voxel ({pixel}); "
            "give a CT with one real value per voxel"
        )
    if len(size) != 3:
        hint = "extract one volume" if len(size) > 3 else "give the whole scan"
        raise UnsupportedImageError(f"{path}: {len(size)}D image of shape {size}; expected 3D (X, Y, Z): {hint}")
    if min(size) < 1:
        raise UnreadableInputError(f"{path}: the header says shape {size}, without voxels; export the file again")
    bits = int(pixel.partition("-bit")[0])  # "16-bit signed integer", "32-bit float"
    expected = math.prod(size) * bits // 8
    if room < expected:
        raise UnreadableInputError(
            f"{path}: truncated, {data.name} cannot hold the {expected} bytes that the header promises; "
            "copy or export the file again"
        )
    lps = np.eye(4)
    lps[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * reader.GetSpacing()
    lps[:3, 3] = reader.GetOrigin()
    warnings = []
    if nrrd and not reader.HasMetaDataKey("NRRD_space"):
        warnings.append("the NRRD header gives no space; left-posterior-superior is assumed")
    return StoredImage(path, size, LPS_TO_RAS @ lps, {"format": kind, "warnings": warnings}, _slabs(path, reader))


def _slabs(path: Path, reader: sitk.ImageFileReader) -> Iterator[np.ndarray]:
    with _itk_errors(path):
        image = reader.Execute()
    view = sitk.GetArrayViewFromImage(image)  # (Z, Y, X); valid only as long as `image` exists
    for plane in view:
        yield plane.T


@contextmanager
def _itk_errors(path: Path) -> Iterator[None]:
    """Convert ITK's errors, and silence its warnings. ITK's text is not quoted: truncated files are "no such file"."""
    hint = "copy or export the file again"
    if path.suffix.lower() in (".mhd", ".nhdr"):
        hint = f"copy or export it again, with the data file that {path.name} names beside it"
    quiet = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        raise read_failed(path, hint=hint) from e
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(quiet)
