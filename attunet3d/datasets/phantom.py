"""Synthetic abdominal CTs with exact pancreas masks, for tests, benchmarks and first steps.

A patient is a list of organs made of ellipsoids and tubes in a body frame, see ``phantom_anatomy``. Any grid can sample
the same patient: voxel centres are mapped by the affine to world (RAS+ mm), then to the body frame, where the mask is
an analytic inside test. The anatomy is schematic and its variation invented: phantoms support no claim about patients.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from attunet3d.datasets.phantom_anatomy import FAR, NUMBERS, WAVES_MM, Organ, Patient, draw_patient, rotation
from attunet3d.errors import ConfigError
from attunet3d.io import atomic_path, write_text_atomic
from attunet3d.io.writer import make_folder
from attunet3d.transforms.grid import voxel_ml

ORIENTATIONS = ("RAS", "LAS", "LPS", "oblique")
_SPACING_RANGE_MM = (0.3, 20.0)
_SHAPE_RANGE = (8, 2048)
_SLAB_VOXELS = 2**19  # working memory is about 100 bytes per slab voxel, for volumes of any size


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT.

    Attributes:
        image: int16 HU (X, Y, Z).
        mask: uint8 (X, Y, Z), 1 = pancreas.
        organs: uint8 (X, Y, Z), see ``phantom_anatomy.NUMBERS``.
        affine: float64 (4, 4), from voxel indices to RAS+ mm.
        record: parameters, JSON-serializable: seed, spacing in mm, orientation, noise in HU, pancreas volume in mL, ...
    """

    image: np.ndarray
    mask: np.ndarray
    organs: np.ndarray
    affine: np.ndarray
    record: dict[str, Any]


def _voxel_boxes(organ: Organ, voxel_from_body: np.ndarray, shape: tuple[int, ...], pad_mm: float) -> np.ndarray:
    """Return index ranges (parts, 2, 3) of the voxels that may lie within ``pad_mm`` of each part."""
    boxes = np.stack([part.box for part in organ.parts])
    center, half = boxes.mean(1), (boxes[:, 1] - boxes[:, 0]) / 2 + pad_mm
    center = center @ voxel_from_body[:3, :3].T + voxel_from_body[:3, 3]
    half = half @ np.abs(voxel_from_body[:3, :3]).T
    return np.stack([np.ceil(center - half), np.floor(center + half) + 1], axis=1).clip(0, shape).astype(int)


