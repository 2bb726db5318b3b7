"""Recognize the format of a weights file without reading the weights."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from attunet3d.io.safetensors_file import START_BYTES, is_safetensors

# Errors on reading a damaged zip archive.
ARCHIVE_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    IndexError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
WeightsFormat = Literal["torch", "safetensors", "torchscript", "onnx"]
_BY_SUFFIX: dict[str, WeightsFormat] = {
    ".pt": "torch",
    ".pth": "torch",
    ".ckpt": "torch",
    ".safetensors": "safetensors",
    ".ts": "torchscript",
    ".onnx": "onnx",
}
_OLD_TORCH = b"\x80\x02\x8a\n"  # a pickle of torch's magic number, before version 1.6
_ONNX_VERSIONS = range(3, 64)
_ONNX_TAGS = b"\x12\x1a\x22\x2a\x32\x3a\x42"  # of the fields that may follow the version, as protobuf encodes them


def weights_format(path: Path) -> WeightsFormat | None:
    """Return the format of a weights file, by its content, or else by its suffix; None if it is not one.

    A damaged file has the format of its suffix: the error on reading it says what is wrong.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        found = _by_content(path, start)
    except ARCHIVE_ERRORS:
        found = None
    return found or _BY_SUFFIX.get(path.suffix.lower())


def _by_content(path: Path, start: bytes) -> WeightsFormat | None:
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
        if "data.pkl" not in records:
            return None
        return "torchscript" if "constants.pkl" in records else "torch"
    if is_safetensors(start):
        return "safetensors"
    if start.startswith(_OLD_TORCH):
        return "torch"
    is_onnx = len(start) > 2 and start[0] == 8 and start[1] in _ONNX_VERSIONS and start[2] in _ONNX_TAGS
    return "onnx" if is_onnx else None
