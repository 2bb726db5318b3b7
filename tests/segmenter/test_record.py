"""What a record says of its CT, and what it keeps to itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attunet3d.segmenter.record import case_record
from attunet3d.transforms.grid import Grid

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001"
FACTS = {
    "format": "dicom",
    "series_uid": f"{UID}#2",
    "slices": 3,
    "gantry_tilt_deg": 12.5,
    "warnings": [f"{UID}.7.dcm was left out", f"series {UID}#2 is odd", "of 12.5 and 1.2.3 nothing is taken"],
}
NIFTI = {"format": "nifti", "sform_code": 1, "nifti_version": 1, "warnings": []}


def record(ct: str, facts: dict[str, Any], keep_uids: bool) -> dict[str, Any]:
    mask = np.ones((2, 2, 3), np.uint8)
    return case_record(ct, mask, Grid(mask.shape, np.eye(4)), facts, {}, {}, keep_uids)


def test_of_a_ct_its_series_and_geometry() -> None:
    found = record("somewhere/study", FACTS, True)
    assert found["input"] == "study"
    assert found["source"] == {"format": "dicom", "series_uid": f"{UID}#2", "slices": 3, "gantry_tilt_deg": 12.5}
    assert found["warnings"] == FACTS["warnings"]
    assert record("ct.nii.gz", NIFTI, True)["source"] == {"format": "nifti"}


@pytest.mark.parametrize(
    ("ct", "name"),
    [
        (f"data/{UID}", "UID"),
        (f"{UID}.nii.gz", "UID.nii.gz"),
        (Path("ct_1.2.nii"), "ct_1.2.nii"),
        ("2.25.329800735698586629295641978511506172918", "UID"),
        ("CT_1.2.840.113619.2", "CT_UID"),
    ],
)
def test_without_uids(ct: str, name: str) -> None:
    found = record(ct, FACTS, False)
    assert found["input"] == name
    assert found["source"] == {"format": "dicom", "slices": 3, "gantry_tilt_deg": 12.5}
    assert found["warnings"] == [
        "UID.dcm was left out",
        "series UID is odd",
        "of 12.5 and 1.2.3 nothing is taken",
    ]
    assert "1.3.6" not in json.dumps(found)
    assert len(FACTS["warnings"][0]) > 30, "what was read is not changed"
    assert record("ct.nii.gz", NIFTI, False) | {"created": 0} == record("ct.nii.gz", NIFTI, True) | {"created": 0}
