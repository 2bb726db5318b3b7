"""Output formats of masks.

To add one, write a module for it, such as ``attunet3d.io.dicom.seg``, and add an entry to ``FORMATS``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attunet3d.errors import ConfigError

if TYPE_CHECKING:  # the command line lists the formats, and must not load numpy and torch for that
    import numpy as np

    from attunet3d.io.paths import PathLike
    from attunet3d.io.slabs import StoredImage

RECORD_SUFFIX, PICTURE_SUFFIX = "_seg.json", "_seg.png"
_HIGHDICOM_BYTES = 80 * 2**20

Save = Callable[[Path, "np.ndarray"], None]


@dataclass(frozen=True)
class MaskSource:
    """The CT and the weights that a mask is computed from.

    Attributes:
        ct: the CT as given, for messages.
        affine: from voxel indices to RAS+ mm, for the CT and the mask.
        metadata: metadata of the CT, see ``StoredImage``; a format may add to its list of "warnings".
        files, frames: DICOM images of the CT, see ``StoredImage``.
        checkpoint_sha256: hash of the weights.
    """

    ct: PathLike
    affine: np.ndarray
    metadata: Mapping[str, Any]
    files: Sequence[Path]
    frames: Sequence[int]
    checkpoint_sha256: str


@dataclass(frozen=True)
class OutputFormat:
    """An output format.

    Attributes:
        name: value of ``output_format``.
        suffix: end of the file name, after the name of the case.
        prepare: called before the network runs; returns the function that writes a mask, uint8 (X, Y, Z), to a path.
            Raises an AttUNet3dError if the mask of this CT cannot be written in this format.
        check_header: called with a CT of which only the header has been read; raises UnsupportedImageError if its
            mask cannot be written in this format. None if that of any CT can.
        library: optional dependency that writes it.
        extra: extra of this package that installs the library.
        mask_copies: masks in memory while one is written, itself included.
        library_bytes: memory that the library takes.
    """

    name: str
    suffix: str
    prepare: Callable[[MaskSource], Save]
    check_header: Callable[[StoredImage], None] | None = None
    library: str | None = None
    extra: str | None = None
    mask_copies: int = 1
    library_bytes: int = 0

    def writing_bytes(self, voxels: int) -> int:
        """Return how much memory writing a mask of ``voxels`` takes, bytes."""
        return self.mask_copies * voxels + self.library_bytes

    def check_installed(self) -> None:
        """Check that the library is installed.

        Raises:
            ConfigError: it is not.
        """
        if self.library is not None and importlib.util.find_spec(self.library) is None:
            raise ConfigError(
                f"output format {self.name} needs {self.library}, which is not installed; "
                f"run: pip install 'attunet3d[{self.extra}]'"
            )


def _prepare_nifti(source: MaskSource) -> Save:
    from attunet3d.io.writer import save_mask

    return partial(save_mask, affine=source.affine, metadata=source.metadata)


def _prepare_seg(source: MaskSource, segmentation_type: str) -> Save:
    from attunet3d.io.dicom.seg import save_seg, source_headers

    warnings = source.metadata["warnings"]
    return partial(
        save_seg,
        affine=source.affine,
        sources=source_headers(source.ct, source.files, source.affine, warnings, source.frames, segmentation_type),
        frames=source.frames,
        checkpoint_sha256=source.checkpoint_sha256,
        segmentation_type=segmentation_type,
    )


def _check_images(image: StoredImage) -> None:
    from attunet3d.io.dicom.seg import check_images

    check_images(image)


def _dicom_seg(name: str, segmentation_type: str) -> OutputFormat:
    return OutputFormat(
        name,
        "_seg.dcm",
        partial(_prepare_seg, segmentation_type=segmentation_type),
        _check_images,
        library="highdicom",
        extra="seg",
        mask_copies=5,  # it is read again and compared
        library_bytes=_HIGHDICOM_BYTES,
    )


FORMATS = {
    entry.name: entry
    for entry in (
        OutputFormat("nifti", "_seg.nii.gz", _prepare_nifti),
        _dicom_seg("dicom-seg", "BINARY"),
        _dicom_seg("dicom-seg-labelmap", "LABELMAP"),
    )
}
# For help texts.
FOR_ANY_CT = tuple(name for name, entry in FORMATS.items() if entry.check_header is None)
FOR_DICOM = tuple(name for name in FORMATS if name not in FOR_ANY_CT)


def find_formats(names: str | list[str] | tuple[str, ...]) -> tuple[OutputFormat, ...]:
    """Look up output formats by name, one or several.

    Raises:
        ConfigError: a format does not exist, its library is not installed, or two would be written to one file.
    """
    names = names if isinstance(names, list | tuple) else [names]
    unknown = [name for name in names if not isinstance(name, str) or name not in FORMATS]
    if unknown or not names:
        found = f"{unknown[0]!r}: unknown" if unknown else "none given"
        raise ConfigError(f"output format {found}; there are {', '.join(FORMATS)}")
    formats = tuple(FORMATS[name] for name in names)
    if len({entry.suffix for entry in formats}) < len(formats):
        raise ConfigError(f"output formats {', '.join(names)}: written to files of one name; choose one of those")
    for entry in formats:
        entry.check_installed()
    return formats
