"""What in a folder can be segmented, and what the results are called."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io.slabs import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from attunet3d.io.dicom.series import Series

ALIKE = "differ only in capitals or in how accents are encoded"


@dataclass(frozen=True)
class SeriesCase(os.PathLike[str]):
    """One series of a DICOM folder: as a path it is the folder, and what reads it reads this series.

    Attributes:
        folder: as it was given.
        number: of the series in `attunet3d inspect FOLDER`, from 1.
        series: its headers, which are not read again.
    """

    folder: Path
    number: int
    series: Series

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return f"{self.folder}: series {self.number}"


def segmentable_series(folder: str | os.PathLike[str], left_out: list[str] | None = None) -> list[SeriesCase]:
    """Each CT series of a DICOM folder that could be chosen, for `Segmenter.segment` and `segment_all`.

    Args:
        folder: searched with what is in it; headers only.
        left_out: a line is added for each series that is none of them (localizers, derived series, other modalities,
            see `candidate_series`), and why.

    Raises:
        AmbiguousSeriesError: the folder holds CTs of several patients.
        InputNotFoundError, UnreadableInputError, UnsupportedImageError: it holds no DICOM, or no CT.
    """
    from attunet3d.io.dicom.find import candidate_series, find_series
    from attunet3d.io.paths import existing

    folder = existing(folder)
    found = find_series(folder)
    _, reasons = candidate_series(found)
    cases = []
    for number, series in enumerate(found, 1):
        case = SeriesCase(folder, number, series)
        if series.uid not in reasons:
            cases.append(case)
        elif left_out is not None:
            left_out.append(f"{case}: {reasons[series.uid]}: {series}")
    return cases


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a CT without its format's suffix: ``case_7.nii.gz`` and the folder ``case_7`` are both "case_7".

    The second series of that folder is "case_7_series2", see `SeriesCase`.
    """
    if isinstance(path, SeriesCase):
        return f"{case_name(path.folder)}_series{path.number}"
    name = Path(os.path.abspath(path)).name  # of a link its own name, not the target's
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def alike(name: str) -> str:
    """The same text for names that are one file's on some file systems: in capitals or not, accents in one code or two.

    So do those of macOS, Windows, many USB disks and network shares.
    """
    return normalize("NFD", normalize("NFD", name).casefold())


def said_alike(names: Iterable[str]) -> str:
    """Names that are the same or `alike`, in words: each once, and why they cannot stand beside each other."""
    different = list(dict.fromkeys(names))
    said = " and ".join(f'"{name}"' for name in different)
    return said if len(different) == 1 else f"{said}, which {ALIKE}"


def alike_names(names: Sequence[str]) -> list[list[int]]:
    """The places of names that are the same or `alike`, for each such name that is there more than once."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(alike(name), []).append(index)
    return [same for same in places.values() if len(same) > 1]


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
    for same in alike_names([case_name(p) for p in found]):
        names = " and ".join(dict.fromkeys(repr(case_name(found[index])) for index in same))
        why = f", which {ALIKE}" if " and " in names else ""
        raise ConfigError(f"{root}: holds several CTs named {names}{why}; rename all but one")
    return [{"image": str(p)} for p in found or [root]]
