"""The record of a case: input, weights, configuration, geometry, files, time and memory.

The types describe ``<name>_seg.json``; ``attunet3d.segmenter.record_schema`` makes a JSON Schema of them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast, overload

import nibabel as nib
import numpy as np
import torch

from attunet3d.checkpoint import file_sha256
from attunet3d.config.files import bundle_metadata
from attunet3d.config.recipe import RECIPE_IDS, read_recipe
from attunet3d.io.printable import without_uids
from attunet3d.runtime.variants import Variant
from attunet3d.transforms.grid import Grid, voxel_ml
from attunet3d.version import __version__

# Config ids that can change a voxel of the mask: those of a recipe, and two more.
RECORDED_IDS = ("allow_uneven", "allow_smaller_windows", *RECIPE_IDS)
# Of the metadata of a CT.
_SOURCE_KEYS = ("format", "series_uid", "slices", "gantry_tilt_deg")
_LIBRARIES = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "pydicom")
INTENDED_USE = "research only, not a medical device"

# Keywords of JSON Schema.
_BY_AXIS = {"minItems": 3, "maxItems": 3}
_SHA256 = {"pattern": "^[0-9a-f]{64}$"}
_NOT_NEGATIVE = {"minimum": 0}


class _RequiredSource(TypedDict):
    format: Annotated[str, 'format of the file: "dicom", "nifti", "nrrd" or "metaimage"']


class Source(_RequiredSource, total=False):
    """The CT, as its file describes it; all but the format only for DICOM."""

    series_uid: Annotated[str, "SeriesInstanceUID of the images; not with keep_uids=False"]
    slices: Annotated[int, "number of images, or frames, that were read"]
    gantry_tilt_deg: Annotated[float, "tilt of the gantry, degrees"]


class Checkpoint(TypedDict):
    """The weights of the network."""

    file: Annotated[str, "file name"]
    sha256: Annotated[str, "SHA-256 of the file", _SHA256]
    recipe: Annotated[bool, "whether the file holds the recipe that the weights were trained with"]


class Config(TypedDict):
    """The values of the inference config that can change a voxel of the mask."""

    allow_uneven: Annotated[bool, "whether slices at uneven distances may be interpolated"]
    allow_smaller_windows: Annotated[bool, "whether windows may be smaller than configured if memory is short"]
    spacing: Annotated[float | list[float], "voxel size of the grid that the network works on, mm, by axis or for all"]
    antialias: Annotated[bool, "whether the CT is smoothed before it is sampled more coarsely"]
    hu_window: Annotated[list[float], "HU that become 0 and 1", {"minItems": 2, "maxItems": 2}]
    roi_size: Annotated[int | list[int], "smallest window, voxels, by axis or for all; -1 is the whole axis"]
    max_window_voxels: Annotated[int | None, "largest window; null for windows of roi_size"]
    overlap: Annotated[float, "overlap of neighbouring windows, as a share of roi_size"]
    skip_below: Annotated[float | None, "windows without a voxel above this value, after hu_window, are skipped"]
    body_threshold: Annotated[float | None, "windows lie over the box of the voxels above this value; null: over all"]
    scales: Annotated[list[float], "test-time scales, whose probabilities are averaged"]
    threshold: Annotated[float, "probability above which a voxel is pancreas"]
    keep_components: Annotated[float, "components smaller than this share of the largest are removed"]
    num_classes: Annotated[int, "output channels of the network"]
    channels: Annotated[list[int], "channels of the network, by level"]
    network_def: Annotated[dict[str, Any], "class of the network and its arguments"]


class Versions(TypedDict):
    """Versions of Python and the libraries that results depend on."""

    python: Annotated[str, "version of Python"]
    torch: Annotated[str, "version of torch"]
    monai: Annotated[str, "version of monai"]
    numpy: Annotated[str, "version of numpy"]
    nibabel: Annotated[str, "version of nibabel"]
    SimpleITK: Annotated[str, "version of SimpleITK"]
    pydicom: Annotated[str, "version of pydicom"]


class Geometry(TypedDict):
    """The grid of the CT, and of the mask."""

    shape: Annotated[list[int], "voxels along x, y, z", _BY_AXIS]
    spacing_mm: Annotated[list[float], "voxel size along x, y, z, mm", _BY_AXIS]
    orientation: Annotated[str, 'directions in the patient that x, y, z are closest to, such as "LPS"']
    affine_ras_mm: Annotated[list[list[float]], "4 x 4: voxel indices to RAS+ mm", {"minItems": 4, "maxItems": 4}]


class Windows(TypedDict):
    """Sliding-window inference."""

    size: Annotated[list[int], "voxels along x, y, z", _BY_AXIS]
    run: Annotated[int, "number of windows that went through the network", _NOT_NEGATIVE]
    skipped: Annotated[int, "number of windows that did not: they hold nothing above skip_below", _NOT_NEGATIVE]
    batch: Annotated[int, "windows per forward pass"]


class _RequiredSeconds(TypedDict):
    read: Annotated[float, "from the file to HU", _NOT_NEGATIVE]
    preprocess: Annotated[float, "to the network's grid and values", _NOT_NEGATIVE]
    network: Annotated[float, "the windows", _NOT_NEGATIVE]
    postprocess: Annotated[float, "back to the grid of the CT", _NOT_NEGATIVE]


class Seconds(_RequiredSeconds, total=False):
    """Wall time of the stages, s."""

    attention: Annotated[float, "the windows once more, for attention maps", _NOT_NEGATIVE]
    write: Annotated[float, "mask, maps and picture", _NOT_NEGATIVE]


class Memory(TypedDict):
    """Memory of the process, MB."""

    predicted: Annotated[float, "peak that was planned for the case", _NOT_NEGATIVE]
    peak: Annotated[float | None, "peak since the process started; null if the system does not tell"]


class SessionRecord(TypedDict):
    """The part of a record that all cases of a session share."""

    attunet3d: Annotated[str, "version of this package"]
    bundle: Annotated[str | None, "version of the bundle"]
    checkpoint: Checkpoint
    device: Annotated[str, '"cpu", or the name of the GPU']
    backend: Annotated[str, 'library that runs the network, such as "torch" or "openvino"']
    precision: Annotated[str, "floating-point type of the network, and variant of it if there are several"]
    presets: Annotated[list[str], "names of the presets, in the order in which they were merged"]
    config: Config
    versions: Versions
    warnings: Annotated[list[str], "what a reader should check before the mask is used"]


class RunRecord(TypedDict):
    """The part of a record that tells how the network was run."""

    model_grid_shape: Annotated[list[int], "voxels of the grid that the network works on, along x, y, z", _BY_AXIS]
    windows: Windows
    seconds: Seconds
    memory_mb: Memory


class _RequiredRecord(SessionRecord, RunRecord):
    created: Annotated[str, "when the mask was made: ISO 8601, UTC"]
    input: Annotated[str, "name of the CT's file or folder"]
    input_state: Annotated[str | None, "SHA-256 of the path, and the names, sizes and times of the files, of the CT"]
    source: Source
    geometry: Geometry
    voxels: Annotated[int, "number of voxels in the mask", _NOT_NEGATIVE]
    volume_ml: Annotated[float, "volume of the mask, mL", _NOT_NEGATIVE]
    intended_use: Annotated[str, "what the mask may be used for", {"const": INTENDED_USE}]


class CaseRecord(_RequiredRecord, total=False):
    """Record of a case, ``<name>_seg.json``; the keys that follow are there only if files were written."""

    mask_sha256: Annotated[str, "SHA-256 of the file that output names", _SHA256]
    output: Annotated[str, "file name of the mask"]
    output_format: Annotated[str, "name of its format"]
    outputs: Annotated[dict[str, str], "file name by format, if several formats were asked for"]
    attention: Annotated[dict[str, str], "file name of each attention map by its name, if they were asked for"]
    attention_meaning: Annotated[str, "what the values of the maps mean"]


def library_versions() -> Versions:
    """Look up the versions of Python and the libraries that results depend on."""
    return cast(Versions, {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}})


def session_record(
    checkpoint: Path,
    device: torch.device,
    variant: Variant,
    presets: Sequence[str | Path],
    values: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> SessionRecord:
    """Make the part of the record that all cases of a session share.

    Args:
        checkpoint: the weights' file.
        device: where the network runs.
        variant: of the network that runs there.
        presets: as they were given.
        values: the inference config's.
        warnings: of the weights and their recipe.
    """
    return {
        "attunet3d": __version__,
        "bundle": bundle_metadata().get("version"),
        "checkpoint": {
            "file": checkpoint.name,
            "sha256": file_sha256(checkpoint),
            "recipe": read_recipe(checkpoint) is not None,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "backend": variant.backend,
        "precision": variant.precision,
        "presets": [Path(preset).stem for preset in presets],
        "config": cast(Config, {name: values[name] for name in RECORDED_IDS}),
        "versions": library_versions(),
        "warnings": list(warnings),
    }


def made_with(record: Mapping[str, Any], session: SessionRecord) -> bool:
    """Whether a record, as read from its file, is of the weights and values that a ``session_record`` names."""
    now = json.loads(json.dumps([session["config"], session["precision"]]))
    same_weights = record["checkpoint"]["sha256"] == session["checkpoint"]["sha256"]
    return bool(same_weights and [record["config"], record["precision"]] == now)


def case_record(
    ct: str | os.PathLike[str],
    mask: np.ndarray,
    grid: Grid,
    metadata: Mapping[str, Any],
    session: SessionRecord,
    run: RunRecord,
    keep_uids: bool = True,
) -> CaseRecord:
    """Make the record of one case, as far as known before files are written.

    Args:
        ct: its path; only the name is kept.
        mask: uint8 (X, Y, Z).
        grid: of the CT.
        metadata: of the CT, see ``Volume.metadata``.
        session: from ``session_record``.
        run: how the network was run.
        keep_uids: if false, the series' UID is left out, and UIDs in the CT's name and the warnings are masked.
    """
    voxels = int(np.count_nonzero(mask))
    warnings = [*metadata.get("warnings", []), *session.get("warnings", [])]
    if voxels == 0:
        warnings.append("the mask is empty: no pancreas was found")
    name = Path(os.path.abspath(ct)).name
    source = cast(Source, {key: metadata[key] for key in _SOURCE_KEYS if key in metadata})
    if not keep_uids:
        source.pop("series_uid", None)
        name, *warnings = map(without_uids, (name, *warnings))
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "input": name,
        "input_state": metadata.get("state"),
        "source": source,
        **session,
        "geometry": {
            "shape": list(mask.shape),
            "spacing_mm": [float(s) for s in nib.affines.voxel_sizes(grid.affine)],
            "orientation": "".join(nib.aff2axcodes(grid.affine)),
            "affine_ras_mm": grid.affine.tolist(),
        },
        **run,
        "voxels": voxels,
        "volume_ml": round(voxels * voxel_ml(grid.affine), 9),  # 78.96, not 78.96000000000001
        "warnings": warnings,
        "intended_use": INTENDED_USE,
    }


@overload
def megabytes(n: int) -> float: ...
@overload
def megabytes(n: None) -> None: ...
def megabytes(n: int | None) -> float | None:
    """Convert bytes to MB, to one decimal; None stays None."""
    return None if n is None else round(n / 1e6, 1)
