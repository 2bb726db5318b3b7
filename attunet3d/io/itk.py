"""NRRD and MetaImage in, through SimpleITK: LPS to RAS+."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from attunet3d.errors import UnsupportedImageError
from attunet3d.io.slabs import LPS_TO_RAS, StoredImage, read_failed


def open_itk(path: Path) -> StoredImage:
    """Header of a .nrrd, .nhdr, .mha or .mhd file, and its voxels to come.

    Raises UnreadableInputError, and UnsupportedImageError for anything but one 3D scalar image.
    """
    cure = "copy or export the file again"
    if path.suffix.lower() in (".mhd", ".nhdr"):
        cure = f"copy or export it again, with the data file that {path.name} names beside it"
    reader = sitk.ImageFileReader()
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    quiet = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        size = tuple(reader.GetSize())
        if reader.GetNumberOfComponents() != 1 or "complex" in kind:
            raise UnsupportedImageError(
                f"{path}: {reader.GetNumberOfComponents()} values per voxel ({kind}); "
                "give a CT with one real value per voxel"
            )
        if len(size) != 3:
            cure = "extract one volume" if len(size) > 3 else "give the whole scan"
            raise UnsupportedImageError(f"{path}: {len(size)}D image of shape {size}; expected 3D (X, Y, Z): {cure}")
        image = reader.Execute()
    except RuntimeError as e:
        raise read_failed(path, cure=cure) from e  # not quoted: ITK says "no such file" of truncated ones
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(quiet)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    warnings = []
    if nrrd and not image.HasMetaDataKey("NRRD_space"):
        warnings.append("the NRRD header gives no space; left-posterior-superior is assumed")
    facts = {"format": "nrrd" if nrrd else "metaimage", "warnings": warnings}
    return StoredImage(path, size, LPS_TO_RAS @ lps, facts, _slabs(image))


def _slabs(image: sitk.Image) -> Iterator[np.ndarray]:
    view = sitk.GetArrayViewFromImage(image)  # (Z, Y, X), and alive only as long as `image`
    for plane in view:
        yield plane.T
