"""The output folder of a run: one run at a time, and a table that grows by a line when a case ends."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from attunet3d.errors import ConfigError, OutputError
from attunet3d.io.locking import locked as locked
from attunet3d.io.writer import write_text_atomic

DONE, FAILED, SET_ASIDE = "done", "failed", "set aside"
TABLE, SETTINGS = "results.csv", "run.json"
# Of files that a killed worker did not finish (see `atomic_path`).
_LEFT_BEHIND = re.compile(r"\.tmp-[0-9a-f]{8}-.*")


@dataclass(frozen=True)
class Row:
    """One case of results.csv, when it has ended; `seconds` are those of its stages, `flags` the record's warnings."""

    id: str
    status: str
    error_type: str = ""
    volume_ml: str = ""
    seconds: str = ""
    flags: str = ""
    output: str = ""
    message: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def remove_left_behind(folder: Path) -> None:
    """Remove what killed workers did not finish."""
    for entry in os.scandir(folder):
        if _LEFT_BEHIND.fullmatch(entry.name):
            with suppress(OSError):
                os.unlink(entry.path)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what masks are made with; raise ConfigError where those in the folder were made with something else."""
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings, default=str))
    if not path.exists() or not any(folder.glob("*_seg.json")):
        write_text_atomic(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); choose another output folder") from error
    changed = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
    if changed:
        raise ConfigError(
            f"{folder}: holds results of a run with other settings ({', '.join(changed)}); choose another folder, or "
            "give what was given then"
        )


class ResultsTable:
    """results.csv: what has ended is read when it is opened, and each further case is on disk before `add` returns.

    A line that a killed run did not finish is dropped: its case has not ended.

    Args:
        folder: of the run, which must be `locked`.

    Raises:
        OutputError: the table cannot be read or written, or is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE
        self.rows: dict[str, str] = {}  # status by id
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            header, *lines = list(csv.reader(whole.decode("utf-8").splitlines())) or [list(COLUMNS)]
            if tuple(header) != COLUMNS:
                raise OutputError(f"{self.path}: not a table of segment-many; choose another output folder")
            self.rows |= {row[0]: row[1] for row in lines}
            self._file = self.path.open("ab")
            self._file.truncate(len(whole))
            if not whole:
                self._append(COLUMNS)
        except (OSError, UnicodeDecodeError, IndexError, csv.Error) as error:
            raise OutputError(f"{self.path}: cannot be used ({error}); choose another output folder") from error

    def add(self, row: Row) -> None:
        """Append a case that has ended."""
        try:
            self._append(astuple(row))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); free some space") from error
        self.rows[row.id] = row.status

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, values: tuple[str, ...]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        self._file.write(line.getvalue().encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())
