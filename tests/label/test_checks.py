"""Names and parameters of requests, without a server."""

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
    with pytest.raises(ConfigError, match=r"image: .* is no name"):
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
    with pytest.raises(ConfigError, match="no name of a file"):
        checks.check_file_name(sent, checks.LABEL_SUFFIXES)


@pytest.mark.parametrize("sent", ["x.pt", "x.html", "x.svg", "x.nii.gz.html", "x.zip", "x", "x.py", "x.xml", "x.bin"])
def test_an_uploaded_file_of_another_format_is_refused(sent: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a file with \.nii\.gz"):
        checks.check_file_name(sent, checks.IMAGE_SUFFIXES)


@pytest.mark.parametrize("line", [b"data file: /etc/passwd", b"DATA FILE: x", b"datafile: LIST", b"data file:= x"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_nrrd_whose_voxels_are_elsewhere_is_refused(line: bytes, end: bytes) -> None:
    inside = io.BytesIO(end.join([b"NRRD0004", b"type: uint8", b"", b"\ndata file: voxels"]))
    checks.check_content("a.nrrd", inside)
    assert inside.read(4) == b"NRRD"
    with pytest.raises(ConfigError, match="voxels in it"):
        checks.check_content("a.seg.NRRD", io.BytesIO(end.join([b"NRRD0004", line, b"", b""])))


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
        with pytest.raises(ConfigError, match="no page"):
            checks.check_page(path)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name in ("models/model.pt", "other.pt", "models/model.txt"):
        (tmp_path / name).touch()
    return tmp_path / "models"


GOOD: dict[str, list[Any]] = {
    "device": ["cpu", "cuda", "cuda:1", "NVIDIA H100:0"],
    "max_epochs": [1, 100_000],
    "val_split": [0, 0.0, 0.2, 0.99],
    "pretrained": [True, False],
    "multi_gpu": [True],
    "gpus": ["all", "0", "0,1"],
    "model_filename": ["model.pt", ["model.pt"]],
    "client_id": [None, "", "jane"],
    "save_label": [True],
    "label_tag": ["final"],
    "label_info": [[], [{"name": "pancreas", "idx": 1, "color": [255, 0, 0]}]],
    "result_extension": [".nii.gz", ".nrrd"],
    "result_dtype": ["uint8"],
    "result_compress": [False],
    "restore_label_idx": [False],
    "logging": ["WARNING"],
    "max_workers": [0, 4],
    "max_batch_size": [0],
    "max_samples": [0, 9],
    "simulation_size": [2, 5],
    "labels": [[], ["pancreas"]],
}
BAD: dict[str, list[Any]] = {
    "device": ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu\n", "@device", ["cpu"], 0],
    "max_epochs": [0, -1, 100_001, 1.0, "1", True, float("nan"), [1], {"_target_": "os.getcwd"}],
    "val_split": [-0.1, 1, 1.5, "0.2", True, float("nan"), float("inf"), []],
    "pretrained": ["true", 1, 0, None],
    "multi_gpu": ["yes", 1],
    "gpus": ["", "0,", "-1", "0;1", "all,0", 0, "0\n", "0 --x"],
    "model_filename": [
        "",
        "../other.pt",
        "/etc/x.pt",
        "none.pt",
        "model.txt",
        [],
        [["model.pt"]],
        ["../other.pt"],
        None,
    ],
    "client_id": ["../x", "$x", " @x", "a\nb", 5],
    "save_label": ["false", 1],
    "label_tag": ["", "..", "../x", "a/b", None, 1],
    "label_info": [{}, ["x"], [{"name": "$x"}], [{"_target_": "x"}], [{"x": {"y": ["%z"]}}], "x", None],
    "result_extension": ["", "nii", "/../../x", ".nii.gz/../x", ".html"],
    "result_dtype": ["object", "O", "$x"],
    "result_compress": ["x"],
    "restore_label_idx": [1],
    "logging": ["debug2", 10],
    "max_workers": [-1, 65, 1.5],
    "max_batch_size": [-1, "1"],
    "max_samples": [-1],
    "simulation_size": [1, 101],
    "labels": ["pancreas", ["a/b"], [1]],
}


def test_each_parameter_has_its_type_and_range(models: Path) -> None:
    devices = ["NVIDIA H100:0"]
    tables = [checks.training(devices, models), checks.inference(devices, models), checks.batch(devices, models)]
    tables += [checks.scoring(devices), checks.choosing(), checks.saving()]
    assert set().union(*tables) == set(GOOD) == set(BAD)
    for table in tables:
        for name in table:
            for value in GOOD[name]:
                checks.check_parameters("params", {name: value}, table)
            # What executes in a MONAI config fits nowhere, however it is wrapped.
            wrapped = ["$x", ["$x"], {"_target_": "x"}, {"a": "$x"}, "@x", "%x"]
            for value in [*BAD[name], *wrapped]:
                with pytest.raises(ConfigError, match=f"^{name}: .*; expected"):
                    checks.check_parameters("params", {name: value}, table)


def test_an_unknown_parameter_is_refused_with_what_is_allowed(models: Path) -> None:
    table = checks.training((), models)
    for name in ("train#trainer", "run_id", "tracking_uri", "_target_", "bundle_path", "model", "", "$x", "x\n"):
        with pytest.raises(ConfigError, match=r"params: there is no .*; allowed are device, .*max_epochs"):
            checks.check_parameters("params", {name: "x"}, table)
    for given in ([], "x", 1, None, True):
        with pytest.raises(ConfigError, match="expected a JSON object"):
            checks.check_parameters("params", given, table)


def test_parameters_below_the_name_of_the_model_are_checked_too(models: Path) -> None:
    table = checks.training((), models)
    checks.check_parameters("params", {"bundle": {"max_epochs": 1}, "client_id": "jane"}, table, "bundle")
    for given in ({"bundle": {"max_epochs": "$x"}}, {"bundle": {"bundle": {}}}, {"bundle": []}, {"other": {}}):
        with pytest.raises(ConfigError):
            checks.check_parameters("params", given, table, "bundle")


def test_a_form_holds_json() -> None:
    assert checks.parsed("params", "") == {}
    for text in ("{", "x", "[" * 100_000):
        with pytest.raises(ConfigError, match="params: expected JSON"):
            checks.parsed("params", text)


def test_notes_hold_neither_what_executes_nor_what_the_server_writes() -> None:
    checks.check_information("info", {"comment": "a, 100 %\nb", "level": 2, "meta": {"status": ["ok", None, 0.5]}})
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    bad = [
        [],
        "x",
        {"a": "$x"},
        {"a": ["@x"]},
        {"a": {"_target_": "x"}},
        {"a": float("nan")},
        {"a": "\0"},
        {"$a": 1},
        deep,
    ]
    for given in bad:
        with pytest.raises(ConfigError, match="info: expected"):
            checks.check_information("info", given)
    for name in ("path", "name", "strategy", "epistemic_entropy"):
        with pytest.raises(ConfigError, match=f"info: {name}: the server itself"):
            checks.check_information("info", {name: "x"})


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


def test_studies_are_refused_with_such_a_list(tmp_path: Path) -> None:
    from attunet3d.label.server import check_studies

    (tmp_path / "datastore_v2.json").write_text(json.dumps(index(images_dir="/etc")))
    with pytest.raises(ConfigError, match="names files outside its folder"):
        check_studies(str(tmp_path))
