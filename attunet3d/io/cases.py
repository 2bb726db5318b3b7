"""Find the CTs in a folder, and name their results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io.printable import printable
from attunet3d.io.slabs import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from attunet3d.io.dicom.series import Series


@dataclass(frozen=True)
class SeriesCase(os.PathLike[str]):
    """One series of a DICOM folder. As a path it is the folder, but readers read only this series.

    Attributes:
        folder: the folder, as given.
        number: number of the series in ``attunet3d inspect FOLDER``, from 1.
        series: its headers, which are not read again.
    """

    folder: Path
    number: int
    series: Series

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return f"{self.folder}: series {self.number}"


def segmentable_series(folder: str | os.PathLike[str]) -> list[SeriesCase]:
    """List the CT series of a DICOM folder, for ``Segmenter.segment`` and ``segment_all``.

    Localizers, derived series and other modalities are left out, see ``candidate_series``.

    Args:
        folder: searched recursively; only headers are read.

    Raises:
        AmbiguousSeriesError: the folder holds CTs of several patients.
        InputNotFoundError, UnreadableInputError, UnsupportedImageError: it holds no DICOM, or no CT.
    """
    return partition_series(folder)[0]


def partition_series(folder: str | os.PathLike[str]) -> tuple[list[SeriesCase], list[str]]:
    """Return ``segmentable_series``, and for each other series a line with the reason why it is left out."""
    from attunet3d.io.dicom.find import candidate_series, find_series
    from attunet3d.io.paths import existing

    folder = existing(folder)
    found = find_series(folder)
    _, reasons = candidate_series(found)
    cases, left_out = [], []
    for number, series in enumerate(found, 1):
        case = SeriesCase(folder, number, series)
        if series.uid not in reasons:
            cases.append(case)
        else:
            left_out.append(f"{case}: {reasons[series.uid]}: {series}")
    return cases, left_out


def case_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a CT without the suffix: "case_7" for ``case_7.nii.gz`` and for the folder ``case_7``.

    The second series of that folder is "case_7_series2", see ``SeriesCase``.
    """
    if isinstance(path, SeriesCase):
        return f"{case_name(path.folder)}_series{path.number}"
    name = Path(os.path.abspath(path)).name  # for a link: its own name, not the target's
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def collision_key(name: str) -> str:
    """Return a key that is equal for names of the same file on some file systems.

    Those of macOS, Windows, many USB disks and network shares ignore case or how Unicode is normalized.
    """
    return normalize("NFD", normalize("NFD", name).casefold())


def name_collisions(names: Sequence[str]) -> list[list[int]]:
    """Return the indices of names that would be the same file, see ``collision_key``: a list for each such file."""
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        indices.setdefault(collision_key(name), []).append(index)
    return [same for same in indices.values() if len(same) > 1]


def quote_collision(names: Iterable[str]) -> str:
    """Quote colliding names for a message: each name once, with the reason if they are not identical."""
    different = list(dict.fromkeys(names))
    quoted = " and ".join(f'"{printable(name)}"' for name in different)
    return quoted if len(different) == 1 else f"{quoted}, which differ only in capitals or in how accents are encoded"


def find_cases(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """List the CTs directly in a folder as MONAI data dicts {"image": path}: image files, and subfolders with DICOM.

    A folder without either is itself taken as that of a DICOM series.

    Raises:
        InputNotFoundError: the folder does not exist or is empty.
        ConfigError: the masks of two CTs would have the same name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputNotFoundError(f"{root}: no such folder of CTs")
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    if not entries:
        raise InputNotFoundError(f"{root}: the folder is empty; put CTs or DICOM folders into it")
    found = [p for p in entries if p.is_dir() or p.name.lower().endswith(IMAGE_SUFFIXES)]
    names = [case_name(p) for p in found]
    for same in name_collisions(names):
        collision = quote_collision(names[index] for index in same)
        raise ConfigError(f"{root}: holds several CTs named {collision}; rename all but one")
    return [{"image": str(p)} for p in found or [root]]
