"""List the cases of a run with their ids, from a manifest or a folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attunet3d.errors import AmbiguousSeriesError, AttUNet3dError, ConfigError, InputNotFoundError
from attunet3d.io.cases import case_name, collision_key, name_collisions, partition_series, quote_collision
from attunet3d.io.identity import own_files
from attunet3d.io.paths import path_as_listed
from attunet3d.io.printable import UID, printable
from attunet3d.io.slabs import DICOM_SUFFIXES, IMAGE_SUFFIXES
from attunet3d.many.manifest_rows import COLUMNS, read_rows

_UNSAFE = re.compile(r'[/\\:*?"<>|]')
# Devices of Windows, with any suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *\.", re.IGNORECASE)
MOST_CHARACTERS = 200  # of an id: file names have 255 bytes, and suffixes are added


class ManyCase(NamedTuple):
    """A CT of a run: the id with which names of its files begin, the absolute path, and which DICOM series there."""

    id: str
    path: str
    series_uid: str | None = None


@dataclass(frozen=True)
class Found:
    """A CT that was found in a folder; its name becomes its id if no other CT has the same."""

    name: str
    path: Path
    series_uid: str | None = None


def read_manifest(path: Path) -> list[ManyCase]:
    """Read the cases of a table (CSV) or of JSON lines: path, and optionally id and series_uid; see ``read_rows``.

    Paths are relative to the manifest's folder. The default of an id is the name of the CT, see ``case_name``.

    Raises:
        ConfigError: the manifest cannot be read, or an id is unsafe, duplicate, or contains a UID.
    """
    cases = []
    for line, row in read_rows(path):
        unknown = set(row) - set(COLUMNS)
        values = {key: row.get(key) or None for key in COLUMNS}
        if any("\0" in value for value in values.values() if isinstance(value, str)):
            raise ConfigError(f"{path}, line {line}: a value contains a NUL character, which no path or UID can")
        if unknown or not all(value is None or isinstance(value, str) for value in values.values()):
            raise ConfigError(f"{path}, line {line}: expected texts for {', '.join(COLUMNS)}, and nothing else")
        if values["path"] is None:
            raise ConfigError(f"{path}, line {line}: no path; each case needs one")
        ct = os.path.abspath(path.parent / path_as_listed(path.parent, values["path"]))
        given = values["id"]
        cases.append(ManyCase(_without_uid(case_name(ct)) if given is None else given, ct, values["series_uid"]))
    check_cases(cases, path)
    return cases


def check_cases(cases: list[ManyCase], source: Path) -> None:
    """Raise ConfigError if there are no cases, or for ids that cannot name files or are not distinct."""
    if not cases:
        raise ConfigError(f"{source}: no CTs; give NIfTI files, DICOM folders, or a manifest that lists them")
    for case in cases:
        name, hint = printable(case.id), f"give {printable(case.path)} another id in a manifest"
        if _safe(case.id) != case.id:
            raise ConfigError(
                f'id "{name}": cannot name a file on every system (no / \\ : * ? " < > |, no control character, no dot '
                f"at the start, no space at either end, no Windows device such as con.1); {hint}"
            )
        if len(case.id.encode()) > MOST_CHARACTERS:
            raise ConfigError(f"id {name[:20]}...: longer than {MOST_CHARACTERS} bytes; {hint}")
        if UID.search(case.id):
            raise ConfigError(f'id "{name}": contains a DICOM UID, which file names must not; {hint}')
    for same in name_collisions([case.id for case in cases]):
        ids = quote_collision(cases[index].id for index in same)
        paths = ", ".join(printable(cases[index].path) for index in same)
        raise ConfigError(f"id {ids}: {len(same)} cases have it ({paths}); give them other ids in a manifest")


def entries_of(folder: Path, output: Path | None = None) -> list[Path]:
    """Split a folder into entries for ``list_entry``: those of the folder, or itself if it is one scan.

    Results are left out, and so is their folder.

    Raises:
        InputNotFoundError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        raise InputNotFoundError(f"{folder}: no such manifest or folder")
    try:
        entries = _listed(folder)
    except OSError as error:
        raise InputNotFoundError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    loose = [p for p in entries if _is_file(p) and not _is_image(p)]
    if any(map(_is_dicom, loose)):
        return [folder]
    results = None if output is None else os.path.realpath(output)
    within = os.path.realpath(folder)
    return [
        p
        for p in entries
        if (os.path.isdir(p) and not _is_round(p, within) and os.path.realpath(p) != results)
        or _is_image(p)
        or not os.path.exists(p)
    ]


def list_entry(entry: Path, left_out: list[str], output: Path | None = None) -> list[Found]:
    """List the CTs in a file or folder: image files, and DICOM series as ``attunet3d inspect`` finds them.

    A folder of several patients is split into its subfolders. Damaged or ambiguous images are cases too, and will fail
    with the reason. Images that are not a CT to segment add a line to ``left_out``. The folder ``output`` is not
    searched, and results elsewhere are left out.
    """
    try:
        return _list_entry(entry, left_out, None if output is None else os.path.realpath(output))
    except OSError as error:
        left_out.append(f"{entry}: cannot be accessed ({error.strerror}); check its permissions")
        return []


