"""What lies in a folder and below it, for readers that open every file."""

from __future__ import annotations

import os
from pathlib import Path

from attunet3d.errors import InputNotFoundError, UnreadableInputError


def files_below(folder: Path) -> tuple[list[Path], int]:
    """Every file in a folder and below it in the order of their names, and how many links to folders there are.

    Links to folders are not followed: they can lead round in circles. Pipes and devices are left out, since reading
    them may never end, and so are links to them; a dead link is not, since it may stand for a slice.
    Raises UnreadableInputError for a folder that cannot be listed: it may hold a part of the scan.
    """
    found: list[Path] = []
    links = 0
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders.sort()
        links += sum(os.path.islink(os.path.join(root, name)) for name in folders)
        paths = (Path(root, name) for name in sorted(names))
        found += [path for path in paths if path.is_file() or (path.is_symlink() and not os.path.exists(path))]
    return found, links


def _unreadable(error: OSError) -> None:
    raise UnreadableInputError(
        f"{error.filename}: the folder cannot be listed ({error.strerror}); check its permissions"
    ) from error


PathLike = str | os.PathLike[str]


def existing(path: PathLike) -> Path:
    """The path of something that is there. Raises InputNotFoundError."""
    path = Path(path)
    if not os.path.exists(path):  # not Path.exists, which raises for names that are too long
        raise InputNotFoundError(f"{path}: does not exist; check the path")
    return path


def path_as_listed(folder: PathLike, text: str) -> str:
    """Read a path, relative to a folder, in a file that may have been written on Windows.

    Returns:
        The path with backslashes as slashes, unless something is called as it is written.
    """
    return text if os.path.lexists(os.path.join(folder, text)) else text.replace("\\", "/")
