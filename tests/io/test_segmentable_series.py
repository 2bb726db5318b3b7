"""The CT series of a folder: those listed in the error about several series, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from dicom_files import phantom, write_series

from attunet3d.errors import AmbiguousSeriesError, InputNotFoundError, UnsupportedImageError
from attunet3d.io import SeriesCase, case_name, read_ct, segmentable_series
from attunet3d.io.cases import partition_series
from attunet3d.io.inspect import inspect_path

SCOUT = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
MIP = {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}
MR = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}
CORONAL = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "step": (0.0, 2.5, 0.0)}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two CTs to segment, the second and the seventh in the order of UIDs, among others that are not."""
    folder = tmp_path / "study"
    write_series(folder / "scout", phantom(), uid="1.2.1", **SCOUT)
    write_series(folder / "arterial", phantom(), uid="1.2.2")
    write_series(folder / "mip", phantom(), uid="1.2.3", **MIP)
    write_series(folder / "timing", phantom()[:, :, :1], uid="1.2.4")
    write_series(folder / "mr", phantom(), uid="1.2.5", **MR)
    write_series(folder / "coronal", phantom(), uid="1.2.6", **CORONAL)
    write_series(folder / "venous", phantom(seed=1), uid="1.2.7")
    return folder


def test_selectable_series_have_their_numbers(study: Path) -> None:
    cases, left_out = partition_series(study)
    assert segmentable_series(study) == cases
    assert [(case.number, case.series.uid) for case in cases] == [(2, "1.2.2"), (7, "1.2.7")]
    assert [(f.number, f.uid) for f in inspect_path(study) if f.number in (2, 7)] == [(2, "1.2.2"), (7, "1.2.7")]
    with pytest.raises(AmbiguousSeriesError) as caught:
        read_ct(study)
    assert re.findall(r"1\.2\.\d", str(caught.value).partition("segmentable_series: ")[2]) == ["1.2.2", "1.2.7"]
    assert [line.partition(": 1.2.")[0] for line in left_out] == [
        f"{study}: series 1: CT localizer",
        f"{study}: series 3: CT derived (MIP), derived from the scanner's slices",
        f"{study}: series 4: CT, images at a single position",
        f"{study}: series 5: MR, no CT images",
        f"{study}: series 6: CT, not axial",
    ]


def test_a_case_is_read_without_scanning_the_folder_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = segmentable_series(study)
    monkeypatch.setattr("attunet3d.io.dicom.find.find_series", None)
    np.testing.assert_array_equal(read_ct(first)[0], phantom())
    np.testing.assert_array_equal(read_ct(second)[0], phantom(seed=1))
    with pytest.raises(InputNotFoundError, match=r"no series 1\.2\.2"):
        read_ct(second, series_uid="1.2.2")


def test_a_case_is_named_by_folder_and_number(study: Path) -> None:
    cases = segmentable_series(study)
    assert [case_name(case) for case in cases] == ["study_series2", "study_series7"]
    assert isinstance(cases[0], SeriesCase)
    assert str(cases[0]) == f"{study}: series 2"


def test_stacks_of_a_series_are_separate_cases(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / str(number), phantom(seed=number), uid="1.2.3", AcquisitionNumber=number)
    cases = segmentable_series(tmp_path)
    assert [(case.number, case.series.uid) for case in cases] == [(1, "1.2.3#1"), (2, "1.2.3#2")]
    np.testing.assert_array_equal(read_ct(cases[1])[0], phantom(seed=2))


@pytest.mark.parametrize("tags", [{}, SCOUT, MIP], ids=["CT", "localizer", "MIP"])
def test_cts_of_two_patients_are_refused(tmp_path: Path, tags: dict[str, list[str]]) -> None:
    """Also where only one of them has a series to segment: the folder is not what was meant."""
    write_series(tmp_path / "1", phantom(), uid="1.2.3", PatientID="4711")
    write_series(tmp_path / "2", phantom(), uid="1.2.4", PatientID="4711")
    write_series(tmp_path / "3", phantom(), uid="1.2.5", **{**tags, "PatientID": "0815"})
    for read in (segmentable_series, read_ct):
        with pytest.raises(
            AmbiguousSeriesError, match=r"3 CT series of 2 patients; segment each patient's folder, or .* series_uid"
        ) as caught:
            read(tmp_path)
        assert "4711" not in str(caught.value)


def test_nothing_to_segment(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", phantom(), **MR)
    with pytest.raises(UnsupportedImageError, match="only MR"):
        segmentable_series(tmp_path / "mr")
    with pytest.raises(InputNotFoundError, match="does not exist"):
        segmentable_series(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputNotFoundError, match="no DICOM files"):
        segmentable_series(tmp_path / "empty")


def test_series_are_described_by_their_headers(tmp_path: Path) -> None:
    """Slices along an oblique normal, (0, -0.6, 0.8), 2.5 mm apart; and a series without positions."""
    oblique = {"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6], "step": (0.0, -1.5, 2.0)}
    write_series(tmp_path / "a", phantom(), uid="1.2.1", SeriesDescription="liver", **oblique)
    nowhere = {"ImagePositionPatient": None, "SeriesDescription": None}
    write_series(tmp_path / "b", phantom(), uid="1.2.2", **nowhere)
    first, second = segmentable_series(tmp_path)
    assert str(first.series) == '1.2.1 (6 files, 12 x 10, every 2.5 mm, "liver")'
    assert str(second.series) == "1.2.2 (6 files, 12 x 10)"