def _list_entry(entry: Path, left_out: list[str], results: str | None) -> list[Found]:
    if _is_file(entry):
        return [Found(_name(entry), entry)]
    if not os.path.exists(entry):
        left_out.append(f"{entry}: a broken link; remove it, or restore its target")
        return []
    images = [p for p in _images_below(entry, results, left_out) if not p.name.startswith(".")]
    found = [Found(_name(p), p) for p in images]
    name = _name(entry)
    if _holds_results_only(entry, results):
        return found
    try:
        cases, other_series = partition_series(entry)
        left_out += other_series
        found += [Found(f"{name}_series{case.number}", entry, case.series.uid) for case in cases]
    except InputNotFoundError as error:
        if not images:
            left_out.append(str(error))
    except AmbiguousSeriesError:
        listed = _listed(entry)
        below = [p for p in listed if p.is_dir() and not p.is_symlink() and os.path.realpath(p) != results]
        loose = any(_is_dicom(p) for p in listed if _is_file(p) and not _is_image(p))
        if loose or not below:
            return [*found, Found(name, entry)]
        loose_images = [Found(_name(p), p) for p in images if p.parent == entry]
        return loose_images + [case for folder in below for case in _list_entry(folder, left_out, results)]
    except AttUNet3dError:
        found.append(Found(name, entry))
    return found


def name_cases(found: Iterable[Found], root: Path) -> list[ManyCase]:
    """Make ids for the CTs found below ``root``: their names, preceded by the relative folder if names collide.

    If ids still collide, or cannot name files, a short hash of the relative path is added.

    Raises:
        ConfigError: as ``check_cases``.
    """
    found = list(found)
    names = [case.name for case in found]
    places = [_place(case.path, root) for case in found]
    often = Counter(map(collision_key, names))
    for index, place in enumerate(places):
        if often[collision_key(names[index])] > 1:
            folders = os.path.dirname(place).split("/")
            names[index] = "_".join([*(_without_uid(f) for f in folders if f not in ("", ".", "..")), names[index]])
    often = Counter(map(collision_key, names))
    cases = []
    for name, place, case in zip(names, places, found, strict=True):
        safe = _safe(name)
        if safe != name or often[collision_key(name)] > 1 or len(safe.encode()) > MOST_CHARACTERS:
            short = safe.encode()[: MOST_CHARACTERS - 9].decode("utf-8", "ignore").rstrip()
            safe = f"{short}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
        cases.append(ManyCase(safe, str(case.path), case.series_uid))
    check_cases(cases, root)
    return cases


def _listed(folder: Path) -> list[Path]:
    """List a folder without hidden files and results."""
    names = [entry.name for entry in os.scandir(folder)]
    own = own_files(names)
    return [folder / name for name in sorted(names) if not name.startswith(".") and name not in own]


def _images_below(folder: Path, results: str | None, left_out: list[str]) -> Iterator[Path]:
    """Yield image files below a folder; links to folders are not followed, as they can form circles."""

    def unreadable(error: OSError) -> None:
        left_out.append(f"{error.filename}: the folder cannot be listed ({error.strerror}); check its permissions")

    for root, folders, _ in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(root, name)) != results)
        yield from (path for path in _listed(Path(root)) if _is_image(path) and _is_file(path))


def _holds_results_only(folder: Path, results: str | None) -> bool:
    """Whether all DICOM files of a folder are results: their SEGs would be read as a study without a CT."""
    found = False
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(root, name)) != results]
        own = own_files(names)
        found = found or bool(own)
        if any(_is_dicom(path) for path in _listed(Path(root)) if _is_file(path) and not _is_image(path)):
            return False
    return found


def _is_round(path: Path, within: str) -> bool:
    """Whether a path is a link to a folder inside the searched one, or to one that contains it."""
    target = os.path.realpath(path)
    try:
        return path.is_symlink() and os.path.commonpath([target, within]) in (target, within)
    except ValueError:  # on another drive of Windows
        return False


def _place(path: Path, root: Path) -> str:
    """Return the path of a case relative to a folder, with slashes on every system."""
    try:
        return Path(os.path.relpath(path, root.resolve())).as_posix()
    except ValueError:  # Windows resolves a mapped drive to the server's folder
        return Path(os.path.relpath(path, root)).as_posix()


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # Path.is_file raises if a folder is inaccessible


def _name(path: Path) -> str:
    return _without_uid(case_name(path))


def _safe(name: str) -> str:
    """Replace the parts of a name that files cannot have on every system."""
    shown = "".join(c if printable(c) == c else "_" for c in _UNSAFE.sub("_", name))
    safe = shown.strip().lstrip(". ") or "ct"
    return f"_{safe}" if _DEVICE.match(safe) else safe


def _without_uid(name: str) -> str:
    """Replace UIDs in a name, which archives use for folders and file names must not contain, by a short hash."""
    return UID.sub(lambda uid: "uid" + hashlib.sha256(uid[0].encode()).hexdigest()[:8], name)


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
