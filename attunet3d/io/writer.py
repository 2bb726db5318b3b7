"""Write results atomically: each file is written to a temporary path in the same folder, and then renamed."""

import errno
import hashlib
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from nibabel.spatialimages import HeaderDataError

from attunet3d.errors import OutputError

# Largest difference in mm (or mm per voxel) between an affine and its qform, which is stored as float32.
_QFORM_TOLERANCE = 1e-4
# Name of a temporary file: random part, host and process that write it; before version 0.6 only the random part.
TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-(?:(?P<host>[0-9a-f]{8})-(?P<process>\d+)-)?.+", re.DOTALL)
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.4)  # seconds
_ABANDONED_SECONDS = 7 * 24 * 3600


@contextmanager
def temporary_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, with its suffix; a file there is removed when the block ends.

    Raises:
        OutputError: the folder does not exist, or the block, which should only write, raises an OSError.
    """
    path = Path(path)
    if os.path.isdir(path):  # not Path.is_dir, which raises for names that are too long
        raise OutputError(f"{path}: is a folder; give a file name")
    if sys.platform == "win32" and ":" in path.name:  # what follows it would be a stream of another file
        raise OutputError(f"{path}: a file name cannot hold a colon on Windows; choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
    except OSError as e:
        reason = e.strerror or " ".join(str(e).split())
        raise OutputError(f"{path}: cannot be written ({reason}); {_hint(e)}") from e
    finally:
        with suppress(OSError):
            temporary.unlink()


def _hint(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "free some space"
    if sys.platform == "win32" and isinstance(error, PermissionError):  # open files cannot be replaced there
        return "close the program that has it open, or choose another folder"
    return "choose another folder"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, with its suffix, which becomes ``path`` if the block succeeds.

    If the block fails or is interrupted, the temporary file is removed, and an existing ``path`` stays as it was.
    Errors are those of ``temporary_path``.
    """
    with temporary_path(path) as temporary:
        yield temporary
        replace_as_one([(temporary, Path(path))])


def replace_as_one(new: Sequence[tuple[Path, Path]], former: Sequence[Path] = ()) -> None:
    """Replace the files of a result in a folder, so that files of two results are never mixed, even if interrupted.

    The last of ``new`` is the main file, such as the record. If there are several files, the old main file is removed
    first, and the new one is put in place last: whenever it exists, all others belong to it, even after a power
    failure.

    Args:
        new: temporary paths of complete files, and their final paths.
        former: other files of the old result, which are removed; they need not exist.
    """
    temporary, main = new[-1]
    for file, _ in new:
        with file.open("rb+") as f:
            os.fsync(f.fileno())
    if len(new) > 1 or former:
        for old in (main, *former):
            with suppress(FileNotFoundError):
                os.unlink(old)
        _sync_folder(main.parent)
        for file, path in new[:-1]:
            _replace(file, path)
        _sync_folder(main.parent)
    _replace(temporary, main)
    _sync_folder(main.parent)


def _replace(file: Path, place: Path) -> None:
    """Rename a file; on Windows, where virus scanners briefly open new files, try again for a second."""
    for pause in _PAUSES if sys.platform == "win32" else ():
        try:
            os.replace(file, place)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    os.replace(file, place)


def _sync_folder(folder: Path) -> None:
    """Flush renames to the disk before anything later; has no effect on Windows and some network storage."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(name: str) -> str:
    """Return a unique name with the process that writes the file, see ``remove_left_behind``."""
    return f".tmp-{uuid.uuid4().hex[:8]}-{_host()}-{os.getpid()}-{name}"


def remove_left_behind(folder: str | os.PathLike[str], exclusive: bool = False) -> None:
    """Remove temporary files of processes that have ended; of those on other hosts, files older than a week.

    No file takes a week to write.

    Args:
        folder: searched without its subfolders; need not exist.
        exclusive: no other process writes to the folder: all temporary files are removed.
    """
    try:
        found = [(entry, TEMPORARY.fullmatch(entry.name)) for entry in os.scandir(folder)]
    except OSError:  # it does not exist yet, or writing to it will fail
        return
    for entry, match in found:
        if match is None:
            continue
        with suppress(OSError):
            if exclusive:
                dead = True
            elif match["host"] == _host():
                dead = not _is_alive(int(match["process"]))
            else:
                dead = time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_SECONDS
            if dead:
                os.unlink(entry.path)


def _host() -> str:
    """Identify the host, or container, in which process numbers are unique."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        return bool(psutil.pid_exists(process))
    except (psutil.Error, OSError, OverflowError):  # unknown: its files stay
        return True


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create an output folder, with its parents, if it does not exist.

    Raises:
        OutputError: it cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder}: cannot make the output folder ({e.strerror}); choose another") from e
    return folder


