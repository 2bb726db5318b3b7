"""Names in requests to the MONAI Label server, of which it makes names of files, and the files that come with them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from attunet3d.errors import ConfigError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".bin")  # OHIF sends voxels without a header
SESSION_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm")
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
    """Refuse an NRRD header that takes its voxels from another file, which would be one of this machine.

    Raises:
        ConfigError: it does.
    """
    if name.lower().endswith(".nrrd"):
        header = file.read(1 << 16).partition(b"\n\n")[0].partition(b"\r\n\r\n")[0].lower()
        file.seek(0)
        if re.search(rb"^data ?file\s*:", header, re.MULTILINE):
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
