"""Small DICOM series for tests, written with pydicom: a water cylinder in air, with fat around it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE = CT_IMAGE + ".1"
STUDY, PLACE = generate_uid(), generate_uid()  # one examination of one patient
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def phantom(shape: tuple[int, int, int] = (12, 10, 6), seed: int = 0) -> np.ndarray:
    """int16 HU (X, Y, Z), varied so that swapped axes are detected."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-120, 200, shape).astype(np.int16)
    hu[:2] = -1000
    return hu


def ct_dataset(path: Path, stored: np.ndarray, position: Any, uid: str, **tags: Any) -> FileDataset:
    """One slice; ``stored`` is (rows, columns). A tag given as None is left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = str(tags.get("SOPClassUID") or CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CT_IMAGE,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": uid,
        "StudyInstanceUID": STUDY,
        "FrameOfReferenceUID": PLACE,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SeriesDescription": "portal venous",
        "PatientName": "DOE^JANE",
        "PatientID": "4711",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [0.8, 0.7],
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": [float(f"{p:.6f}") for p in position],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": stored.tobytes(),
        **tags,
    }
    for name, value in values.items():
        if value is not None:
            setattr(ds, name, value)
    return ds


def save(ds: FileDataset, path: Path) -> Path:
    """Works in pydicom 2 and 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if int(pydicom.__version__.split(".")[0]) < 3:
        ds.is_little_endian, ds.is_implicit_VR = True, False
        ds.save_as(path, write_like_original=False)
    else:
        ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    hu: np.ndarray,
    *,
    origin: tuple[float, float, float] = (-100.0, -50.0, 20.0),
    step: tuple[float, float, float] = (0.0, 0.0, 2.5),
    uid: str | None = None,
    slope: float = 1,
    intercept: float = -1024,
    dtype: Any = np.int16,
    **tags: Any,
) -> list[Path]:
    """Write one file per slice of ``hu`` (X, Y, Z), with names in no order of the positions."""
    uid = uid or generate_uid()
    order = np.random.default_rng(1).permutation(hu.shape[2])
    paths = []
    for k in range(hu.shape[2]):
        stored = np.rint((hu[:, :, k].T - intercept) / slope).astype(dtype)
        position = np.array(origin) + k * np.array(step)
        path = folder / f"image{order[k]:02d}"
        tags_k = {"RescaleSlope": slope, "RescaleIntercept": intercept, "InstanceNumber": int(order[k]), **tags}
        paths.append(save(ct_dataset(path, stored, position, uid, **tags_k), path))
    return paths


def edit(path: Path, **tags: Any) -> None:
    """Change tags of a file in place; None removes a tag."""
    ds = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    save(ds, path)


def write_enhanced(
    path: Path,
    hu: np.ndarray,
    *,
    origin: tuple[float, float, float] = (-100.0, -50.0, 20.0),
    step: tuple[float, float, float] = (0.0, 0.0, 2.5),
    intercepts: Sequence[float] | None = None,
    phases: int = 1,
    **tags: Any,
) -> Path:
    """Write an Enhanced CT: all slices of ``hu`` (X, Y, Z) as the frames of one file, from the last to the first.

    With several phases the slices follow each other once more for each, 100 HU higher.
    """
    count = hu.shape[2]
    frames, groups = [], []
    for phase in range(phases):
        for k in reversed(range(count)):
            intercept = intercepts[k] if intercepts else -1024
            frames.append(hu[:, :, k].T + 100 * phase - intercept)
            position = [float(f"{p:.6f}") for p in np.array(origin) + k * np.array(step)]
            groups.append(
                item(
                    FrameContentSequence=item(
                        TemporalPositionIndex=phase + 1, StackID="1", InStackPositionNumber=k + 1
                    ),
                    PlanePositionSequence=item(ImagePositionPatient=position),
                    PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU"),
                    CTImageFrameTypeSequence=item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
                )[0]
            )
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=list(AXIAL)),
        PixelMeasuresSequence=item(PixelSpacing=[0.8, 0.7], SliceThickness=2.5),
    )
    values = {
        "SOPClassUID": ENHANCED_CT_IMAGE,
        "NumberOfFrames": len(frames),
        "Rows": hu.shape[1],
        "SharedFunctionalGroupsSequence": shared,
        "PerFrameFunctionalGroupsSequence": groups,
        **dict.fromkeys(("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")),
        **dict.fromkeys(("RescaleSlope", "RescaleIntercept")),
        **tags,
    }
    stored = np.concatenate(frames).astype(np.int16)
    return save(ct_dataset(path, stored, origin, tags.pop("SeriesInstanceUID", generate_uid()), **values), path)


def item(**tags: Any) -> list[pydicom.Dataset]:
    """A sequence of one item."""
    ds = pydicom.Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return [ds]


def raw_elements(path: Path, values: Mapping[str, bytes | tuple[str, bytes] | None]) -> None:
    """Put bytes into elements of a file, under another VR if one is given, whatever the standard says; None removes."""
    ds = pydicom.dcmread(path)
    for name, value in values.items():
        tag = pydicom.tag.Tag(name)
        if value is None:
            ds.pop(tag, None)
            continue
        vr, data = value if isinstance(value, tuple) else (pydicom.datadict.dictionary_VR(tag), value)
        data += b" " * (len(data) % 2)
        ds._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(data), data, 0, False, True)
    ds._read_charset = ds._character_set
    ds.save_as(path)
