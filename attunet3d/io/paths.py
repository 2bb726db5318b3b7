"""Check input paths, and list the files of a folder and its subfolders."""

from __future__ import annotations

import os
from pathlib import Path

from attunet3d.errors import InputNotFoundError, UnreadableInputError

PathLike = str | os.PathLike[str]


def files_below(folder: Path) -> tuple[list[Path], int]:
    """Return every file in a folder and its subfolders, ordered by name, and the number of links to folders.

    Links to folders are not followed, as they may form cycles. Pipes and devices, and links to them, are left out,
    since reading them may never end. Broken links are included: a missing slice must not go unnoticed.

    Raises:
        UnreadableInputError: a folder cannot be listed: it may hold a part of the scan.
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


def existing(path: PathLike) -> Path:
    """Return ``path`` as a ``Path``.

    Raises:
        InputNotFoundError: it does not exist.
    """
    path = Path(path)
    if not os.path.exists(path):  # not Path.exists, which raises for names that are too long
        raise InputNotFoundError(f"{path}: does not exist; check the path")
    return path


def path_as_listed(folder: PathLike, text: str) -> str:
    """Convert a path that was listed in a file, possibly on Windows: backslashes to slashes.

    It is unchanged if ``folder`` has an entry with the backslashes in its name.
    """
    return text if os.path.lexists(os.path.join(folder, text)) else text.replace("\\", "/")
