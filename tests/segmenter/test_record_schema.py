"""The schema of a case's record: it takes every record that is written, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import PLAIN, ROOT, TINY
from dicom_files import write_series

from attunet3d import Segmenter
from attunet3d.segmenter import Outputs, record_schema
from attunet3d.segmenter.record import RECORDED_IDS

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = record_schema()
OPEN = {"config.network_def"}  # arguments of any network


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a schema whose keys are named, with the dotted path of its key."""
    yield path, schema
    for key, value in schema["properties"].items():
        if "properties" in value:
            yield from objects(value, f"{path}.{key}".lstrip("."))


KEYS = [f"{path}.{key}".lstrip(".") for path, node in objects(SCHEMA) for key in node["properties"]]


def is_valid(record: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(record))


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **TINY, **PLAIN)


@pytest.fixture
def series(write_phantom: Callable[..., Path], tmp_path: Path) -> Path:
    ct = nib.load(write_phantom("LPS"))
    x, y, z = map(float, nib.affines.voxel_sizes(ct.affine))
    write_series(tmp_path / "series", np.asarray(ct.dataobj), step=(0.0, 0.0, z), PixelSpacing=[y, x])
    return tmp_path / "series"


def written(session: Segmenter, ct: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """The record of a case, as its file has it."""
    result = session.segment(ct, folder, name="case", **options)
    record: dict[str, Any] = json.loads((folder / "case_seg.json").read_text())
    assert record == json.loads(json.dumps(result.record))
    jsonschema.validate(record, SCHEMA)
    return record


@pytest.mark.parametrize(
    ("options", "there"),
    [
        pytest.param({}, set(), id="nifti"),
        pytest.param({"attention": True, "qc": True}, {"attention", "attention_meaning"}, id="attention"),
    ],
)
def test_records_of_a_nifti_ct(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, options: dict[str, Any], there: set[str]
) -> None:
    record = written(session, write_phantom(), tmp_path / "out", **options)
    optional = set(SCHEMA["properties"]) - set(SCHEMA["required"])
    assert optional & set(record) == {"mask_sha256", "output", "output_format", *there}
    assert record["source"] == {"format": "nifti"}
    assert ("attention" in record["seconds"]) == bool(there)


@pytest.mark.parametrize(("keep_uids", "keys"), [(True, {"series_uid"}), (False, set())], ids=["uids", "no uids"])
def test_records_of_a_dicom_series(
    session: Segmenter, series: Path, tmp_path: Path, keep_uids: bool, keys: set[str]
) -> None:
    record = written(session, series, tmp_path / "out", keep_uids=keep_uids)
    assert set(record["source"]) == {"format", "slices", "gantry_tilt_deg", *keys}


@pytest.mark.parametrize("output_format", ["dicom-seg", "dicom-seg-labelmap"])
def test_records_of_a_dicom_seg(session: Segmenter, series: Path, tmp_path: Path, output_format: str) -> None:
    pytest.importorskip("highdicom")
    record = written(session, series, tmp_path / "out", output_format=output_format)
    assert (record["output"], record["output_format"]) == ("case_seg.dcm", output_format)


def test_a_record_with_warnings_and_without_files(session: Segmenter, tmp_path: Path) -> None:
    hu = np.full((40, 40, 40), -1000, np.int16)
    hu[22, 22, 22] = 50  # lies between the voxels of the model grid
    nib.save(nib.Nifti1Image(hu, np.eye(4)), tmp_path / "air.nii.gz")
    record = json.loads(json.dumps(session.segment(tmp_path / "air.nii.gz").record))
    jsonschema.validate(record, SCHEMA)
    assert record["warnings"][-1].startswith("the mask is empty")
    assert "output" not in record
    assert "write" not in record["seconds"]


def test_a_record_of_several_formats(session: Segmenter, series: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    outputs = Outputs(tmp_path / "out", ("dicom-seg", "nifti"))
    read = session.reader(outputs).read(series)
    result = session.segment_read(read, series, "case", outputs)
    record = json.loads((tmp_path / "out" / "case_seg.json").read_text())
    jsonschema.validate(record, SCHEMA)
    assert record["outputs"] == {"dicom-seg": "case_seg.dcm", "nifti": "case_seg.nii.gz"}
    assert (record["output"], record["output_format"]) == ("case_seg.dcm", "dicom-seg")
    assert result.path == tmp_path / "out" / "case_seg.dcm"
    assert np.array_equal(nib.load(tmp_path / "out" / "case_seg.nii.gz").dataobj, result.mask)


@pytest.fixture(scope="module")
def record(session: Segmenter, write_phantom: Callable[..., Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(session.segment(write_phantom()).record))
    assert is_valid(found)
    return found


@pytest.mark.parametrize("path", [path for path, _ in objects(SCHEMA)])
def test_unknown_and_missing_keys_are_refused(record: dict[str, Any], path: str) -> None:
    for change in ("more", "fewer"):
        changed = deepcopy(record)
        node = changed
        for key in filter(None, path.split(".")):
            node = node[key]
        if change == "more":
            node["unheard_of"] = 1
        else:
            del node[next(iter(dict(objects(SCHEMA))[path]["required"]))]
        assert not is_valid(changed)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("voxels", -1),
        ("voxels", 1.5),
        ("volume_ml", "24"),
        ("checkpoint.sha256", "abc"),
        ("geometry.shape", [1, 2]),
        ("config.allow_uneven", 1),
        ("memory_mb.predicted", None),
        ("intended_use", "diagnosis"),
        ("warnings", [None]),
    ],
)
def test_values_of_other_types_are_refused(record: dict[str, Any], path: str, value: Any) -> None:
    changed = deepcopy(record)
    *parents, last = path.split(".")
    node = changed
    for key in parents:
        node = node[key]
    node[last] = value
    assert not is_valid(changed)


def test_the_schema_is_one_and_every_object_is_closed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert all(node["additionalProperties"] is False for _, node in objects(SCHEMA))

    def open_objects(node: Any, path: str = "") -> Iterator[str]:
        if isinstance(node, dict):
            if node.get("type") == "object" and node.get("additionalProperties") is True:
                yield path
            for key, value in node.get("properties", {}).items():
                yield from open_objects(value, f"{path}.{key}".lstrip("."))

    assert set(open_objects(SCHEMA)) == OPEN


def test_every_key_is_described_by_the_schema_and_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "record.md").read_text(encoding="utf-8")
    assert [key for key in KEYS if f"| `{key}` |" not in page] == []
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(KEYS)  # and none that has gone
    assert all(value.get("description") for _, node in objects(SCHEMA) for value in node["properties"].values())


def test_the_config_has_the_ids_that_are_recorded() -> None:
    assert list(SCHEMA["properties"]["config"]["properties"]) == list(RECORDED_IDS)