def _render(
    patient: Patient, affine: np.ndarray, shape: tuple[int, ...], noise_hu: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the patient on a grid, slab by slab along the last axis: int16 HU and uint8 organs, both (X, Y, Z)."""
    image, organs = np.empty(shape, np.int16, order="F"), np.zeros(shape, np.uint8, order="F")
    body_from_voxel = np.linalg.inv(patient.body_to_world) @ affine
    # Organ surfaces are ramps slightly wider than a voxel: partial volume and the scanner's blur.
    edge_mm = float(np.linalg.norm(body_from_voxel[:3, :3], axis=0).mean()) + 0.4
    pad_mm = edge_mm + sum(amplitude for amplitude, _ in WAVES_MM)
    boxes = [_voxel_boxes(organ, np.linalg.inv(body_from_voxel), shape, pad_mm) for organ in patient.organs]
    depth = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    last_noise = rng.standard_normal((*shape[:2], 1), np.float32)
    for start in range(0, shape[2], depth):
        stop = min(start + depth, shape[2])
        i, j, k = np.ogrid[: shape[0], : shape[1], start:stop]

        def linear(row: np.ndarray, i: Any = i, j: Any = j, k: Any = k) -> np.ndarray:
            return (row[0] * i + row[1] * j).astype(np.float32) + (row[2] * k + row[3]).astype(np.float32)

        xyz = [linear(row) for row in body_from_voxel[:3]]
        texture = np.zeros_like(xyz[0])
        for axis, amplitude, wave in patient.waves:
            swing = np.sin(linear(wave @ body_from_voxel))
            xyz[axis] += np.float32(amplitude) * swing
            texture += swing
        hu = np.full_like(texture, -1000)
        for organ, box in zip(patient.organs, boxes, strict=True):
            box = box.clip([0, 0, start], [*shape[:2], stop]) - [0, 0, start]
            box = box[present := (box[:, 1] > box[:, 0]).all(axis=1)]
            if not len(box):
                continue
            low, high = box[:, 0].min(0), box[:, 1].max(0)
            level = np.full(high - low, FAR, np.float32)
            for part, (first, end) in zip(np.array(organ.parts, object)[present], box, strict=True):
                here = tuple(map(slice, first, end))
                view = level[tuple(map(slice, first - low, end - low))]
                np.minimum(view, part.level(*(c[here] for c in xyz)), out=view)
            here = tuple(map(slice, low, high))
            for layer, (inset, value, clip) in enumerate(organ.layers):
                depth_mm = level + inset
                if clip is not None:
                    np.maximum(depth_mm, clip(*(c[here] for c in xyz)), out=depth_mm)
                if layer == 0:
                    organs[..., start:stop][here][depth_mm < 0] = organ.number
                hu[here] += np.clip(0.5 - depth_mm / edge_mm, 0, 1) * (value - hu[here])
        noise = np.concatenate([last_noise, rng.standard_normal(hu.shape, np.float32)], axis=2)
        last_noise = noise[..., -1:].copy()
        hu += 1.5 * texture + np.float32(noise_hu) * _correlate(noise)
        image[..., start:stop] = np.rint(hu).clip(-1024, 3071)
    return image, organs


def _correlate(white: np.ndarray) -> np.ndarray:
    """Filter white noise (X, Y, Z + 1) to noise (X, Y, Z) of the same variance, correlated between neighbours."""
    noise = white[..., 1:] + np.float32(0.4) * white[..., :-1]
    for axis in (0, 1):
        noise = 2 * noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise / np.float32(6 * np.sqrt(1.16))


def _affine(shape: tuple[int, ...], spacing: tuple[float, ...], orientation: str, tilt_deg: np.ndarray) -> np.ndarray:
    """Return the affine to RAS+ mm of a grid centred on the world's origin; exact in float32, as NIfTI stores it."""
    signs = {"RAS": (1, 1, 1), "LAS": (-1, 1, 1)}.get(orientation, (-1, -1, 1))
    affine = np.eye(4)
    affine[:3, :3] = (rotation(tilt_deg) if orientation == "oblique" else np.eye(3)) * signs * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine.astype(np.float32).astype(np.float64)


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] | None = None,
    spacing: tuple[float, float, float] | None = None,
    orientation: str | None = None,
    noise_hu: float | None = None,
) -> Phantom:
    """Make a synthetic portal-venous abdominal CT with its exact pancreas mask.

    The patient only depends on ``seed``, not on the grid. Other arguments are by default drawn from the seed too.

    Args:
        seed: seed >= 0.
        shape: by default the grid covers the patient's field of view (about 280 to 380 mm in-plane, 185 to 235 mm along
            z). With ``spacing``, the grid has the same centre and may cut the patient.
        spacing: mm per voxel axis (by default 0.7 to 1.1 in-plane, 1.5 to 5 between slices; with ``shape`` alone field
            of view / shape).
        orientation: "RAS", "LAS", "LPS", or "oblique": LPS tilted by a few degrees.
        noise_hu: standard deviation of the noise.

    Raises:
        ConfigError: an argument is invalid.
    """
    _check(isinstance(seed, int | np.integer) and seed >= 0, "seed", seed, "an integer >= 0")
    if shape is not None:
        whole = all(isinstance(n, int | np.integer) and _SHAPE_RANGE[0] <= n <= _SHAPE_RANGE[1] for n in shape)
        _check(len(shape) == 3 and whole, "shape", shape, f"three integers in {list(_SHAPE_RANGE)}")
    if spacing is not None:
        ranged = all(_SPACING_RANGE_MM[0] <= mm <= _SPACING_RANGE_MM[1] for mm in spacing)
        _check(len(spacing) == 3 and ranged, "spacing", spacing, f"three numbers in {list(_SPACING_RANGE_MM)} mm")
    _check(orientation in (None, *ORIENTATIONS), "orientation", orientation, f"one of {list(ORIENTATIONS)}")
    _check(noise_hu is None or 0 <= noise_hu <= 500, "noise_hu", noise_hu, "in [0, 500] HU")

    for_patient, for_grid, for_noise = np.random.SeedSequence(seed).spawn(3)
    patient = draw_patient(for_patient)
    rng = np.random.default_rng(for_grid)
    in_plane, between = round(rng.uniform(0.7, 1.1), 3), float(rng.choice((1.5, 2.0, 2.5, 3.0, 5.0)))
    drawn_orientation = str(rng.choice(ORIENTATIONS, p=(0.25, 0.25, 0.3, 0.2)))
    tilt_deg, drawn_noise_hu = rng.uniform((-10, -4, -6), (10, 4, 6)), float(rng.uniform(9, 15))
    orientation = drawn_orientation if orientation is None else orientation
    noise_hu = drawn_noise_hu if noise_hu is None else float(noise_hu)
    if spacing is None:
        spacing = (in_plane, in_plane, between) if shape is None else tuple((patient.fov_mm / shape).tolist())
    if shape is None:
        shape = tuple(np.ceil(patient.fov_mm / spacing).astype(int).tolist())

    affine = _affine(shape, spacing, orientation, tilt_deg)
    image, organs = _render(patient, affine, shape, noise_hu, np.random.default_rng(for_noise))
    mask = (organs == NUMBERS["pancreas"]).astype(np.uint8)
    volume_ml = np.count_nonzero(mask) * voxel_ml(affine)
    record = {"seed": int(seed), "spacing_mm": [float(mm) for mm in spacing], "orientation": orientation}
    record |= {"noise_hu": noise_hu, "pancreas_ml": volume_ml} | patient.record
    return Phantom(image, mask, organs, affine, record)


