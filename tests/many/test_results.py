"""The output folder of a run: who may write, and what is there after a power cut."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attunet3d.errors import ConfigError, InputNotFoundError, OutputError
from attunet3d.io.locking import locked
from attunet3d.io.writer import remove_left_behind
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import failed
from attunet3d.many.results import COLUMNS, DONE, FAILED, ResultsTable, Row, check_settings


def test_a_line_that_was_not_finished_is_dropped(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path)
    table.add(Row("a", DONE, volume_ml="1.5", flags='odd, "quoted"', state="0f"))
    table.add(Row("b", FAILED, error_type="GeometryError", message="gap"))
    table.close()
    whole = table.path.read_bytes()
    table.path.write_bytes(whole + b"c,done,,80.")
    again = ResultsTable(tmp_path)
    assert again.rows == {"a": ("done", "0f"), "b": ("failed", "")}
    again.add(Row("c", DONE))
    again.close()
    assert table.path.read_bytes() == whole + b"c,done,,,,,,,,\n"


def test_a_value_with_line_breaks_is_one(tmp_path: Path) -> None:
    """As a spreadsheet may save what it was given; U+2028 and the like are no ends of lines."""
    rows = [
        Row("a", DONE, flags="one\ntwo\r\nthree", state="0f"),
        Row("b\u2028c\x85\x1c", FAILED, message='"\r'),
        Row("d", DONE),
    ]
    table = ResultsTable(tmp_path)
    for row in rows:
        table.add(row)
    table.close()
    again = ResultsTable(tmp_path)
    again.close()
    assert again.rows == {"a": ("done", "0f"), "b\u2028c\x85\x1c": ("failed", ""), "d": ("done", "")}
    table.path.write_bytes(table.path.read_bytes() + b'"e,done\n')
    with pytest.raises(OutputError, match="cannot be used"):
        ResultsTable(tmp_path)


def test_a_case_of_any_name_that_failed(tmp_path: Path) -> None:
    """The record has the exact name, the table a message of one line."""
    case = ManyCase("x", "/data/ct\n\x1b[31m\udcff.nii.gz")
    row = failed(tmp_path, case, InputNotFoundError(), f"{case.path}: does not exist", "0f").row
    assert row.message == r"/data/ct \x1b[31m\udcff.nii.gz: does not exist"
    assert json.loads((tmp_path / "x_failed.json").read_bytes())["input"] == "ct\n\x1b[31m\udcff.nii.gz"


def test_a_table_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("patient,dose\n1,2\n")
    with pytest.raises(OutputError, match="not a table of segment-many"):
        ResultsTable(tmp_path)
    assert (tmp_path / "results.csv").read_text() == "patient,dose\n1,2\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows opens links")
def test_a_table_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    """What a link led to would lose its last line, and get a table of ours."""
    (tmp_path / "results.csv").symlink_to(tmp_path / "precious")
    for text in ("", "text", ",".join(COLUMNS) + "\nx"):
        (tmp_path / "precious").write_text(text)
        with pytest.raises(OutputError, match="cannot be used"):
            ResultsTable(tmp_path)
        assert (tmp_path / "precious").read_text() == text
    (tmp_path / "results.csv").unlink()
    for name in ("results.csv", "run.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "a_seg.json").touch()
    with pytest.raises(OutputError, match="cannot be used"):
        ResultsTable(tmp_path)
    check_settings(tmp_path, {"overlap": 0.25})
    assert json.loads((tmp_path / "run.json").read_bytes()) == {"overlap": 0.25}


def test_a_full_disk_and_a_folder_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that was not written whole is dropped; what is not in the table is still to do."""
    table = ResultsTable(tmp_path)
    table.add(Row("a", DONE))

    class Full:
        def __init__(self, file: io.FileIO) -> None:
            self.fileno, self.close, self._file, self._left = file.fileno, file.close, file, 3

        def write(self, data: bytes) -> int:
            if not self._left:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self._file.write(data[: self._left])
            self._left = 0
            return written

    monkeypatch.setattr(table, "_file", Full(table._file))  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"results.csv: cannot be written \(No space left.*repeat the command"):
        table.add(Row("b", DONE))
    table.close()
    again = ResultsTable(tmp_path)
    assert again.rows == {"a": ("done", "")}
    table.path.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(OutputError, match="No such file"):
        again.add(Row("b", DONE))
    again.close()


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first lives, and the system frees the folder when the first is killed."""
    code = (
        "import sys; from pathlib import Path; from attunet3d.io.locking import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            with (
                pytest.raises(OutputError, match=f"another run writes here \\(process {other.pid} on "),
                locked(tmp_path),
            ):
                pass
        finally:
            other.kill()
    with locked(tmp_path):
        pass


def test_other_settings_are_refused(tmp_path: Path) -> None:
    check_settings(tmp_path, {"overlap": 0.25, "checkpoint": "ef"})  # of a run that failed before its first case
    check_settings(tmp_path, {"overlap": 0.25, "checkpoint": "ab"})
    (tmp_path / "a_seg.json").touch()
    for content in ("[" * 100_000, "[]", "1" * 5000, '{"a": ' * 100_000):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ConfigError, match="choose another"):
            check_settings(tmp_path, {"overlap": 0.25, "checkpoint": "ab"})
    (tmp_path / "run.json").write_text('{"overlap": 0.25, "checkpoint": "ab"}')
    check_settings(tmp_path, {"overlap": 0.25, "checkpoint": "ab"})
    with pytest.raises(ConfigError, match=r"other settings \(checkpoint\)"):
        check_settings(tmp_path, {"overlap": 0.25, "checkpoint": "cd"})


def test_what_killed_workers_left_is_removed(tmp_path: Path) -> None:
    for name in (".tmp-0123abcd-a_seg.nii.gz", "a_seg.nii.gz", ".tmp-mine"):
        (tmp_path / name).touch()
    remove_left_behind(tmp_path, exclusive=True)
    assert {p.name for p in tmp_path.iterdir()} == {"a_seg.nii.gz", ".tmp-mine"}
