"""Sound inputs to be damaged: one small CT in every format and transfer syntax that can be written here."""

from __future__ import annotations

import gzip
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "io" / "dicom")]

from dicom_files import phantom, write_enhanced, write_series  # noqa: E402

REAL_FILES = TESTS.parents[1] / "shared" / "data" / "dicom_edge" / "transfer_syntaxes"
PATIENT = {
    "PatientName": "FUZZED^PATIENT",
    "PatientID": "PID-80815",
    "PatientBirthDate": "19560708",
    "AccessionNumber": "ACC-42424",
    "ReferringPhysicianName": "QUOTED^DOCTOR",
    "InstitutionName": "SAINT FUZZ",
}
SYNTAXES = {
    "dicom implicit": pydicom.uid.ImplicitVRLittleEndian,
    "dicom explicit": pydicom.uid.ExplicitVRLittleEndian,
    "dicom big endian": pydicom.uid.ExplicitVRBigEndian,
    "dicom deflated": pydicom.uid.DeflatedExplicitVRLittleEndian,
    "dicom RLE": pydicom.uid.RLELossless,
    "dicom JPEG 2000": pydicom.uid.JPEG2000Lossless,
    "dicom JPEG-LS": pydicom.uid.JPEGLSLossless,
}
REAL = {
    "real JPEG baseline": "CTImage*.4.50.dcm",
    "real JPEG 12 bits": "CTImage*.4.51.dcm",
    "real JPEG lossless": "CTImage*.4.57.dcm",
    "real JPEG lossless SV1": "CTImage*.4.70.dcm",
    "real JPEG-LS": "CTImage*.4.80.dcm",
    "real JPEG 2000": "CTImage*.4.91.dcm",
}
SHAPE = (36, 34, 6)  # JPEG 2000 wants at least 32 rows and columns
_AFFINE = np.array([[-0.75, 0, 0, 100], [0, 0.5, 0, -50], [0, 0, 2.5, 20], [0, 0, 0, 1]])


def write_inputs(folder: Path) -> dict[str, Path]:
    """Write the inputs, the same bytes every time; gives their paths by kind. What has no encoder here is left out."""
    found: dict[str, Path] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, syntax in SYNTAXES.items():
            with suppress(Exception):  # pydicom raises whatever it likes where an encoder is missing
                found[kind] = _series(folder / kind.replace(" ", "_"), syntax)
        found["dicom enhanced"] = _enhanced(folder / "dicom_enhanced")
        for kind, name in REAL.items():
            for path in REAL_FILES.glob(name):
                found[kind] = _real(folder / kind.replace(" ", "_"), path)
    for kind, write in _FILES.items():
        place = folder / kind.replace(" ", "_")
        place.mkdir()
        found[kind] = write(place)
    return found


def _series(folder: Path, syntax: str) -> Path:
    hu = phantom(SHAPE)
    for k, path in enumerate(write_series(folder, hu, uid="1.2.3.4", **PATIENT)):
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.5"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{k}"
        if syntax in pydicom.uid.RLETransferSyntaxes or "1.2.840.10008.1.2.4." in syntax:
            ds.compress(syntax, generate_instance_uid=False)
        else:
            if syntax == pydicom.uid.ExplicitVRBigEndian:
                ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
            ds.file_meta.TransferSyntaxUID = syntax
        _save(ds, path, syntax)
    return folder


def _enhanced(folder: Path) -> Path:
    path = write_enhanced(folder / "frames.dcm", phantom(SHAPE), **PATIENT)
    ds = pydicom.dcmread(path)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.5"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.0"
    _save(ds, path, pydicom.uid.ExplicitVRLittleEndian)
    return folder


def _save(ds: Any, path: Path, syntax: str) -> None:
    list(ds.iterall())  # decodes every element, whose bytes would be copied as they are
    little, implicit = syntax != pydicom.uid.ExplicitVRBigEndian, syntax == pydicom.uid.ImplicitVRLittleEndian
    if pydicom.__version__ < "3":
        ds.is_little_endian, ds.is_implicit_VR = little, implicit
        ds.save_as(path, write_like_original=False)
    else:
        pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=little, force_encoding=True)


def _real(folder: Path, path: Path) -> Path:
    folder.mkdir()
    for k in range(2):
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient = [-161.4, -148.8, 4.7 + k]
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{k}"
        for name, value in PATIENT.items():
            setattr(ds, name, value)
        ds.save_as(folder / f"{k}.dcm")
    return folder


def _nifti(name: str, kind: Any = nib.Nifti1Image, scaled: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = kind(phantom(SHAPE), _AFFINE)
        data = bytearray(image.to_bytes())
        if scaled:  # scl_slope and scl_inter
            data[112:120] = np.array([1.5, -10], "<f4").tobytes()
        packed = gzip.compress(bytes(data), mtime=0) if name.endswith(".gz") else bytes(data)
        (folder / name).write_bytes(packed)
        return folder / name

    return write


def _itk(name: str, compress: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = sitk.GetImageFromArray(np.ascontiguousarray(phantom(SHAPE).T))
        image.SetSpacing((0.75, 0.5, 2.5))
        sitk.WriteImage(image, str(folder / name), useCompression=compress)
        return folder / name

    return write


_FILES: dict[str, Callable[[Path], Path]] = {
    "nifti": _nifti("ct.nii"),
    "nifti scaled": _nifti("ct.nii", scaled=True),
    "nifti gzip": _nifti("ct.nii.gz"),
    "nifti-2": _nifti("ct.nii", nib.Nifti2Image),
    "nrrd": _itk("ct.nrrd"),
    "nrrd gzip": _itk("ct.nrrd", compress=True),
    "nhdr": _itk("ct.nhdr"),
    "metaimage": _itk("ct.mha"),
    "metaimage zlib": _itk("ct.mha", compress=True),
    "mhd": _itk("ct.mhd"),
}
