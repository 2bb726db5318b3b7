"""The output folder of a run: its settings, and a table that gets a row for each finished case."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from attunet3d.errors import ConfigError, OutputError
from attunet3d.io.identity import file_state
from attunet3d.io.json_text import parse_json
from attunet3d.io.locking import LOCK
from attunet3d.io.writer import no_link, write_text_atomic

DONE, FAILED, SET_ASIDE = "done", "failed", "set aside"
TABLE, SETTINGS = "results.csv", "run.json"
# Errors of full or lost storage, whichever file it is.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True)
class Row:
    """A row of results.csv, one case.

    ``seconds`` is the sum over its stages, ``flags`` has the warnings of its record, ``record`` is the name of that
    file, and ``state`` is a hash of its input and mask, see ``done_state``.
    """

    id: str
    status: str
    error_type: str = ""
    volume_ml: str = ""
    seconds: str = ""
    flags: str = ""
    output: str = ""
    message: str = ""
    record: str = ""
    state: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run to its folder; raise ConfigError if results there are from other settings."""
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings, default=str))
    if not path.is_file() or not any(folder.glob("*_seg.json")):
        write_text_atomic(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        before = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); choose another output folder") from error
    changed = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
    if changed:
        raise ConfigError(
            f"{folder}: holds results of a run with other settings ({', '.join(changed)}); choose another folder, or "
            "use the same settings"
        )


class ResultsTable:
    """results.csv, whose rows are read when it is opened; each further row is on disk before ``add`` returns.

    An incomplete last line of a killed run is dropped, and its case is run again.

    Args:
        folder: of the run, which must be ``locked``.

    Attributes:
        rows: status and state by id; of a case with several rows, those of the last one.

    Raises:
        OutputError: the table cannot be read or written, or is another kind of file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE
        self.rows: dict[str, tuple[str, str]] = {}
        try:
            content = self.path.read_bytes() if self.path.is_file() else b""  # reading a pipe would block
            whole = content[: content.rfind(b"\n") + 1]
            table = io.StringIO(whole.decode("utf-8"), newline="")  # within quotes a line may break
            header, *lines = list(csv.reader(table, strict=True)) or [list(COLUMNS)]
            if tuple(header) != COLUMNS:
                raise OutputError(
                    f"{self.path}: not a table of segment-many, or of another version; choose another output folder"
                )
            self.rows |= {row[0]: (row[1], row[len(COLUMNS) - 1]) for row in lines}
            # Unbuffered: what could not be written to a full disk must not be written later.
            self._file = open(self.path, "ab", buffering=0, opener=no_link)  # noqa: SIM115
            self._file.truncate(len(whole))
            if not whole:
                self._append(COLUMNS)
        except (OSError, UnicodeDecodeError, IndexError, csv.Error) as error:
            raise OutputError(f"{self.path}: cannot be used ({error}); choose another output folder") from error

    def add(self, row: Row) -> None:
        """Append a row. Raises OutputError if it cannot be written, or the table has been removed or replaced."""
        try:
            if not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, "it is another file now")
            self._append(astuple(row))
        except OSError as error:
            raise _stopped(self.path, error.strerror or str(error)) from error
        self.rows[row.id] = row.status, row.state

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, values: tuple[str, ...]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        rest = line.getvalue().encode("utf-8")
        while rest:  # after a partial write to a full disk, the next one raises
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())


def done_state(input_sha256: str, mask: Path) -> str:
    """Hash the input of a case, and size and time of its mask; "" if there is no mask."""
    found = file_state(mask)
    return "" if found is None else hashlib.sha256(f"{input_sha256} {found}".encode()).hexdigest()


def storage_error(error: BaseException, folder: Path) -> OutputError | None:
    """Return the error that ends a run, if a case failed because of the storage of results; None for other errors.

    With a full disk, or without the folder, all other cases would fail as well.
    """
    full = [one for one in _chain(error) if isinstance(one, OSError) and one.errno in _FULL]
    if full:
        return _stopped(folder, full[0].strerror or str(full[0]))
    if isinstance(error, OutputError) and not is_usable(folder):
        return _stopped(folder)
    return None


def check_usable(folder: Path) -> None:
    """Raise OutputError unless the folder of a run still exists, with the lock file, and can be written to."""
    if not is_usable(folder):
        raise _stopped(folder)


def is_usable(folder: Path) -> bool:
    """Whether ``check_usable`` raises no error."""
    return os.path.exists(folder / LOCK) and os.access(folder, os.W_OK | os.X_OK)


def _stopped(path: Path, reason: str = "it no longer exists") -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({reason}); free space or restore the folder, and repeat the command to continue"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        yield one
        one = one.__cause__ or one.__context__
