"""DICOM SEG of images from archives: patient and study byte for byte as in the images, valid or not."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pydicom
import pytest
from dicom_files import edit, item, phantom, raw_elements, write_series

from attunet3d.console import set_up_logging
from attunet3d.errors import OutputError, UnsupportedImageError
from attunet3d.io.dicom.seg import save_seg, source_headers
from attunet3d.io.reader import open_ct
from attunet3d.segmenter.outputs import CaseWriter, Outputs

hd = pytest.importorskip("highdicom", reason="needs highdicom: pip install 'attunet3d[seg]'")

SHAPE = (6, 5, 4)
KANJI = "山田^太郎".encode("iso2022_jp")
HANGUL = b"\x1b$)C" + "김희중".encode("euc_kr")
# VR, where it is not the usual one, and the bytes of each element, in every image; None: it is not there.
HEADERS: dict[str, dict[str, Any]] = {
    "charset empty": {"SpecificCharacterSet": b"", "PatientName": "Müller^Jörg".encode("latin-1")},
    "charset missing": {"SpecificCharacterSet": None, "PatientName": "Müller^Jörg".encode("latin-1")},
    "charset Japanese": {"SpecificCharacterSet": rb"\ISO 2022 IR 87", "PatientName": b"YAMADA^TARO=" + KANJI},
    "charset Japanese alone": {"SpecificCharacterSet": b"ISO 2022 IR 87", "PatientName": KANJI},
    "charset Japanese and half width": {
        "SpecificCharacterSet": rb"ISO 2022 IR 13\ISO 2022 IR 87",
        "PatientName": KANJI,
    },
    "charset Korean": {"SpecificCharacterSet": rb"\ISO 2022 IR 149", "PatientName": b"KIM^HEE=" + HANGUL},
    "charset Chinese": {"SpecificCharacterSet": b"GB18030", "PatientName": "王^小东".encode("gb18030")},
    "charset GBK": {"SpecificCharacterSet": b"GBK", "PatientName": "王^小东".encode("gbk")},
    "charset simplified Chinese": {"SpecificCharacterSet": rb"\ISO 2022 IR 58", "PatientName": b"\x1b$)A\xcd\xf5"},
    "charset UTF-8": {"SpecificCharacterSet": b"ISO_IR 192", "PatientName": "Ωmega^Ψ".encode()},
    "charset that does not fit": {"SpecificCharacterSet": b"ISO_IR 192", "PatientName": b"M\xfcller^J"},
    "charset ISO_IR 6": {"SpecificCharacterSet": b"ISO_IR 6", "PatientName": b"DOE^JANE"},
    "charset ISO IR 100": {"SpecificCharacterSet": b"ISO IR 100", "PatientName": b"M\xfcller^J"},
    "charset ISO-IR 144": {"SpecificCharacterSet": b"ISO-IR 144", "PatientName": b"\xbb\xee\xda"},
    "charset unknown": {"SpecificCharacterSet": b"KLINGON", "PatientName": b"M\xfcller^J"},
    "charset of many": {"SpecificCharacterSet": rb"ISO_IR 100\ISO_IR 192\X", "PatientName": b"M\xfcller^J"},
    "charset in another VR": {"SpecificCharacterSet": ("UN", b"ISO_IR 100"), "PatientName": b"M\xfcller^J"},
    "dates": {"StudyDate": b"ANONYMIZED", "PatientBirthDate": b"00000000"},
    "dates of other forms": {"StudyDate": b"2020-01-01", "PatientBirthDate": b"01.02.1960"},
    "several dates": {"StudyDate": rb"20200101\20200102", "PatientBirthDate": b"1960"},
    "times": {"StudyTime": b"anon", "PatientBirthTime": b"25:61"},
    "sex male": {"PatientSex": b"male"},
    "sex Female": {"PatientSex": b"Female"},
    "sex unknown": {"PatientSex": b"unknown"},
    "several sexes": {"PatientSex": rb"M\F"},
    "age": {"PatientAge": b"45"},
    "numbers": {
        "PatientSize": b"1,75",
        "PatientWeight": b"72.12345678901234567890",
        "PregnancyStatus": ("US", b"\4\0"),
    },
    "texts too long": dict.fromkeys(("PatientID", "StudyID", "AccessionNumber", "StudyDescription"), b"x" * 200),
    "texts of parts": dict.fromkeys(("PatientID", "StudyID", "AccessionNumber", "StudyDescription"), rb"a\b"),
    "texts with controls": {"PatientID": b"a\x1b[2J\r\n\0b", "StudyID": b"\x7f"},
    "texts of spaces": {"PatientID": b"  47 11  ", "StudyID": b" ", "PatientName": b"  DOE^JANE  "},
    "UIDs with zeros": {"StudyInstanceUID": b"1.02.003", "FrameOfReferenceUID": b"1.2.00"},
    "UIDs with letters": {"StudyInstanceUID": b"study-A", "FrameOfReferenceUID": b"a b", "SeriesInstanceUID": b"x"},
    "UIDs too long": {"StudyInstanceUID": b"1." + b"2" * 100, "FrameOfReferenceUID": b"1." + b"3" * 100},
    "UIDs in other VRs": {"StudyInstanceUID": ("LO", b"1.2.3.4 "), "FrameOfReferenceUID": ("UN", b"1.2.5\0")},
    "nothing of type 2": dict.fromkeys(
        ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate")
    ),
    "no patient": dict.fromkeys(("PatientName", "PatientID", "PatientSex", "PositionReferenceIndicator")),
    "all of type 2 empty": dict.fromkeys(("StudyDate", "StudyID", "PatientName", "PatientID", "PatientSex"), b""),
    "position reference": {"PositionReferenceIndicator": b"x" * 100},
    "names of many parts": {"PatientName": b"a=b=c=d=e", "ReferringPhysicianName": b"a^b^c^d^e^f^g"},
    "names too long": {"PatientName": b"D" * 100 + b"^J", "OtherPatientNames": rb"A^B\C^D"},
    "names of one part": {"PatientName": b"DOE"},
    "other VRs": {"PatientName": ("LO", b"DOE^J"), "PatientID": ("UN", b"47"), "StudyDate": ("ST", b"x")},
    "impossible VRs": {"PatientComments": ("ZZ", b"a comment"), "AdmissionID": ("??", b"17")},
    "places": {
        "PixelSpacing": rb"0.80000000000000000001\0.7000000000000000000000",
        "SliceThickness": b"2.50000000000000000000001",
        "SpacingBetweenSlices": b"x",
        "InstanceNumber": b"1.0",
        "SeriesNumber": b"3.5",
    },
    "the scanner": {"Manufacturer": b"M" * 100, "StationName": b"S" * 30, "InstitutionName": rb"a\b"},
    "loss": {"LossyImageCompression": b"01", "LossyImageCompressionRatio": b"x", "LossyImageCompressionMethod": b"y"},
}
# What a SEG says of itself.
OF_THE_SEG = (
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "Manufacturer",
    "StationName",
    "InstitutionName",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
)
IDENTITY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
)


def seg_of(folder: Path, path: Path, kind: str = "BINARY") -> tuple[pydicom.Dataset, pydicom.Dataset]:
    """The SEG written for a series, and the header of the series' first slice."""
    image = open_ct(folder)
    mask = np.zeros(image.shape, np.uint8)
    mask[1:4, 2, 1] = mask[2, 3, 2] = 1
    sources = source_headers(folder, image.files, image.affine, [], segmentation_type=kind)
    save_seg(path, mask, image.affine, sources, checkpoint_sha256="ab" * 32, segmentation_type=kind)
    return pydicom.dcmread(path), pydicom.dcmread(image.files[0], stop_before_pixels=True)


