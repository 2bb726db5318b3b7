"""Checks of names in requests to the MONAI Label server, which become file names, and of uploaded files."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from attunet3d.errors import ConfigError
from attunet3d.io.formats import ENOUGH, format_of_start
from attunet3d.io.json_text import parse_json

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".bin")  # OHIF sends voxels without a header
SESSION_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm")
_FORMATS = {".nii.gz": "nifti", ".nii": "nifti", ".nrrd": "nrrd", ".dcm": "dicom"}
_NRRD_HEADER = 1 << 16  # bytes; it ends with an empty line
_LONGEST_NAME = 200  # bytes, without the suffix that is added
# DICOMweb's resources. Orthanc, for one, has others below the same URL, which query further servers.
_DICOMWEB = ("studies", "series", "instances", "bulkdata")


def is_name(value: Any) -> bool:
    """Whether a value is a file name without folders, on any operating system."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode()) <= _LONGEST_NAME
        and not re.search(r"[/\\]|^\.|^[A-Za-z]:", value)
    )


def is_uid(value: str) -> bool:
    """Whether a text is a DICOM UID."""
    return len(value) <= 64 and bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", value))


def shown(value: Any) -> str:
    """Quote a value for a message, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_name(what: str, value: str) -> None:
    """Check that a value is a name and cannot be a path.

    Raises:
        ConfigError: it could be one.
    """
    if not is_name(value):
        raise ConfigError(f"{what}: {shown(value)} is not a name: it contains / or \\, or starts with a dot or a drive")


def check_file_name(sent: str, suffixes: Collection[str]) -> str:
    """Return the name of an uploaded file without the sender's folders, which 3D Slicer includes.

    Raises:
        ConfigError: it contains "..", is not a file name, or has another suffix.
    """
    parts = re.split(r"[/\\]", sent)
    if ".." in parts or not is_name(parts[-1]):
        raise ConfigError(f"{shown(sent)} is not a file name")
    if not parts[-1].lower().endswith(tuple(suffixes)):
        raise ConfigError(f"{shown(parts[-1])}: expected a file with {', '.join(suffixes)}")
    return parts[-1]


def check_content(name: str, file: BinaryIO) -> None:
    """Check that a file has the format of its suffix, and that an NRRD file contains its voxels.

    Libraries detect the format from the content, and some headers can refer to other files for the voxels, which would
    be files of this machine.

    Raises:
        ConfigError: it does not.
    """
    start = file.read(_NRRD_HEADER)
    file.seek(0)
    expected = next((held for suffix, held in _FORMATS.items() if name.lower().endswith(suffix)), None)
    if expected is None:
        return
    if format_of_start(start[:ENOUGH]) != expected:
        raise ConfigError(f"{shown(name)}: content is not {expected}")
    if expected == "nrrd":
        ends = [end for end in map(start.find, (b"\n\n", b"\r\n\r\n")) if end >= 0]
        # Not only at line starts: a carriage return alone ends a line as well.
        if not ends or re.search(rb"data ?file\s*:", start[: min(ends)].lower()):
            raise ConfigError(f"{shown(name)}: expected an NRRD file that contains its voxels, not a detached header")


def check_digest(value: str) -> None:
    """Check the format of a checksum.

    Raises:
        ConfigError: it is not a checksum.
    """
    if not re.fullmatch(r"((SHA256|SHA512|MD5):)?[0-9a-fA-F]+", value):
        raise ConfigError("check_sum: expected hexadecimal digits, after SHA256:, SHA512: or MD5:")


def check_dicomweb_path(path: str) -> None:
    """Check that a path is a DICOMweb resource below the URL of the studies.

    Raises:
        ConfigError: it is another path.
    """
    parts = path.split("/")
    if parts[0] not in _DICOMWEB or any(part.startswith(".") for part in parts) or re.search(r"[\\?#%\s]", path):
        raise ConfigError(f"{shown(path)}: expected a DICOMweb path: {', '.join(_DICOMWEB)}")
    if not path.isprintable():
        raise ConfigError("the DICOMweb path contains control characters")


def check_page(path: str) -> None:
    """Check that the path of a page stays in its folder.

    Raises:
        ConfigError: it could leave it.
    """
    if path and not all(map(is_name, path.removesuffix("/").split("/"))):
        raise ConfigError(f"{shown(path)} is not a page")


def check_index(path: Path) -> None:
    """Check that the image list that comes with a folder of studies refers only to files in that folder.

    Args:
        path: ``datastore_v2.json``, which MONAI Label keeps in the folder.

    Raises:
        ConfigError: it refers to others, or cannot be read.
    """
    try:
        index = parse_json(path.read_bytes())
        folders = (index.get("images_dir", ""), index.get("labels_dir", "labels"))
        files = [
            (is_name(name), suffix)
            for image, entry in index.get("objects", {}).items()
            for name, suffix in [
                (image, entry["image"].get("ext", "")),
                *((tag, label.get("ext", "")) for tag, label in entry.get("labels", {}).items()),
            ]
        ]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise ConfigError(f"{path}: cannot be read; delete it, and MONAI Label recreates it") from None
    inside = folders[0] in ("", ".") and folders[1] == "labels"
    if not inside or not all(named and re.fullmatch(r"(\.[\w-]+)*", str(suffix)) for named, suffix in files):
        raise ConfigError(f"{path}: names files outside its folder; delete it, and MONAI Label recreates it")
