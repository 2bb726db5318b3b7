"""Fingerprint inputs without reading them, and distinguish inputs from results in the same folder."""

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

FileStates = dict[str, tuple[int, int]]  # size and modification time in ns, by path

_MAP = re.compile(r"_attention_level\d+(_gate\d+)?\.nii\.gz$")
_OF_A_RUN = {".run.lock", "results.csv", "run.json", "summary.json"}
_DETACHED = {".mhd": "metaimage", ".mha": "metaimage", ".nhdr": "nrrd", ".nrrd": "nrrd"}


def input_files(ct: str | os.PathLike[str], leave_out: str | os.PathLike[str] | None = None) -> FileStates:
    """List the files of an input, with their sizes and modification times.

    Those of a folder are all files below it, except results of this package; a detached header has its data file too.
    Missing and inaccessible files are left out. As in the readers, links to folders are not followed.

    Args:
        ct: a file or a DICOM folder.
        leave_out: a subfolder to skip, such as the one for results.
    """
    path = os.fspath(ct)
    if os.path.isdir(path):
        return {file: state for file in _below(path, leave_out) if (state := file_state(file)) is not None}
    files = {path: file_state(path)}
    kind = _DETACHED.get(os.path.splitext(path)[1].lower())
    state = files[path]
    if kind is not None and state is not None and state[0] <= MAX_HEADER_BYTES:  # a larger one holds its voxels itself
        with suppress(AttUNet3dError, OSError):  # the reader reports it
            data = str(data_file(Path(path), kind))
            files[data] = file_state(data)
    return {file: state for file, state in files.items() if state is not None}


def input_sha256(
    ct: str | os.PathLike[str], series_uid: str | None = None, files: Mapping[str, tuple[int, int]] | None = None
) -> str:
    """Return the SHA-256 of an input's path, its files' names, sizes and modification times, and the chosen series.

    Names and UIDs cannot be recovered from it. It changes when the input is moved or rewritten.

    Args:
        ct: the input as given; a link counts as its target.
        series_uid: series of a DICOM folder; not needed for a ``SeriesCase``.
        files: from ``input_files``, if already known.
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
    """Return size and modification time in ns of a file (for a link: of its target); None if it is inaccessible."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def own_files(names: Collection[str]) -> set[str]:
    """Return which names in a folder are results of this package, and so no input.

    A mask only counts if its record exists: ``x_seg.nii.gz`` without ``x_seg.json`` may be an input.
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
