"""Outcomes of cases: rows of the table, files in the folder, and whether both are still valid."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from attunet3d.checkpoint import file_sha256
from attunet3d.errors import InputNotFoundError
from attunet3d.io.identity import input_files, input_sha256
from attunet3d.io.json_text import parse_json
from attunet3d.io.output_formats import FORMATS, PICTURE_SUFFIX, RECORD_SUFFIX
from attunet3d.io.printable import one_line, without_uids
from attunet3d.io.writer import write_text_atomic
from attunet3d.many.manifest import ManyCase
from attunet3d.many.results import DONE, FAILED, Row, done_state
from attunet3d.segmenter.outputs import Outputs
from attunet3d.version import __version__

_LARGEST = 1e9  # mL, seconds


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case: its row in the table, and the seconds of its stages."""

    row: Row
    stages: dict[str, float] = field(default_factory=dict)


def state_of_input(folder: Path, case: ManyCase) -> str:
    """Hash the present state of a case's input, see ``input_sha256``; files in the output folder do not count."""
    return input_sha256(case.path, case.series_uid, input_files(case.path, folder))


def is_unchanged(folder: Path, output_format: str, case: ManyCase, status: str, state: str) -> bool:
    """Whether input and mask of a case with a row are unchanged, judged by names, sizes and times only."""
    now = state_of_input(folder, case)
    return bool(state) and state == (done_state(now, _mask(folder, case, output_format)) if status == DONE else now)


def find_outcome(
    folder: Path, outputs: Outputs, made_with: Callable[[Mapping[str, Any]], bool], case: ManyCase, state: str
) -> Outcome | None:
    """Find the outcome of a case in the folder, if its files are what this run would write; None if they are not.

    They are if worker or driver were killed after the mask, the last file, was in its place.

    Args:
        folder: of the results.
        outputs: of the run.
        made_with: whether a record is of the session's values and weights.
        case: what to look for.
        state: of its input, see ``state_of_input``.
    """
    output = outputs.formats[0]
    mask = _mask(folder, case, output.name)
    described = folder / f"{case.id}{RECORD_SUFFIX}"
    if not described.is_file():  # reading a pipe would block
        return None
    try:
        record = parse_json(described.read_bytes())
        same = (
            record["output"] == mask.name
            and record["output_format"] == output.name
            and record["input_state"] == state
            and _is_ours(record, outputs.keep_uids)
            and made_with(record)
            and record["mask_sha256"] == file_sha256(mask)
        )
        return done(folder, case, record) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_ours(record: Mapping[str, Any], keep_uids: bool) -> bool:
    """Whether the values that the table repeats are valid: finite numbers, and no UIDs if none are wanted."""
    numbers = [record["volume_ml"], *(record["seconds"].values() if isinstance(record["seconds"], dict) else [None])]
    if not all(type(number) in (int, float) and 0 <= number <= _LARGEST for number in numbers):
        return False
    told = (record["input"], *record["warnings"])
    return keep_uids or ("series_uid" not in record["source"] and all(without_uids(text) == text for text in told))


def done(folder: Path, case: ManyCase, record: Mapping[str, Any]) -> Outcome:
    """Make the outcome of a case with a mask from its record."""
    with suppress(FileNotFoundError):
        os.unlink(folder / _failed_name(case))
    stages = {name: float(seconds) for name, seconds in record["seconds"].items()}
    row = Row(
        case.id,
        DONE,
        volume_ml=f"{record['volume_ml']:.3f}",
        seconds=f"{sum(stages.values()):.3f}",
        flags=one_line(" | ".join(record["warnings"])),
        output=record["output"],
        record=f"{case.id}{RECORD_SUFFIX}",
        state=done_state(record["input_state"], folder / record["output"]),
    )
    return Outcome(row, stages)


def failed(
    folder: Path,
    case: ManyCase,
    error: BaseException,
    message: str,
    state: str,
    status: str = FAILED,
    *,
    keep_uids: bool = True,
) -> Outcome:
    """Make the outcome of a case that failed, and write its record, ``<id>_failed.json``.

    An existing mask is of another input or other values, and is removed, unless the input cannot be found: storage may
    be back tomorrow.

    Raises:
        OutputError: the record cannot be written.
    """
    name, message = os.path.basename(case.path), one_line(message)
    if not keep_uids:
        name, message = without_uids(name), without_uids(message)
    if not isinstance(error, InputNotFoundError):
        _remove_result(folder, case)
    row = Row(
        case.id,
        status,
        error_type=type(error).__name__,
        message=message,
        record=_failed_name(case),
        state=state,
    )
    record = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "input": name,
        "input_state": row.state,
        "attunet3d": __version__,
        "status": row.status,
        "error_type": row.error_type,
        "message": row.message,
    }
    write_text_atomic(folder / row.record, json.dumps(record, indent=2) + "\n")
    return Outcome(row)


def _remove_result(folder: Path, case: ManyCase) -> None:
    record = folder / f"{case.id}{RECORD_SUFFIX}"
    if record.exists():  # files without a record are not ours
        for suffix in (*(output.suffix for output in FORMATS.values()), PICTURE_SUFFIX, RECORD_SUFFIX):
            with suppress(FileNotFoundError):
                os.unlink(folder / f"{case.id}{suffix}")


def _mask(folder: Path, case: ManyCase, output_format: str) -> Path:
    return folder / f"{case.id}{FORMATS[output_format].suffix}"


def _failed_name(case: ManyCase) -> str:
    return f"{case.id}_failed.json"
