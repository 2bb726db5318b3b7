"""Results out: whole or not at all. Each file is written beside its place and then renamed into it."""

import errno
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from attunet3d.errors import OutputError

# Largest difference in mm (or mm per voxel) at which a quaternion, stored as float32, still stands for the affine.
QFORM_TOLERANCE = 1e-4
# Of a temporary file: random, then where and by which process it is written; before version 0.6 random alone.
TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-(?:(?P<place>[0-9a-f]{8})-(?P<process>\d+)-)?.+", re.DOTALL)
_LEFT_BEHIND_SECONDS = 7 * 24 * 3600


@contextmanager
def temporary_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` and with its suffix; what is there when the block ends is removed.

    Raises OutputError for an OSError in the block: the block should only write.
    """
    path = Path(path)
    if os.path.isdir(path):  # not Path.is_dir, which raises for names that are too long
        raise OutputError(f"{path}: is a folder; give a file name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
    except OSError as e:
        reason = e.strerror or " ".join(str(e).split())
        cure = "free some space" if e.errno == errno.ENOSPC else "choose another folder"
        raise OutputError(f"{path}: cannot be written ({reason}); {cure}") from e
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder and with the same suffix; renamed to `path` if the block succeeds.

    When the block fails, or is interrupted, the temporary file is removed and a former `path` stays as it was.
    Errors as `temporary_path`.
    """
    with temporary_path(path) as temporary:
        yield temporary
        replace_as_one([(temporary, Path(path))])


def replace_as_one(new: Sequence[tuple[Path, Path]], former: Sequence[Path] = ()) -> None:
    """Put the files of a result in place of those of a former one, in one folder; wherever that ends, none are mixed.

    The last of `new` is the one that stands for the result. Its place is the first to be empty, if anything else is
    replaced, and the last to be filled: where it is, all the others belong to it. A power failure finds the same.

    Args:
        new: whole files at temporary paths, and their places.
        former: what else there is of the former result; what is not there does not matter.
    """
    temporary, place = new[-1]
    for file, _ in new:
        with file.open("rb+") as f:
            os.fsync(f.fileno())
    if len(new) > 1 or former:
        for old in (place, *former):
            with suppress(FileNotFoundError):
                os.unlink(old)
        _sync_folder(place.parent)
        for file, other in new[:-1]:
            os.replace(file, other)
        _sync_folder(place.parent)
    os.replace(temporary, place)
    _sync_folder(place.parent)


def _sync_folder(folder: Path) -> None:
    """Have renames on the disk before anything later is; not on Windows, and some network storage cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(name: str) -> str:
    """A name that no other file has, and that says which process writes it, see `remove_left_behind`."""
    return f".tmp-{uuid.uuid4().hex[:8]}-{_place()}-{os.getpid()}-{name}"


def remove_left_behind(folder: str | os.PathLike[str], alone: bool = False) -> None:
    """Remove temporary files whose process is dead: of this machine by its number, of others after a week.

    No file takes as long to write, and what a living process of this machine writes is never touched. ``alone``: the
    caller has the folder for itself, and whatever is left in it goes.
    """
    try:
        found = [(entry, TEMPORARY.fullmatch(entry.name)) for entry in os.scandir(folder)]
    except OSError:  # it does not exist yet, or will be refused when it is written to
        return
    for entry, match in found:
        if match is None:
            continue
        with suppress(OSError):
            if alone:
                dead = True
            elif match["place"] == _place():
                dead = not _is_alive(int(match["process"]))
            else:
                dead = time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFT_BEHIND_SECONDS
            if dead:
                os.unlink(entry.path)


def _place() -> str:
    """Where process numbers mean what they mean here: the machine, or the container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # there, asking by a signal would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def make_folder(path: str | os.PathLike[str]) -> Path:
    """An output folder, made with its parents if it does not exist. Raises OutputError."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder}: cannot make the output folder ({e.strerror}); choose another") from e
    return folder


def no_link(path: str, flags: int) -> int:
    """An opener for `open`: a link, which came with a folder and may lead anywhere, is an OSError. Not on Windows."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text, whole or not at all; names of files that are no text as their bytes. Raises OutputError."""
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
    """Write a mask, uint8 (X, Y, Z), as NIfTI (.nii.gz or .nii), whole or not at all.

    `affine` maps voxels to RAS+ mm. `like` is the `source` of the CT: if that was NIfTI, the mask's header places it
    exactly as the CT's does, in every viewer. Otherwise the sform is the affine with code 1 (scanner), and the qform
    too unless the affine is sheared. Raises OutputError.
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
    """`write_mask` to a path that is temporary already, unchecked: what fails here is left to the path's owner."""
    nib.save(_nifti(mask, affine, metadata), path)


def save_map(path: Path, shares: np.ndarray, affine: np.ndarray, *, metadata: Mapping[str, Any] | None = None) -> None:
    """As `save_mask`, of uint8 (X, Y, Z) where 255 is 1: the header's slope of 1/255 lets viewers show [0, 1]."""
    image = _nifti(shares, affine, metadata)
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, path)


def _nifti(array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, Any] | None) -> nib.Nifti1Image:
    # NIfTI-2 holds its affine in double precision: only it can repeat that of a NIfTI-2 CT exactly.
    kind = nib.Nifti2Image if (metadata or {}).get("nifti_version") == 2 else nib.Nifti1Image
    image = kind(array.astype(np.uint8, copy=False), affine)
    set_geometry(image, np.asarray(affine, np.float64), metadata)
    return image


def set_geometry(image: nib.Nifti1Image, affine: np.ndarray, metadata: Mapping[str, Any] | None) -> None:
    """Put `affine` (voxel to RAS+ mm) into the header, with the source's own fields if they say the same."""
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
    if not np.allclose(image.header.get_qform(), affine, rtol=0, atol=QFORM_TOLERANCE):
        image.header["qform_code"] = 0