def no_link(path: str, flags: int) -> int:
    """Open a file, as ``opener`` of ``open``, unless it is a symbolic link, which may lead anywhere.

    Raises:
        OSError: it is a link, or cannot be opened.
    """
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):  # Windows
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text atomically; undecodable bytes of file names in it are kept.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
    return Path(path)


def write_mask(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a mask atomically as NIfTI.

    Args:
        path: a .nii.gz or .nii file.
        mask: uint8 (X, Y, Z).
        affine: from voxel indices to RAS+ mm.
        metadata: ``Volume.metadata`` of the CT. If that was NIfTI, its geometry fields are copied, so that every
            viewer shows the mask exactly on the CT. Otherwise the sform is the affine with code 1 (scanner), and so is
            the qform unless the affine is sheared.

    Raises:
        OutputError: the mask or the name is unsuitable, or the file cannot be written.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii.gz", ".nii")):
        raise OutputError(f"{path}: masks are written as NIfTI; give a name that ends in .nii.gz")
    if mask.dtype not in (np.uint8, np.bool_) or mask.ndim != 3:
        raise OutputError(f"{path}: the mask is {mask.dtype} of shape {mask.shape}; expected uint8 (X, Y, Z)")
    with atomic_path(path) as temporary:
        save_mask(temporary, mask, affine, metadata=metadata)
    return path


def save_mask(path: Path, mask: np.ndarray, affine: np.ndarray, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a mask like ``write_mask``, but to a path that is already temporary; nothing is checked or cleaned up."""
    nib.save(_nifti(mask, affine, metadata), path)


def save_map(path: Path, values: np.ndarray, affine: np.ndarray, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write fractions, uint8 (X, Y, Z), like ``save_mask``, with slope 1/255 in the header: viewers show 255 as 1."""
    image = _nifti(values, affine, metadata)
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, path)


def _nifti(array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, Any] | None) -> nib.Nifti1Image:
    # NIfTI-2 holds its affine in double precision: only it can hold that of a NIfTI-2 CT exactly.
    kind = nib.Nifti2Image if (metadata or {}).get("nifti_version") == 2 else nib.Nifti1Image
    image = kind(array.astype(np.uint8, copy=False), affine)
    set_geometry(image, np.asarray(affine, np.float64), metadata)
    return image


def set_geometry(image: nib.Nifti1Image, affine: np.ndarray, metadata: Mapping[str, Any] | None) -> None:
    """Put ``affine`` (voxel to RAS+ mm) into the header, with the CT's own fields (``metadata``) if equivalent."""
    image.header.set_xyzt_units("mm")
    geometry = (metadata or {}).get("nifti_geometry")
    if geometry:
        copied = image.header.copy()
        for field, value in geometry.items():
            if field == "pixdim":
                copied["pixdim"][:4] = value[:4]
            else:
                copied[field] = value
        if np.array_equal(copied.get_best_affine(), affine):
            for field in geometry:
                image.header[field] = copied[field]
            return
    image.header.set_sform(affine, code=1)
    try:
        image.header.set_qform(affine, code=1)
    except HeaderDataError:
        image.header["qform_code"] = 0
    if not np.allclose(image.header.get_qform(), affine, rtol=0, atol=_QFORM_TOLERANCE):
        image.header["qform_code"] = 0
