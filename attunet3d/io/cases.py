"""What in a folder can be segmented, and what the results are called."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io.slabs import IMAGE_SUFFIXES


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a CT without its format's suffix: ``case_7.nii.gz`` and the folder ``case_7`` are both "case_7"."""
    name = Path(os.path.abspath(path)).name  # of a link its own name, not the target's
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def find_cases(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """MONAI data dicts {"image": path} for every CT directly in a folder: image files, and subfolders (DICOM series).

    A folder without either is taken as one DICOM series itself.

    Raises:
        InputNotFoundError: the folder does not exist or is empty.
        ConfigError: two CTs would have masks of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputNotFoundError(f"{root}: no such folder of CTs")
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    if not entries:
        raise InputNotFoundError(f"{root}: the folder is empty; put CTs or DICOM folders into it")
    found = [p for p in entries if p.is_dir() or p.name.lower().endswith(IMAGE_SUFFIXES)]
    names = Counter(case_name(p) for p in found)
    for path in found:
        if names[case_name(path)] > 1:
            raise ConfigError(f"{root}: holds several CTs named {case_name(path)!r}; rename all but one")
    return [{"image": str(p)} for p in found or [root]]
