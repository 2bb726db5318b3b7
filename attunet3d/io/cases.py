"""What in a folder can be segmented, and what the results are called."""

from __future__ import annotations

import os
from pathlib import Path

from monai.config import PathLike
from monai.data import FolderLayoutBase

from attunet3d.errors import InputNotFoundError
from attunet3d.io.reader import ITK_SUFFIXES, NIFTI_SUFFIXES

IMAGE_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a CT without its format's suffix: ``case_7.nii.gz`` and the folder ``case_7`` are both "case_7"."""
    name = Path(path).resolve().name
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def find_cases(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """MONAI data dicts {"image": path} for every CT directly in a folder: image files, and subfolders (DICOM series).

    A folder without either is taken as one DICOM series itself.

    Raises:
        InputNotFoundError: the folder does not exist or is empty.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputNotFoundError(f"{root}: no such folder of CTs")
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    if not entries:
        raise InputNotFoundError(f"{root}: the folder is empty; put CTs or DICOM folders into it")
    found = [p for p in entries if p.is_dir() or p.name.lower().endswith(IMAGE_SUFFIXES)]
    return [{"image": str(p)} for p in found or [root]]


class MaskLayout(FolderLayoutBase):
    """Where `SaveImaged` puts a mask: ``<output_dir>/<case>_seg.nii.gz``.

    MONAI's own layout cuts a folder's name at its last dot, so that two series named by their UIDs would share a file.
    """

    def __init__(self, output_dir: PathLike) -> None:
        self.output_dir = Path(output_dir)

    def filename(self, subject: PathLike = "subject", idx: object = None, **kwargs: object) -> str:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return str(self.output_dir / f"{case_name(subject)}_seg.nii.gz")