def write_phantoms(
    output_dir: Path,
    cases: int,
    *,
    seed: int = 0,
    spacing: tuple[float, float, float] | None = None,
    shape: tuple[int, int, int] | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.0,
    organs: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write phantoms as NIfTI and a datalist in MONAI's (MSD) format.

    The files are imagesTr/phantom_0000.nii.gz (int16 HU), labelsTr/phantom_0000.nii.gz (uint8, 1 = pancreas), ... and
    datalist.json with the keys "training", "validation" and "test", in the order of the cases. A case depends only on
    ``seed`` and its number, so more cases leave the first files unchanged. There is always a training case, and with
    two or more cases a validation case.

    Args:
        output_dir: folder of the files.
        cases: number of phantoms.
        seed: seed >= 0.
        spacing: see ``make_phantom``, mm.
        shape: see ``make_phantom``.
        validation_fraction: fraction of the cases for validation.
        test_fraction: fraction of the cases for test.
        organs: write label maps of all organs (``NUMBERS``; pancreas is 7, as the datalist says).
        progress: called with (cases done, cases).

    Returns:
        Path of the datalist.

    Raises:
        ConfigError: an argument is invalid.
        OutputError: a file cannot be written.
    """
    _check(isinstance(cases, int | np.integer) and 1 <= cases <= 9999, "cases", cases, "an integer in [1, 9999]")
    _check(isinstance(seed, int | np.integer) and seed >= 0, "seed", seed, "an integer >= 0")
    _check(0 <= validation_fraction < 1, "validation_fraction", validation_fraction, "in [0, 1)")
    limit = 1 - validation_fraction
    _check(0 <= test_fraction < limit, "test_fraction", test_fraction, "in [0, 1 - validation_fraction)")
    output_dir = Path(output_dir)
    entries = []
    for case in range(cases):
        case_seed = int(np.random.SeedSequence(seed, spawn_key=(case,)).generate_state(1, np.uint64)[0])
        phantom = make_phantom(case_seed, shape=shape, spacing=spacing)
        entry = {key: f"{key}sTr/phantom_{case:04d}.nii.gz" for key in ("image", "label")}
        _save_nifti(phantom.image, phantom.affine, output_dir / entry["image"])
        _save_nifti(phantom.organs if organs else phantom.mask, phantom.affine, output_dir / entry["label"])
        entries.append(entry)
        if progress is not None:
            progress(case + 1, cases)

    validation = min(max(1, round(validation_fraction * cases)), cases - 1)
    test = min(round(test_fraction * cases), cases - 1 - validation)
    training = cases - validation - test
    names = {"background": 0} | (NUMBERS if organs else {"pancreas": 1})
    datalist = {
        "name": "attunet3d phantoms",
        "description": "Synthetic abdominal CTs with exact pancreas masks; not data from patients.",
        "labels": {str(number): name for name, number in names.items()},
        "pancreas_labels": [names["pancreas"]],
        "modality": {"0": "CT"},
        "numTraining": training,
        "numValidation": validation,
        "numTest": test,
        "training": entries[:training],
        "validation": entries[training : training + validation],
        "test": entries[training + validation :],
    }
    return write_text_atomic(output_dir / "datalist.json", json.dumps(datalist, indent=2) + "\n")


def _save_nifti(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _check(valid: bool, name: str, value: object, wanted: str) -> None:
    if not valid:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")
