"""Recognize image formats by the first bytes of a file, whatever its name."""

import re
import zlib
from pathlib import Path

_GZIP = b"\x1f\x8b"
ENOUGH = 1024  # bytes to recognize every format
_META_IMAGE = re.compile(rb"^[ \t]*NDims[ \t]*=", re.M)


def is_gzip(path: Path) -> bool:
    """Return whether a file starts with gzip's magic number.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as f:
        return f.read(2) == _GZIP


def format_of(path: Path) -> str | None:
    """Return the format of a file, see ``format_of_start``.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as f:
        return format_of_start(f.read(ENOUGH))


def format_of_start(start: bytes) -> str | None:
    """Return "nifti" (gzipped or not), "nrrd", "metaimage", "dicom" or None, by a file's first ``ENOUGH`` bytes."""
    if start[:2] == _GZIP:
        try:
            inflated = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, ENOUGH)
        except zlib.error:
            return None
        return "nifti" if _is_nifti(inflated) else None
    if start[128:132] == b"DICM":
        return "dicom"
    if start[:7] == b"NRRD000":
        return "nrrd"
    if _is_nifti(start):
        return "nifti"
    return "metaimage" if _META_IMAGE.search(start) else None


def _is_nifti(start: bytes) -> bool:
    """Return whether this is a single-file NIfTI: the header of a .hdr/.img pair has a different magic string."""
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"
