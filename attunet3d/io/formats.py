"""What a file is by its first bytes, whatever it is called."""

import re
import zlib
from pathlib import Path

GZIP = b"\x1f\x8b"
ENOUGH = 1024  # bytes
_META_IMAGE = re.compile(rb"^[ \t]*NDims[ \t]*=", re.M)


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does. Raises OSError."""
    with path.open("rb") as f:
        return f.read(2) == GZIP


def format_of(path: Path) -> str | None:
    """As `format_of_start`. Raises OSError."""
    with path.open("rb") as f:
        return format_of_start(f.read(ENOUGH))


def format_of_start(start: bytes) -> str | None:
    """ "nifti", gzipped or not, "nrrd", "metaimage", "dicom", or None, by the first `ENOUGH` bytes of a file."""
    if start[:2] == GZIP:
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
    """Of one file: the header of a pair of files has another mark."""
    return start[344:348] == b"n+1\0" or start[4:8] == b"n+2\0"