def stored(ds: pydicom.Dataset, name: str) -> tuple[str, Any]:
    """VR and bytes of an element, without their padding; pydicom itself asks for the value of the character set."""
    element = ds.get_item(name)
    value = element.value
    return str(element.VR), (value or b"").rstrip(b" \0") if element.is_raw else value


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of what such headers hold
@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_patient_and_study_are_those_of_the_images(tmp_path: Path, case: str, kind: str) -> None:
    folder = tmp_path / "ct"
    for path in write_series(folder, phantom(SHAPE)):
        raw_elements(path, HEADERS[case])
    seg, ct = seg_of(folder, tmp_path / "seg.dcm", kind)
    for name in {*HEADERS[case]} - {*OF_THE_SEG}:
        if name in ct and "VRs" not in case:
            assert stored(seg, name) == stored(ct, name), name
    for name in IDENTITY:
        assert str(seg.get(name) or "") == str(ct.get(name) or ""), name
    again = hd.seg.segread(tmp_path / "seg.dcm")
    assert int(again.pixel_array.sum()) == 4


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_sequences_and_numbers_of_any_transfer_syntax(tmp_path: Path, syntax: str) -> None:
    """Implicit VR, explicit VR, big endian: the bytes of texts in sequences are kept too."""
    issuer = item(UniversalEntityID="x")
    other = item(PatientID="4711-B", TypeOfPatientID="TEXT", IssuerOfPatientIDQualifiersSequence=issuer)
    tags = {"OtherPatientIDsSequence": other, "PregnancyStatus": 4, "PatientSize": "1.80", "PatientName": "DOE^JANE"}
    uid = pydicom.uid.UID(syntax)
    for path in write_series(tmp_path / "ct", phantom(SHAPE), **tags):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, ds, implicit_vr=uid.is_implicit_VR, little_endian=uid.is_little_endian)
    seg, ct = seg_of(tmp_path / "ct", tmp_path / "seg.dcm")
    assert (seg.PregnancyStatus, seg.PatientSize, seg.PatientName) == (4, 1.8, "DOE^JANE")
    assert seg.OtherPatientIDsSequence == ct.OtherPatientIDsSequence
    assert seg.OtherPatientIDsSequence[0].IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "x"


