"""A patient planted in a DICOM series: nothing that is printed, written or raised may tell of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from conftest import TINY, Run
from dicom_files import edit, phantom, write_series

from attunet3d.errors import AttUNet3dError
from attunet3d.io import read_ct

PATIENT = {
    "PatientName": "PLANTED^NAME",
    "PatientID": "PLANTED-ID-4711",
    "PatientBirthDate": "19560708",
    "AccessionNumber": "PLANTED-ACC",
    "ReferringPhysicianName": "PLANTED^DOCTOR",
    "InstitutionName": "PLANTED HOSPITAL",
}
EVIL = "../../evil"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, where a test writes what is not allowed


def _nothing_of(text: str) -> None:
    assert "PLANTED" not in text
    assert "19560708" not in text


@pytest.fixture
def segment(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    values = [part for key, value in TINY.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    fixed = ["--checkpoint", tiny_checkpoint, "--device", "cpu", "--precision", "fp32", "--verbose", *values]
    return lambda folder, *more: run("segment", folder, "-o", tmp_path / "out", *fixed, *more)


def test_segment_and_inspect_say_nothing(segment: Run, run: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), **PATIENT)
    code, stdout, stderr = segment(tmp_path / "scan", "--qc")
    assert code == 0, stderr
    _nothing_of(stdout + stderr)
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["scan_seg.json", "scan_seg.nii.gz", "scan_seg.png"]
    for file in files:
        _nothing_of((tmp_path / "out" / file).read_bytes().decode("latin-1"))
    for how in ([], ["--json"], ["--verbose"]):
        code, stdout, stderr = run("inspect", tmp_path / "scan", *how)
        assert code == 0
        _nothing_of(stdout + stderr)


def _two_patients(folder: Path) -> None:
    edit(write_series(folder, phantom(), **PATIENT)[0], PatientID="PLANTED-ID-2", PatientName="PLANTED^OTHER")


def _raw(**values: tuple[str, bytes]) -> Callable[[Path], None]:
    """Put the bytes into a tag under this VR: such as a name where a number belongs."""

    def build(folder: Path) -> None:
        for path in write_series(folder, phantom(), **PATIENT):
            ds = pydicom.dcmread(path)
            for name, (vr, data) in values.items():
                tag = pydicom.tag.Tag(name)
                ds[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(data), data, 0, False, True)
            ds.save_as(path)

    return build


def _longer_modality(more: int, value: bytes = b"CT") -> Callable[[Path], None]:
    """A damaged length: the modality goes on over the elements after it, to the hospital's name."""

    def build(folder: Path) -> None:
        for path in write_series(folder, phantom(), **PATIENT):
            data = path.read_bytes()
            old = b"\x08\0\x60\0CS\x02\0CT"
            assert old in data
            path.write_bytes(data.replace(old, b"\x08\0\x60\0CS" + bytes([2 + more, 0]) + value))

    return build


def _cut(size: int) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        path = write_series(folder, phantom(), **PATIENT)[2]
        path.write_bytes(path.read_bytes()[:size])

    return build


DAMAGED = {
    "two patients": _two_patients,
    "a name for a slope": _raw(RescaleSlope=("DS", b"PLANTED^NAME")),
    "a name for a size": _raw(Rows=("IS", b"PLANTED^NAME")),
    "a name for a position": _raw(ImagePositionPatient=("DS", b"PLANTED^NAME\\0\\0 ")),
    "a name for bits": _raw(BitsAllocated=("CS", b"PLANTED^NAME")),
    "a name for bits stored": _raw(BitsStored=("IS", b"PLANTED^NAME")),
    "a name for the sign": _raw(PixelRepresentation=("CS", b"PLANTED^NAME")),
    "a name for frames": _raw(NumberOfFrames=("IS", b"PLANTED^NAME")),
    "a name for a UID": _raw(SOPInstanceUID=("UI", b"PLANTED^NAME")),
    "a name for padding": _raw(PixelPaddingValue=("IS", b"PLANTED^NAME")),
    "a modality too long": _longer_modality(60),
    "several modalities too long": _longer_modality(60, b"\\T"),
    "no pixels": _raw(PixelData=("OW", b"")),
    "cut in the pixels": _cut(-20),
    "cut in the header": _cut(420),
    "cut in the name": _cut(560),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_errors_of_damaged_series_quote_nobody(
    segment: Run, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    DAMAGED[case](tmp_path / "scan")
    code, stdout, stderr = segment(tmp_path / "scan")
    _nothing_of(stdout + stderr)
    if code:
        assert "error: " in stderr
        assert "unexpected" not in stderr
        with pytest.raises(AttUNet3dError) as caught:
            read_ct(tmp_path / "scan")
        _nothing_of(str(caught.value))
    _nothing_of("".join(map(str, run("inspect", "--verbose", tmp_path / "scan"))))
    _nothing_of(caplog.text)


@pytest.mark.parametrize("uid", [EVIL, "/etc/x", "a\\b", "..", "1.2\x1b[2J.3"])
def test_uids_are_no_paths(segment: Run, tmp_path: Path, uid: str) -> None:
    """What is written is called as the folder is, wherever the UIDs in it point."""
    hu = phantom()
    names = ("StudyInstanceUID", "FrameOfReferenceUID")
    write_series(tmp_path / "in" / "scan", hu, uid=uid, **dict.fromkeys(names, uid), SeriesDescription=uid)
    before = {p for p in tmp_path.rglob("*") if tmp_path / "in" not in p.parents}
    code, stdout, stderr = segment(tmp_path / "in" / "scan")
    assert code == 0, stderr
    new = {p for p in tmp_path.rglob("*") if tmp_path / "in" not in p.parents} - before - {tmp_path / "out"}
    assert new == {tmp_path / "out" / "scan_seg.json", tmp_path / "out" / "scan_seg.nii.gz"}
    text = (tmp_path / "out" / "scan_seg.json").read_text(encoding="utf-8")
    assert json.loads(text)["source"]["series_uid"].isprintable()
    assert "\x1b[2J" not in stdout + stderr + text
