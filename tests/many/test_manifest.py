"""Which cases a manifest or a folder holds, and that their ids are safe names of files."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from dicom_files import phantom, write_series

from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io.cases import collision_key
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
        ("path,id\nct.nii.gz,scan_1.2.840.113619.2.55\n", "contains a DICOM UID"),
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


TEXTS = {
    "semicolons": "path;id;series_uid\nct a.nii.gz;x;1.2.3\n\nb,c.nii;y;\n",
    "tabs": "path\tid\tseries_uid\nct a.nii.gz\tx\t1.2.3\nb,c.nii\ty\n",
    "CRLF and spaces": ' path , id ,series_uid \r\n\r\n"ct a.nii.gz" , x , 1.2.3 \r\n  \r\n,,\r\n"b,c.nii",y\r\n',
    "lines of an old Mac": 'path,id,series_uid\rct a.nii.gz,x,1.2.3\r"b,c.nii",y\r',
    "names of Excel": "sep=;\r\nImage;Case ID;SeriesInstanceUID;\r\nct a.nii.gz;x;1.2.3;\r\nb,c.nii;y;;\r\n",
    "PATH": 'PATH,ID,Series UID\nct a.nii.gz,x,1.2.3\n"b,c.nii",y,\n',
    "filename": "id|filename|series\nx|ct a.nii.gz|1.2.3\ny|b,c.nii|\n",
    "JSON lines": '{"Path": "ct a.nii.gz", "ID": "x", "series": "1.2.3"}\n\n{"image": "b,c.nii ", "id": "y"}\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_manifests_as_programs_and_people_write_them(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "m.csv"
    content = text.encode(encoding)
    path.write_bytes(codecs.BOM_UTF16_BE + content if encoding == "utf-16-be" else content)
    cases = [ManyCase("x", str(tmp_path / "ct a.nii.gz"), "1.2.3"), ManyCase("y", str(tmp_path / "b,c.nii"))]
    assert read_manifest(path) == cases


@pytest.mark.parametrize("header", ["", "path\n", "File\n"])
def test_a_list_of_paths_needs_no_header(tmp_path: Path, header: str) -> None:
    (tmp_path / "study, 2").mkdir()
    path = tmp_path / "list.txt"
    path.write_text(header + 'a.nii.gz\n"b;c.nii.gz"\n\nstudy, 2\n')
    assert [case.id for case in read_manifest(path)] == ["a", "b;c", "study, 2"]


@pytest.mark.parametrize(
    "inside", ["a\nb", "a\r\nb", "a\rb", "a\n\n\nb", "a\u2028b", "a\x85b", "a\x0bb", "a\x1cb", 'a""\n,b', " a\n"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_quoted_value_is_one_whatever_breaks_are_in_it(tmp_path: Path, inside: str, ends: str) -> None:
    """And the lines that follow keep their numbers."""
    path = tmp_path / "m.csv"
    rows = ["", "path,id", f'"{inside}.nii.gz" ,x', "", "b.nii.gz,y"]
    path.write_bytes(ends.join(rows).encode())
    value = inside.replace('""', '"').lstrip() + ".nii.gz"
    assert read_manifest(path) == [ManyCase("x", str(tmp_path / value)), ManyCase("y", str(tmp_path / "b.nii.gz"))]
    path.write_bytes(ends.join([*rows, "c;d"]).encode())
    lines = len(re.findall("\r\n|\r|\n", inside))
    with pytest.raises(ConfigError, match=f"line {6 + lines}: 1 values for 2 columns"):
        read_manifest(path)
    path.write_bytes(ends.join(["path", f'"{inside}.nii.gz"', "b.nii.gz"]).encode())
    if '"' not in value:
        with pytest.raises(ConfigError, match="cannot name a file"):  # the CT's own name; the message shows it escaped
            read_manifest(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", 'path,id\n"a\0b",x\n', "line 2: .*no text"),
        ("m.csv", 'path,id\n"a\nb,x\nc,y\n', "line 2: .*close the quotes"),
        ("m.csv", 'path,id\na,x\n"b' + "\nc" * 70_000, "line 3: .*close the quotes"),
        ("m.jsonl", '{"path": "a"}\n{"path": "a\\u0000b"}', "line 2: .*NUL"),
        ("m.jsonl", '{"path": "a"}\n{"path": "a", "path": "b"}', 'line 2: .*"path" twice'),
        ("m.jsonl", '{"path": "a"}\n{"path": ' + "[" * 100_000, "line 2: .*nested"),
        ("m.jsonl", '{"path": "a", "id": ' + "1" * 5000 + "}", "line 1: .*digits"),
        ("m.jsonl", '{"path": "a", "id": NaN}', "line 1: expected texts"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_its_number(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_manifest(tmp_path / name)


COLLIDING = [
    ("CT", "ct"),
    ("Stra\u00dfe", "STRASSE"),
    ("caf\u00e9", "cafe\u0301"),
    ("CAF\u00c9", "cafe\u0301"),
    ("\u017fcan", "scan"),
]


@pytest.mark.parametrize(("one", "other"), COLLIDING)
def test_ids_that_some_file_systems_take_for_one(tmp_path: Path, one: str, other: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"path,id\na.nii.gz,{one}\nb.nii.gz,{other}\nc.nii.gz,third\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_manifest(path)
    for part in (f'"{one}"', f'"{other}"', "a.nii.gz", "b.nii.gz", "capitals", "give them other ids"):
        assert part in str(caught.value)
    assert "third" not in str(caught.value)


@pytest.mark.parametrize(("one", "other"), COLLIDING)
def test_names_in_a_folder_that_some_file_systems_take_for_one(tmp_path: Path, one: str, other: str) -> None:
    """They get ids that no file system does, as names do that are the same."""
    for name in (one, other, "third"):
        (tmp_path / f"{name}.nii.gz").touch()
    ids = [case.id for case in walk(tmp_path)[0]]
    assert sorted(re.sub("-[0-9a-f]{8}$", "-#", name) for name in ids) == sorted([f"{one}-#", f"{other}-#", "third"])
    assert len({collision_key(name) for name in ids}) == 3


@pytest.mark.parametrize("name", ["con.1", "NUL.ct", "lpt9.x", "con .1", "CONIN$.x", "Com\u00b2.x"])
def test_devices_of_windows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"path,id\na.nii.gz,{name}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Windows device"):
        read_manifest(path)
    path.unlink()
    (tmp_path / f"{name}.nii.gz").touch()
    ((found, _, _),) = walk(tmp_path)[0]
    assert found.startswith(f"_{name}-")


def test_one_ct_under_two_ids(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("path,id\nct.nii.gz,a\nct.nii.gz,b\n")
    assert [case.id for case in read_manifest(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ct.nii.gz,a\nct2.nii.gz,b\n", "line 1: no column"),
        (b"scan,label\nct.nii.gz,a\n", "line 1: no column"),
        (b"path,image\na.nii.gz,b.nii.gz\n", "line 1: several columns for path"),
        (b"path,id\n\nct.nii.gz;a\n", "line 3: 1 values for 2 columns"),
        (b"path,id\nct.nii.gz,a,1.2.3\n", "line 2: 3 values for 2 columns"),
        (b"path\nct.nii.gz,a\n", "line 2: 2 values for a path alone"),
        (b'path,id\na.nii.gz,1\n"b.nii.gz,2\nc.nii.gz,3\n', "line 3: .*close the quotes"),
        (b"path,id\na.nii.gz,1\nK\xf6ln.nii.gz,2\n", "line 3: .*UTF-8"),
        ("path,id\na.nii.gz,1\n".encode("utf-16-le"), "line 1: .*save it as CSV in UTF-8"),
        (b'[{"path": "a.nii.gz"}]\n', "line 1: a JSON list; give JSON lines"),
        (b'{"path": "a.nii.gz", "image": "b.nii.gz"}\n', "line 1: several names of one column"),
        (b'{"path": "a.nii.gz"}\n{"path": \n', "line 2: not JSON"),
        (b"\n \n", "no CTs"),
        (b"", "no CTs"),
    ],
)
def test_what_is_ambiguous_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_manifest(path)


def test_results_in_the_input_are_no_input(tmp_path: Path) -> None:
    """In the folder itself, in the output folder, and in one of another run; a label without a record is a file."""
    write_series(tmp_path / "scan", phantom(), uid="1.2.3.4.5.6")
    (tmp_path / "ct.nii.gz").touch()
    first, _ = walk(tmp_path)
    for folder in (tmp_path, tmp_path / "scan", tmp_path / "before", tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        for suffix in (".json", ".nii.gz", ".dcm", ".png"):
            (folder / f"ct_seg{suffix}").touch()
        (folder / "ct_attention_level2.nii.gz").touch()
        (folder / "notes.txt").touch()
    (tmp_path / "out" / "unfinished.nii.gz").touch()
    left_out: list[str] = []
    out = tmp_path / "out"
    found = [case for entry in entries_of(tmp_path, out) for case in list_entry(entry, left_out, out)]
    assert name_cases(found, tmp_path) == first
    (tmp_path / "ct_seg.json").unlink()
    assert "ct_seg" in {case.id for case in walk(tmp_path)[0]}


def test_names_that_no_file_of_ours_can_have(tmp_path: Path) -> None:
    """Bytes that are no text, what Windows forbids, and too many of them: each is taken, under an id of its own."""
    for name in (b"ct-\xff.nii.gz", b"ct-\xfe.nii.gz", b"a:b.nii.gz", b"a_b.nii.gz", b"x" * 230 + b".nii.gz"):
        (tmp_path / os.fsdecode(name)).touch()
    cases, _ = walk(tmp_path)
    assert sorted(re.sub("x+", "x", re.sub("-[0-9a-f]{8}$", "-#", case.id)) for case in cases) == [
        "a_b", "a_b-#", "ct-_-#", "ct-_-#", "x-#"
    ]  # fmt: skip
    assert len({case.id for case in cases}) == len({case.path for case in cases}) == 5


def test_two_files_of_one_name_in_one_folder(tmp_path: Path) -> None:
    for name in ("ct.nii", "ct.nii.gz"):
        (tmp_path / name).touch()
    assert [re.sub("[0-9a-f]{8}$", "#", case.id) for case in walk(tmp_path)[0]] == ["ct-#", "ct-#"]


def test_a_manifest_that_was_written_on_windows(tmp_path: Path) -> None:
    (tmp_path / "cts").mkdir()
    for name in ("cts/a.nii.gz", "cts\\b.nii.gz"):
        (tmp_path / name).touch()
    manifest = tmp_path / "m.csv"
    manifest.write_bytes(b"path,id\r\ncts\\a.nii.gz,a\r\ncts\\b.nii.gz,b\r\n")
    assert [case.path for case in read_manifest(manifest)] == [
        str(tmp_path / "cts" / "a.nii.gz"), str(tmp_path / "cts\\b.nii.gz")
    ]  # fmt: skip


def test_drives_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link may lead to another one, and what stands for a server's folder is resolved to that."""
    relpath = os.path.relpath

    def apart(path: Path, start: Path) -> str:
        if str(start) == "resolved":
            raise ValueError("path is on mount 'Z:', start on mount '//server/share'")
        return relpath(path, start)

    def no_common(paths: list[str]) -> str:
        raise ValueError("Paths don't have the same drive")

    for folder in ("a", "b", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ct.nii.gz").touch()
    (tmp_path / "root").mkdir()
    for folder in ("a", "b"):
        (tmp_path / "root" / folder).symlink_to(tmp_path / folder)
    monkeypatch.setattr(Path, "resolve", lambda path: "resolved")
    monkeypatch.setattr("os.path.relpath", apart)
    monkeypatch.setattr("os.path.commonpath", no_common)
    found, left_out = walk(tmp_path / "root")
    assert [case.id for case in found] == ["a_ct", "b_ct"]
    assert not left_out


def test_links_that_lead_nowhere_or_round(tmp_path: Path) -> None:
    (tmp_path / "p" / "q").mkdir(parents=True)
    (tmp_path / "p" / "ct.nii.gz").touch()
    for link, target in (
        ("gone.nii.gz", "nowhere"), ("patient", "nowhere"), ("self", "self"), ("up", ".."), ("here", "."),
        ("again", "p"), ("p/gone.nii.gz", "nowhere"),
        ("p/q/round", "../.."),
    ):  # fmt: skip
        (tmp_path / link).symlink_to(target)
    (tmp_path / "pipe").touch()
    cases, left_out = walk(tmp_path)
    assert [case.id for case in cases if "ct" in case.id] == ["ct"]
    assert [line.split(": ")[0].rpartition("/")[2] for line in left_out] == ["gone.nii.gz", "patient", "self"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and the others are taken."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"ct_{name}.nii.gz").touch()
    scandir = os.scandir

    def refused(path: Any = ".") -> Any:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    cases, left_out = walk(tmp_path)
    assert {case.id for case in cases} == {"a", "ct_b"}, "a fails with its reason"
    assert any("a: the folder cannot be listed (Permission denied)" in line for line in left_out)


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
