"""Names in requests to the MONAI Label server, of which it makes names of files, and the files that come with them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from attunet3d.errors import ConfigError
from attunet3d.io.formats import ENOUGH, format_of_start

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".bin")  # OHIF sends voxels without a header
SESSION_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm")
_FORMATS = {".nii.gz": "nifti", ".nii": "nifti", ".nrrd": "nrrd", ".dcm": "dicom"}
_NRRD_HEADER = 1 << 16  # bytes; it ends with an empty line
_LONGEST_NAME = 200  # bytes; a suffix comes to it
# DICOMweb's resources. Orthanc, for one, has others at the same place, by which it asks further servers.
_DICOMWEB = ("studies", "series", "instances", "bulkdata")


def is_name(value: Any) -> bool:
    """Whether a text can only be the name of one file in the folder it is meant for, on any system."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode()) <= _LONGEST_NAME
        and not re.search(r"[/\\]|^\.|^[A-Za-z]:", value)
    )


def is_uid(value: str) -> bool:
    """Whether a text is a UID of DICOM."""
    return len(value) <= 64 and bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", value))


def shown(value: Any) -> str:
    """A value as a message quotes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_name(what: str, value: str) -> None:
    """Refuse what could be a path.

    Raises:
        ConfigError: it is none.
    """
    if not is_name(value):
        raise ConfigError(f"{what}: {shown(value)} is no name: it holds / or \\, or starts with a dot or a drive")


def check_file_name(sent: str, suffixes: Collection[str]) -> str:
    """The name of an uploaded file without the folders of the sender's machine, which 3D Slicer sends along.

    Raises:
        ConfigError: it climbs out of a folder, is no name, or of another format.
    """
    parts = re.split(r"[/\\]", sent)
    if ".." in parts or not is_name(parts[-1]):
        raise ConfigError(f"{shown(sent)} is no name of a file")
    if not parts[-1].lower().endswith(tuple(suffixes)):
        raise ConfigError(f"{shown(parts[-1])}: expected a file with {', '.join(suffixes)}")
    return parts[-1]


def check_content(name: str, file: BinaryIO) -> None:
    """Refuse a file that is not of the format of its name, and an NRRD header without its voxels.

    The libraries that read it go by what it holds, and a header of some formats may take the voxels from other files,
    which would be of this machine.

    Raises:
        ConfigError: it is so.
    """
    start = file.read(_NRRD_HEADER)
    file.seek(0)
    expected = next((held for suffix, held in _FORMATS.items() if name.lower().endswith(suffix)), None)
    if expected is None:
        return
    if format_of_start(start[:ENOUGH]) != expected:
        raise ConfigError(f"{shown(name)}: is no {expected} file by what it holds")
    if expected == "nrrd":
        ends = [end for end in map(start.find, (b"\n\n", b"\r\n\r\n")) if end >= 0]
        # Anywhere: a line also ends with a carriage return alone.
        if not ends or re.search(rb"data ?file\s*:", start[: min(ends)].lower()):
            raise ConfigError(f"{shown(name)}: expected an NRRD file with its voxels in it, not in another file")


def check_digest(value: str) -> None:
    """Refuse what is no checksum of a file.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"((SHA256|SHA512|MD5):)?[0-9a-fA-F]+", value):
        raise ConfigError("check_sum: expected hexadecimal digits, after SHA256:, SHA512: or MD5:")


def check_dicomweb_path(path: str) -> None:
    """Refuse all but DICOMweb's resources below the URL of the studies.

    Raises:
        ConfigError: it is another path.
    """
    parts = path.split("/")
    if parts[0] not in _DICOMWEB or any(part.startswith(".") for part in parts) or re.search(r"[\\?#%\s]", path):
        raise ConfigError(f"{shown(path)}: expected a path of DICOMweb: {', '.join(_DICOMWEB)}")
    if not path.isprintable():
        raise ConfigError("the path of DICOMweb holds control characters")


def check_page(path: str) -> None:
    """Refuse the path of a page that could lead out of its folder.

    Raises:
        ConfigError: it could.
    """
    if path and not all(map(is_name, path.removesuffix("/").split("/"))):
        raise ConfigError(f"{shown(path)} is no page")


def check_index(path: Path) -> None:
    """Refuse a list of images that a folder of studies brings along and that leads out of it.

    Args:
        path: of ``datastore_v2.json``, which MONAI Label keeps in the folder.

    Raises:
        ConfigError: it does, or cannot be read.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        folders = (index.get("images_dir", ""), index.get("labels_dir", "labels"))
        files = [
            (is_name(name), suffix)
            for image, entry in index.get("objects", {}).items()
            for name, suffix in [
                (image, entry["image"].get("ext", "")),
                *((tag, label.get("ext", "")) for tag, label in entry.get("labels", {}).items()),
            ]
        ]
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise ConfigError(f"{path}: cannot be read; delete it, and MONAI Label makes it anew") from None
    inside = folders[0] in ("", ".") and folders[1] == "labels"
    if not inside or not all(named and re.fullmatch(r"(\.[\w-]+)*", str(suffix)) for named, suffix in files):
        raise ConfigError(f"{path}: names files outside its folder; delete it, and MONAI Label makes it anew")