def test_images_of_several_series_are_named_in_their_own(tmp_path: Path) -> None:
    """A scan whose files each have their own series UID, as left by some anonymisers."""
    for k, path in enumerate(write_series(tmp_path / "ct", phantom(SHAPE))):
        edit(path, SeriesInstanceUID=f"1.2.3.{k}")
    seg, _ = seg_of(tmp_path / "ct", tmp_path / "seg.dcm")
    images = [pydicom.dcmread(path) for path in (tmp_path / "ct").iterdir()]
    named = {
        str(image.ReferencedSOPInstanceUID): str(series.SeriesInstanceUID)
        for series in seg.ReferencedSeriesSequence
        for image in series.ReferencedInstanceSequence
    }
    assert named == {str(ds.SOPInstanceUID): str(ds.SeriesInstanceUID) for ds in images}


@pytest.mark.parametrize(
    ("name", "value"),
    [("StudyDescription", ("FD", b"abcd")), ("OtherPatientIDsSequence", ("FD", b"PLANTED^NAME"))],
)
def test_what_cannot_be_repeated_is_named_before_the_network_runs(
    tmp_path: Path, name: str, value: tuple[str, bytes]
) -> None:
    for path in write_series(tmp_path / "ct", phantom(SHAPE)):
        raw_elements(path, {name: value})
    image = open_ct(tmp_path / "ct")
    with pytest.raises(UnsupportedImageError, match=rf"{name} \(00.*output_format=.nifti") as caught:
        source_headers("ct", image.files, image.affine, [])
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("kind", ["dicom-seg", "dicom-seg-labelmap"])
def test_what_highdicom_refuses_is_found_before_the_network_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever the reason: a SEG of one voxel is made with the same images, in the same way."""
    write_series(tmp_path / "ct", phantom(SHAPE))
    read = open_ct(tmp_path / "ct")
    planned = SimpleNamespace(
        grid=SimpleNamespace(affine=read.affine), metadata=read.metadata, files=read.files, frames=()
    )
    CaseWriter(Outputs(output_format=kind), tmp_path / "ct", None, planned, "ab" * 32)
    monkeypatch.setattr(hd.seg.Segmentation, "__init__", Mock(side_effect=ValueError("DOE^JANE")))
    with pytest.raises(
        OutputError, match=r"cannot make a DICOM SEG of this series \(ValueError\).*output_format=.nifti"
    ) as found:
        CaseWriter(Outputs(output_format=kind), tmp_path / "ct", None, planned, "ab" * 32)
    assert "DOE" not in str(found.value)


def test_messages_of_libraries_stay_out_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though pydicom sets the level of its log when it is imported, as late as that may be."""
    monkeypatch.setattr(pydicom, "config", pydicom.config)
    monkeypatch.delitem(sys.modules, "pydicom.config")
    set_up_logging(verbose=False)
    importlib.import_module("pydicom.config")
    for name in ("pydicom", "pydicom.pixels.utils", "highdicom.base"):
        logging.getLogger(name).error("StudyInstanceUID 1.2.3.4")
    assert not caplog.text
