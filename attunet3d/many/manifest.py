"""Which CTs are to be segmented, and what each is called: a manifest, or what lies in a folder."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attunet3d.errors import AmbiguousSeriesError, AttUNet3dError, ConfigError, InputNotFoundError
from attunet3d.io.cases import case_name, segmentable_series
from attunet3d.io.printable import UID, printable
from attunet3d.io.slabs import DICOM_SUFFIXES, IMAGE_SUFFIXES

COLUMNS = ("path", "id", "series_uid")
MOST_CHARACTERS = 200  # of an id: file names have 255 bytes, and suffixes are added


class ManyCase(NamedTuple):
    """One CT of a run: what its files are called, an absolute path, and which DICOM series there."""

    id: str
    path: str
    series_uid: str | None = None


@dataclass(frozen=True)
class Found:
    """A CT in a folder that was walked: its id may change while others have the same."""

    name: str
    path: Path
    series_uid: str | None = None


def read_manifest(path: Path) -> list[ManyCase]:
    """The cases of a CSV file with a header, or of JSON lines (.jsonl): path, and if wanted id and series_uid.

    Paths are relative to the manifest's folder. Without an id a case is called as its CT (see `case_name`).
    Raises ConfigError for a manifest that cannot be read, and for ids that are unsafe, there twice, or hold a UID.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(_json_lines(path, text) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv(path, text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a manifest ({error}); give CSV or JSON lines in UTF-8") from error
    cases = []
    for line, row in rows:
        unknown = set(row) - set(COLUMNS)
        values = {key: row.get(key) or None for key in COLUMNS}
        if unknown or not all(value is None or isinstance(value, str) for value in values.values()):
            raise ConfigError(f"{path}, line {line}: expected texts for {', '.join(COLUMNS)}, and nothing else")
        if values["path"] is None:
            raise ConfigError(f"{path}, line {line}: no path; each case needs one")
        ct = os.path.abspath(path.parent / values["path"])
        given = values["id"]
        cases.append(ManyCase(_without_uid(case_name(ct)) if given is None else given, ct, values["series_uid"]))
    check_cases(cases, path)
    return cases


def check_cases(cases: list[ManyCase], source: Path) -> None:
    """Raise ConfigError for no cases, and for ids that cannot name files or do not tell the cases apart."""
    if not cases:
        raise ConfigError(f"{source}: no CTs; give NIfTI files, DICOM folders, or a manifest that lists them")
    for case in cases:
        name, cure = printable(case.id), f"give {printable(case.path)} another id in a manifest"
        if re.search(r'[/\\:*?"<>|]', case.id) or name != case.id or case.id != case.id.strip() or case.id[:1] == ".":
            raise ConfigError(f'id {name!r}: cannot name a file (no / \\ : * ? " < > |, no dot at the start); {cure}')
        if len(case.id.encode()) > MOST_CHARACTERS:
            raise ConfigError(f"id {name[:20]}...: longer than {MOST_CHARACTERS} bytes; {cure}")
        if UID.search(case.id):
            raise ConfigError(f"id {name!r}: holds a DICOM UID, which no file name may; {cure}")
    for name, count in Counter(case.id for case in cases).items():
        if count > 1:
            paths = ", ".join(printable(case.path) for case in cases if case.id == name)
            raise ConfigError(f"id {name!r}: {count} cases have it ({paths}); give them ids in a manifest")


def entries_of(folder: Path) -> list[Path]:
    """What is to be listed by itself, with `list_entry`: each entry of a folder, or the folder if it is one scan."""
    if not folder.is_dir():
        raise InputNotFoundError(f"{folder}: no such manifest or folder")
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    loose = [p for p in entries if p.is_file() and not _is_image(p)]
    return [folder] if any(map(_is_dicom, loose)) else [p for p in entries if p.is_dir() or _is_image(p)]


def list_entry(entry: Path, left_out: list[str]) -> list[Found]:
    """The CTs in a file or folder: image files, and DICOM series as `attunet3d inspect` finds them.

    A folder of several patients is taken apart into its subfolders. What is damaged or ambiguous is a case too: it
    fails with its reason. A line is added to `left_out` for what is no CT to segment.
    """
    if entry.is_file():
        return [Found(_without_uid(case_name(entry)), entry)]
    images = [p for p in sorted(entry.rglob("*")) if _is_image(p) and p.is_file() and not p.name.startswith(".")]
    found = [Found(_without_uid(case_name(p)), p) for p in images]
    name = _without_uid(case_name(entry))
    try:
        for case in segmentable_series(entry, left_out):
            found.append(Found(f"{name}_series{case.number}", entry, case.series.uid))
    except InputNotFoundError as error:
        if not images:
            left_out.append(str(error))
    except AmbiguousSeriesError:
        below = sorted(p for p in entry.iterdir() if p.is_dir() and not p.is_symlink())
        loose = any(_is_dicom(p) for p in entry.iterdir() if p.is_file() and not _is_image(p))
        if loose or not below:
            return [*found, Found(name, entry)]
        loose_images = [Found(_without_uid(case_name(p)), p) for p in images if p.parent == entry]
        return loose_images + [case for folder in below for case in list_entry(folder, left_out)]
    except AttUNet3dError:
        found.append(Found(name, entry))
    return found


def name_cases(found: Iterable[Found], root: Path) -> list[ManyCase]:
    """Ids for what was found below `root`: its name, with its relative folder before it where others have the same.

    Raises ConfigError as `check_cases`.
    """
    found = list(found)
    often = Counter(case.name for case in found)
    cases = []
    for case in found:
        name = case.name
        if often[name] > 1:
            folders = os.path.relpath(case.path.parent, root.resolve()).split(os.sep)
            name = "_".join([*(_without_uid(f) for f in folders if f not in (".", "..")), name])
        cases.append(ManyCase(name, str(case.path), case.series_uid))
    check_cases(cases, root)
    return cases


def _without_uid(name: str) -> str:
    """`name` with a short hash for a UID, which no file name may hold; archives call folders so."""
    return UID.sub(lambda uid: "uid" + hashlib.sha256(uid[0].encode()).hexdigest()[:8], name)


def _csv(path: Path, text: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(text.splitlines())
    if "path" not in (reader.fieldnames or ()):
        raise ConfigError(f'{path}: no column "path"; the first line must name the columns: path,id,series_uid')
    for row in reader:
        yield reader.line_num, row


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ConfigError(f'{path}, line {number}: expected an object such as {{"path": "ct.nii.gz"}}')
        yield number, row


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
