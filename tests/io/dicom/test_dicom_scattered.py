"""Scans with several series UIDs, as some anonymisers leave them: merged if that is unambiguous."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Run
from dicom_files import edit, phantom, write_series
from pydicom.uid import generate_uid

from attunet3d.errors import AmbiguousSeriesError, AttUNet3dError, GeometryError, UnsupportedImageError
from attunet3d.io import CTReader, read_ct, read_volume, segmentable_series
from attunet3d.io.dicom.find import find_series
from attunet3d.io.inspect import inspect_path
from attunet3d.segmenter.session import Case

Tags = Callable[[int], Mapping[str, Any]]
PAIRS = [generate_uid() for _ in range(4)]


def _each(*names: str, empty: tuple[int, ...] = ()) -> Tags:
    """Give each image its own UIDs in these tags, but none to images in ``empty``."""
    return lambda k: {name: "" if k in empty else f"1.2.{len(name)}.{k}" for name in names}


SERIES, STUDY, SPACE = "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"
SCATTERED: dict[str, Tags] = {
    "series": _each(SERIES),
    "series and space": _each(SERIES, SPACE),
    "series, study and space": _each(SERIES, STUDY, SPACE),
    "series and number": lambda k: {SERIES: f"1.2.3.{k}", "SeriesNumber": k},
    "pairs of neighbours": lambda k: {SERIES: f"1.2.3.{k // 2}"},
    "pairs of any": lambda k: {SERIES: f"1.2.3.{k % 4}"},
    "pairs of studies": lambda k: {SERIES: "1.2.3", STUDY: PAIRS[k // 2]},
    "pairs of spaces": lambda k: {SERIES: "1.2.3", SPACE: PAIRS[k // 2]},
    "pairs of series and studies": lambda k: {SERIES: f"1.2.3.{k // 2}", STUDY: PAIRS[k // 2], SPACE: PAIRS[k // 2]},
    "series, some empty": _each(SERIES, empty=(1, 4)),
    "series, one empty": _each(SERIES, empty=(0,)),
    "series of one UID, some empty": lambda k: {SERIES: "" if k in (1, 4) else "1.2.3"},
    "series of one UID, most empty": lambda k: {SERIES: "1.2.3" if k in (1, 4) else ""},
    "series of one UID, the last empty": lambda k: {SERIES: "" if k > 4 else "1.2.3"},
    "series of one UID, one within it empty": lambda k: {SERIES: "" if k == 3 else "1.2.3"},
}


def _write(folder: Path, tags: Tags, count: int = 8, seed: int = 0, **more: Any) -> np.ndarray:
    hu = phantom((12, 10, count), seed=seed)
    for k, path in enumerate(write_series(folder, hu, **more)):
        edit(path, **tags(k))
    return hu


@pytest.mark.parametrize("case", SCATTERED)
@pytest.mark.parametrize("folders", [False, True])
def test_a_scattered_scan_is_read_as_one(tmp_path: Path, case: str, folders: bool) -> None:
    """In one folder, and in one per series, as written by archives; also selected by any of its UIDs."""
    hu = _write(tmp_path, SCATTERED[case])
    if folders and "empty" not in case:
        for k, path in enumerate(sorted(tmp_path.iterdir())):
            (tmp_path / f"s{k}").mkdir()
            path.rename(tmp_path / f"s{k}" / path.name)
    found = read_volume(tmp_path)
    np.testing.assert_array_equal(found.array, hu)
    (series,) = find_series(tmp_path)
    if len(series.uids) > 1 or "empty" in case:
        assert any("by their positions and all other fields they are one scan" in w for w in found.metadata["warnings"])
    for uid in sorted(series.uids)[:2]:
        np.testing.assert_array_equal(read_ct(tmp_path, series_uid=uid)[0], hu)
    (finding,) = inspect_path(tmp_path)
    assert (finding.usable, finding.files) == (True, 8)
    assert len(segmentable_series(tmp_path)) == 1
    np.testing.assert_array_equal(CTReader().get_data([tmp_path])[0], hu)


def test_a_missing_slice_of_a_scattered_scan_is_named(tmp_path: Path) -> None:
    _write(tmp_path, _each(SERIES))
    next(p for p in tmp_path.iterdir() if read_position(p) == 27.5).unlink()
    with pytest.raises(GeometryError, match=r"1 slice is missing, at \[-100, -50, 27.5\].*allow_uneven=True"):
        read_ct(tmp_path)
    assert read_ct(tmp_path, allow_uneven=True)[0].shape == (12, 10, 8)


def read_position(path: Path) -> float:
    import pydicom

    return float(pydicom.dcmread(path).ImagePositionPatient[2])


def test_two_scattered_scans_are_not_merged(tmp_path: Path) -> None:
    """Two kernels at the same positions, and two studies."""
    first = _write(tmp_path / "1", lambda k: {SERIES: f"1.2.3.{k}", "ConvolutionKernel": "B30f"})
    second = _write(tmp_path / "2", lambda k: {SERIES: f"1.2.4.{k}", "ConvolutionKernel": "B60f"}, seed=1)
    with pytest.raises(AmbiguousSeriesError, match="2 CT series; choose one with series_uid"):
        read_ct(tmp_path)
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="1.2.3.5")[0], first)
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="1.2.4.2")[0], second)


NO_ONE_SCAN: dict[str, Tags] = {
    "patients": lambda k: {SERIES: f"1.2.3.{k}", "PatientID": str(k % 2)},
    "places twice": lambda k: {SERIES: f"1.2.3.{k}", "ImagePositionPatient": [-100, -50, 20 + 2.5 * (k // 2)]},
    "any places": lambda k: {SERIES: f"1.2.3.{k}", "ImagePositionPatient": [-100, -50, 20 + 2.5 * k**1.5]},
    "beside a line": lambda k: {SERIES: f"1.2.3.{k}", "ImagePositionPatient": [-100 + 9 * (k % 3), -50, 20 + 2.5 * k]},
    "sizes": lambda k: {SERIES: f"1.2.3.{k}", "PixelSpacing": [0.8 + k, 0.7]},
    "two studies": lambda k: {SERIES: f"1.2.3.{k}", STUDY: PAIRS[k % 2], SPACE: PAIRS[k % 2], "KVP": k},
}


@pytest.mark.parametrize("case", NO_ONE_SCAN)
def test_what_may_be_several_scans_is_not_put_together(tmp_path: Path, case: str) -> None:
    _write(tmp_path, NO_ONE_SCAN[case])
    with pytest.raises((AmbiguousSeriesError, UnsupportedImageError)):
        read_ct(tmp_path)


def test_single_images_that_are_no_scan_lead_to_no_dead_end(tmp_path: Path) -> None:
    """Neither series_uid nor segmentable_series would help."""
    _write(tmp_path, NO_ONE_SCAN["any places"])
    with pytest.raises(AmbiguousSeriesError, match=r"8 CT series of one image each, .* export") as caught:
        read_ct(tmp_path)
    assert "segmentable_series" not in str(caught.value)


def test_messages_without_uids(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "ct", NO_ONE_SCAN["any places"])

    def segment_all(cts: list[Path], *_: Any, **__: Any) -> list[Case]:
        return [Case(cts[0], None, read_error(cts[0]))]

    session = SimpleNamespace(warnings=(), segment_all=segment_all)
    monkeypatch.setattr("attunet3d.segmenter.Segmenter", lambda *_, **__: session)
    code, _, said = run("segment", tmp_path / "ct", "-o", tmp_path / "out")
    assert (code, "1.2.3.4 (1 file" in said) == (1, True)
    code, _, said = run("segment", tmp_path / "ct", "-o", tmp_path / "out", "--no-uids")
    assert code == 1
    assert "UID (1 file" in said
    assert "1.2.3." not in said
    assert len(said.splitlines()) == 1


def read_error(path: Path) -> Exception:
    with pytest.raises(AttUNet3dError) as caught:
        read_ct(path)
    return caught.value


def test_two_images_are_not_merged(tmp_path: Path) -> None:
    """They have even spacing wherever they lie; nor is a third taken from another series."""
    _write(tmp_path / "two", _each(SERIES), count=2)
    assert len(find_series(tmp_path / "two")) == 2
    _write(tmp_path / "more", lambda k: {SERIES: "1.2.3" if k < 6 else f"1.2.{k}"})
    with pytest.raises(AttUNet3dError):
        read_ct(tmp_path / "more", series_uid="1.2.3")


def test_complete_series_are_not_merged(tmp_path: Path) -> None:
    """Three adjacent scans, each long enough to be a scan."""
    for k in range(3):
        hu = phantom((12, 10, 6), seed=k)
        write_series(tmp_path / str(k), hu, origin=(-100, -50, 20 + 15 * k), uid=f"1.2.{k}")
    assert [s.uid for s in find_series(tmp_path)] == ["1.2.0", "1.2.1", "1.2.2"]
