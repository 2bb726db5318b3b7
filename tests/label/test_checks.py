"""Names in requests and files that come with them, without a server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from attunet3d.errors import ConfigError
from attunet3d.label import checks

NO_NAMES = ["", ".", "..", "../x", "x/../y", "/x", "x/", "x/y", "..\\x", "x\\y", "\\\\host\\x", "C:x", "C:\\x", ".lock"]
NO_NAMES += ["x\0", "x\n", "x\r", "x\x1b[2J", "x\u202ey", "x\u2028y", "x" * 201, "ü" * 101]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_could_be_a_path_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"image: .* is not a name"):
        checks.check_name("image", name)


@pytest.mark.parametrize("name", ["case_01", "CT Thorax 3.0", "1.2.840.113619", "Müller (2)", "x..y", "$x", "x" * 200])
def test_names_of_cases_are_names(name: str) -> None:
    checks.check_name("image", name)


def test_uids_and_digests() -> None:
    assert all(map(checks.is_uid, ("1", "1.2.840.0", "1" * 64)))
    assert not any(map(checks.is_uid, ("", ".", "..", "1.", ".1", "1..2", "1.2/3", "1a", "1\n", "\u0661", "1" * 65)))
    for digest in ("SHA256:0aF", "MD5:1", "0a"):
        checks.check_digest(digest)
    for digest in ("", "SHA1:0", "SHA256:", "../x", "0\n", "x"):
        with pytest.raises(ConfigError, match="check_sum: expected hexadecimal"):
            checks.check_digest(digest)


def test_an_uploaded_file_loses_the_folders_of_its_sender() -> None:
    for sent in ("mask.nii.gz", "/tmp/a.b/mask.nii.gz", "C:\\Users\\jane.doe\\mask.nii.gz"):
        assert checks.check_file_name(sent, checks.LABEL_SUFFIXES) == "mask.nii.gz"


@pytest.mark.parametrize(
    "sent", ["../mask.nii", "a/../mask.nii", "..\\mask.nii", "", "/", ".nii", "a\0.nii", "a\n.nii"]
)
def test_an_uploaded_file_without_a_name_is_refused(sent: str) -> None:
    with pytest.raises(ConfigError, match="not a file name"):
        checks.check_file_name(sent, checks.LABEL_SUFFIXES)


@pytest.mark.parametrize("sent", ["x.pt", "x.html", "x.svg", "x.nii.gz.html", "x.zip", "x", "x.py", "x.xml", "x.bin"])
def test_an_uploaded_file_of_another_format_is_refused(sent: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a file with \.nii\.gz"):
        checks.check_file_name(sent, checks.IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    "line", [b"data file: /etc/passwd", b"DATA FILE: x", b"datafile: LIST", b"data file:= x", b"# x\rdata file: x"]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_nrrd_whose_voxels_are_elsewhere_is_refused(line: bytes, end: bytes) -> None:
    inside = io.BytesIO(end.join([b"NRRD0004", b"type: uint8", b"", b"\ndata file: voxels"]))
    checks.check_content("a.nrrd", inside)
    assert inside.read(4) == b"NRRD"
    with pytest.raises(ConfigError, match="contains its voxels"):
        checks.check_content("a.seg.NRRD", io.BytesIO(end.join([b"NRRD0004", line, b"", b""])))


def test_a_header_that_does_not_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="contains its voxels"):
        checks.check_content("a.nrrd", io.BytesIO(b"NRRD0004\n" + b"# x\n" * (1 << 15) + b"data file: x\n\n"))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.dcm"])
@pytest.mark.parametrize(
    "start",
    [
        b"NRRD0004\ndata file: /etc/passwd\n\n",
        b"ObjectType = Image\nNDims = 3\nElementDataFile = /etc/passwd\n",
        b"\x89HDF\r\n\x1a\n",
        b"\x1f\x8b\x08",
        b"",
    ],
    ids=["NRRD", "MetaImage", "HDF5", "gzip", "empty"],
)
def test_an_uploaded_file_is_of_the_format_of_its_name(name: str, start: bytes) -> None:
    with pytest.raises(ConfigError, match=r"content is not|contains its voxels"):
        checks.check_content(name, io.BytesIO(start))


def test_only_dicomweb_is_asked_of_the_archive() -> None:
    for path in ("studies", "studies/1.2/series/1.3/instances/1.4/frames/1,2", "studies/1/series/2/reject/113039^DCM"):
        checks.check_dicomweb_path(path)
    others = [
        "",
        "../instances",
        "studies/../../tools",
        "studies/..",
        "servers/x/get",
        "/studies",
        "http://evil.example",
    ]
    for path in [
        *others,
        "studies?x",
        "studies#x",
        "studies\\..\\x",
        "studies/%2e%2e/x",
        "studies\r\nX: y",
        "studies/\0",
    ]:
        with pytest.raises(ConfigError, match="DICOMweb"):
            checks.check_dicomweb_path(path)


def test_a_page_stays_in_its_folder() -> None:
    for path in ("", "app.js", "viewer/dicomweb", "assets/", "es6-shim.min.js", "_headers"):
        checks.check_page(path)
    for path in ("..", "../x", "a/../b", "/etc/passwd", "a//b", "..\\x", "C:/x", "C:x", ".hidden", "a\0"):
        with pytest.raises(ConfigError, match="not a page"):
            checks.check_page(path)


def index(**changes: Any) -> dict[str, Any]:
    entry = {"image": {"ext": ".nii.gz", "info": {}}, "labels": {"final": {"ext": ".nii.gz"}}}
    return {"name": "new-dataset", "images_dir": ".", "labels_dir": "labels", "objects": {"case": entry}, **changes}


def test_a_list_of_images_that_stays_in_its_folder_is_taken(tmp_path: Path) -> None:
    for content in (index(), index(objects={}), {}):
        (tmp_path / "datastore_v2.json").write_text(json.dumps(content))
        checks.check_index(tmp_path / "datastore_v2.json")


@pytest.mark.parametrize(
    "content",
    [
        index(images_dir="/etc"),
        index(images_dir=".."),
        index(labels_dir="../labels"),
        index(objects={"../case": {"image": {"ext": ".nii"}}}),
        index(objects={"case": {"image": {"ext": "/../../x"}}}),
        index(objects={"case": {"image": {"ext": ".nii"}, "labels": {"../../x": {"ext": ".nii"}}}}),
        index(objects={"case": {"image": {"ext": ".nii"}, "labels": {"final": {"ext": "/../x"}}}}),
        index(objects=[]),
        [],
        "x",
    ],
)
def test_a_list_of_images_that_leads_out_of_its_folder_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "datastore_v2.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"datastore_v2\.json: .*delete it"):
        checks.check_index(tmp_path / "datastore_v2.json")


@pytest.mark.parametrize("content", ["{", '{"images_dir": "/etc", "images_dir": ""}', "[" * 200 + "]" * 200])
def test_a_list_of_images_that_is_no_plain_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "datastore_v2.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cannot be read; delete it"):
        checks.check_index(tmp_path / "datastore_v2.json")


def test_studies_are_refused_with_such_a_list(tmp_path: Path) -> None:
    from attunet3d.label.server import check_studies

    (tmp_path / "datastore_v2.json").write_text(json.dumps(index(images_dir="/etc")))
    with pytest.raises(ConfigError, match="names files outside its folder"):
        check_studies(str(tmp_path))
