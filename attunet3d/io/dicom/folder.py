"""Read the headers of all DICOM files in a folder, in several threads, since network storage has high latency."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from attunet3d.errors import UnreadableInputError
from attunet3d.io.dicom.header import SliceHeader, read_headers
from attunet3d.io.dicom.pixels import EXPORT_AGAIN
from attunet3d.io.paths import files_below

_THREADS = 8
_FILES_PER_TASK = 64


@dataclass
class Folder:
    """The files of a folder and its subfolders.

    Attributes:
        headers: those of the DICOM files, in the order of their paths; several for a multi-frame file.
        damaged: DICOM files whose header cannot be read.
        others: files that are not DICOM.
        links: number of links to folders, which are not followed.
    """

    headers: list[SliceHeader] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    links: int = 0


class InSameFolders:
    """Look up the given files by their folders; the same folders return the same tuple object."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = defaultdict(list)
        for path in paths:
            self._paths[path.parent].append(path)
        self._found: dict[frozenset[Path], tuple[Path, ...]] = {}

    def __call__(self, folders: Iterable[Path]) -> tuple[Path, ...]:
        known = frozenset(folders).intersection(self._paths)
        if known not in self._found:
            self._found[known] = tuple(sorted(path for folder in known for path in self._paths[folder]))
        return self._found[known]


def read_folder(folder: str | os.PathLike[str]) -> Folder:
    """Read the headers of all files in a folder and its subfolders, without DICOMDIR.

    Raises:
        UnreadableInputError: a file cannot be opened, a folder cannot be listed, or a link is broken.
    """
    files, links = files_below(Path(folder))
    found = Folder(links=links)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:
        warnings.simplefilter("ignore")  # pydicom warns of values that violate the standard, which are common
        try:
            for batch in threads.map(
                _read, (files[k : k + _FILES_PER_TASK] for k in range(0, len(files), _FILES_PER_TASK))
            ):
                for path, headers in batch:
                    if headers is None:
                        found.damaged.append(path)
                    elif headers:
                        found.headers += headers
                    elif path.name.upper() != "DICOMDIR":
                        found.others.append(path)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _read(paths: list[Path]) -> list[tuple[Path, list[SliceHeader] | None]]:
    """Return the headers of each file: an empty list if it is not DICOM, None if it is damaged."""
    return [(path, _headers(path)) for path in paths]


def _headers(path: Path) -> list[SliceHeader] | None:
    try:
        return read_headers(path)
    except FileNotFoundError as e:
        raise UnreadableInputError(f"{path}: a broken link, possibly to a slice; {EXPORT_AGAIN}") from e
    except OSError as e:
        raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
    except Exception:  # pydicom does not catch its parsers' exceptions
        return [] if path.name.upper() == "DICOMDIR" else None
