"""Which cases a manifest or a folder holds, and that their ids are safe names of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from dicom_files import phantom, write_series

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.many.manifest import ManyCase, entries_of, list_entry, name_cases, read_manifest


def walk(folder: Path) -> tuple[list[ManyCase], list[str]]:
    left_out: list[str] = []
    found = [case for entry in entries_of(folder) for case in list_entry(entry, left_out)]
    return name_cases(found, folder), left_out


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "m.csv", tmp_path / "m.jsonl"
    table.write_text("path,id,series_uid\ncts/a.nii.gz,,\n/data/b,second,1.2.3\n")
    lines.write_text('{"path": "cts/a.nii.gz"}\n\n{"path": "/data/b", "id": "second", "series_uid": "1.2.3"}\n')
    cases = [ManyCase("a", str(tmp_path / "cts" / "a.nii.gz")), ManyCase("second", "/data/b", "1.2.3")]
    assert read_manifest(table) == read_manifest(lines) == cases


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,id\nct.nii.gz,../up\n", "cannot name a file"),
        ("path,id\nct.nii.gz,.hidden\n", "cannot name a file"),
        ("path,id\nct.nii.gz,a\x1b[2J\n", "cannot name a file"),
        (f"path,id\nct.nii.gz,{'x' * 201}\n", "longer than 200 bytes"),
        ("path,id\nct.nii.gz,scan_1.2.840.113619.2.55\n", "holds a DICOM UID"),
        ("path\na/ct.nii.gz\nb/ct.nii.gz\n", "2 cases have it"),
        ("path,patient\nct.nii.gz,DOE\n", "line 2: expected texts for path, id, series_uid"),
        ("id\n1\n", 'no column "path"'),
        ("path,id\n,7\n", "line 2: no path"),
        ("path\n", "no CTs"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_manifest(path)


def test_a_folder_of_files_studies_and_patients(tmp_path: Path) -> None:
    """Two files of one name, a study of two series and a localizer, two patients in one folder, and none of these."""
    for name in ("a/ct.nii.gz", "b/ct.nii.gz", "one.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_series(tmp_path / "study" / "x", phantom(), uid="1.2.3.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "study" / "y", phantom(), uid="1.2.3.2")
    write_series(tmp_path / "study" / "z", phantom(), uid="1.2.3.3")
    write_series(tmp_path / "two" / "p", phantom(), uid="1.2.4.1")
    write_series(tmp_path / "two" / "q", phantom(), uid="1.2.4.2", PatientID="0815")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").write_text("nothing")
    cases, left_out = walk(tmp_path)
    assert {(case.id, Path(case.path).relative_to(tmp_path).as_posix(), case.series_uid) for case in cases} == {
        ("a_ct", "a/ct.nii.gz", None),
        ("b_ct", "b/ct.nii.gz", None),
        ("one", "one.nii", None),
        ("study_series2", "study", "1.2.3.2"),
        ("study_series3", "study", "1.2.3.3"),
        ("p_series1", "two/p", "1.2.4.1"),
        ("q_series1", "two/q", "1.2.4.2"),
    }
    assert ["CT localizer" in line or "no DICOM files" in line for line in left_out] == [True, True]


def test_a_folder_that_is_one_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), uid="1.2.3.4.5.6")
    assert walk(tmp_path / "scan")[0] == [ManyCase("scan_series1", str(tmp_path / "scan"), "1.2.3.4.5.6")]


def test_no_uid_in_the_name_of_a_file(tmp_path: Path) -> None:
    """Archives call folders by their UIDs; a hash of it tells them apart all the same."""
    write_series(tmp_path / "1.2.840.113619.2.55", phantom(), uid="1.2.3.4.5.6")
    ((name, _, _),) = walk(tmp_path)[0]
    assert name == f"uid{hashlib.sha256(b'1.2.840.113619.2.55').hexdigest()[:8]}_series1"


def test_a_folder_without_cts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CTs"):
        walk(tmp_path)
    with pytest.raises(InputNotFoundError, match="no such manifest or folder"):
        walk(tmp_path / "nowhere")
