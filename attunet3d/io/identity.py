"""What an input and a result are known by: whether they are still what they were, without reading a CT."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attunet3d.errors import AttUNet3dError
from attunet3d.io.cases import SeriesCase
from attunet3d.io.itk_header import MAX_HEADER_BYTES, data_file
from attunet3d.io.output_formats import FORMATS, PICTURE_SUFFIX, RECORD_SUFFIX
from attunet3d.io.writer import TEMPORARY

FileStates = dict[str, tuple[int, int]]  # size and time of change in ns, by path

_MAP = re.compile(r"_attention_level\d+(_gate\d+)?\.nii\.gz$")
_OF_A_RUN = {".run.lock", "results.csv", "run.json", "summary.json"}
_DETACHED = {".mhd": "metaimage", ".mha": "metaimage", ".nhdr": "nrrd", ".nrrd": "nrrd"}


def input_files(ct: str | os.PathLike[str], leave_out: str | os.PathLike[str] | None = None) -> FileStates:
    """The files of an input: of a folder all below it but our own results, of a detached header also its data.

    What is not there, or cannot be looked at, is none of them. Links to folders are not followed, as by the readers.

    Args:
        ct: a file or a DICOM folder.
        leave_out: a folder that is not looked into, if it lies below: the one that results go to.
    """
    path = os.fspath(ct)
    if os.path.isdir(path):
        return {file: state for file in _below(path, leave_out) if (state := file_state(file)) is not None}
    files = {path: file_state(path)}
    kind = _DETACHED.get(os.path.splitext(path)[1].lower())
    state = files[path]
    if kind is not None and state is not None and state[0] <= MAX_HEADER_BYTES:  # larger: it holds its voxels itself
        with suppress(AttUNet3dError, OSError):  # the reader will say what is wrong with it
            data = str(data_file(Path(path), kind))
            files[data] = file_state(data)
    return {file: state for file, state in files.items() if state is not None}


def input_sha256(
    ct: str | os.PathLike[str], series_uid: str | None = None, files: Mapping[str, tuple[int, int]] | None = None
) -> str:
    """The SHA-256 of an input's place, of its files' names, sizes and times, and of the series that is asked for.

    No name and no UID can be read from it. It changes when an input is moved or written anew.

    Args:
        ct: as given; a link is as what it leads to.
        series_uid: of a DICOM folder; that of a `SeriesCase` need not be given.
        files: from `input_files`, which is asked otherwise.
    """
    if series_uid is None and isinstance(ct, SeriesCase):
        series_uid = ct.series.uid
    path = os.fspath(ct)
    files = input_files(path) if files is None else files
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path)) + b"\0" + (series_uid or "").encode())
    for file in sorted(files):
        name = os.fsencode(os.path.relpath(file, path))
        digest.update(b"\0%s\0%d\0%d" % (name, *files[file]))
    return digest.hexdigest()


def file_state(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Size and time of change in ns of a file, or of what a link leads to; None where there is none to look at."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def own_files(names: Collection[str]) -> set[str]:
    """Of the names in a folder those that this package wrote there as results, and so are no input.

    A mask is one if its record lies beside it; ``x_seg.nii.gz`` without ``x_seg.json`` is a file like any other.
    """
    own = {name for name in names if TEMPORARY.fullmatch(name)}
    if ".run.lock" in names:
        own |= _OF_A_RUN | {name for name in names if name.endswith("_failed.json")}
    stems = {name.removesuffix(RECORD_SUFFIX) for name in names if name.endswith(RECORD_SUFFIX)}
    suffixes = (RECORD_SUFFIX, PICTURE_SUFFIX, *(output.suffix for output in FORMATS.values()))

    def is_result(name: str) -> bool:
        of_map = _MAP.search(name)
        endings = [of_map[0]] if of_map else [suffix for suffix in suffixes if name.endswith(suffix)]
        return any(name.removesuffix(ending) in stems for ending in endings)

    return own.intersection(names) | set(filter(is_result, names))


def _below(folder: str, leave_out: str | os.PathLike[str] | None) -> Iterator[str]:
    results = "" if leave_out is None else os.path.realpath(leave_out)
    for root, folders, names in os.walk(folder):
        if os.path.basename(results) in folders and os.path.realpath(root) == os.path.dirname(results):
            folders.remove(os.path.basename(results))
        folders.sort()
        own = own_files(names)
        yield from (os.path.join(root, name) for name in sorted(names) if name not in own)
