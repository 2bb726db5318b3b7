"""The headers of all DICOM files in a folder, read by several threads: over a network most of the time is waiting."""

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
_AT_ONCE = 64  # files to a task


@dataclass
class Folder:
    """What lies in a folder and below it.

    Attributes:
        headers: of the DICOM files, in the order of their paths; several for a multi-frame file.
        damaged: DICOM files whose header cannot be read.
        others: files that are not DICOM.
        links: how many links to folders there are, which are not followed.
    """

    headers: list[SliceHeader] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    links: int = 0


class Beside:
    """Which of some files lie in the same folders as others; the answer is one object for the same folders."""

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
    """Read headers only. DICOMDIR is ignored.

    Raises:
        UnreadableInputError: a file may not be opened, a folder not be listed, or a link leads to a file that is gone.
    """
    files, links = files_below(Path(folder))
    found = Folder(links=links)
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:
        warnings.simplefilter("ignore")  # pydicom warns of values that break the standard; many scanners write them
        try:
            for some in threads.map(_read, (files[k : k + _AT_ONCE] for k in range(0, len(files), _AT_ONCE))):
                for path, headers in some:
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
    """The headers of each file; none for what is not DICOM, None for what is damaged."""
    return [(path, _headers(path)) for path in paths]


def _headers(path: Path) -> list[SliceHeader] | None:
    try:
        return read_headers(path)
    except FileNotFoundError as e:
        raise UnreadableInputError(
            f"{path}: a link to a file that is gone, which may be a slice; {EXPORT_AGAIN}"
        ) from e
    except OSError as e:
        raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
    except Exception:  # pydicom lets any parser's exception through
        return [] if path.name.upper() == "DICOMDIR" else None
