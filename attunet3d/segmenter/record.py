"""The record of a run: what a mask was made from, with what, and how long it took."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

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

# Values of the config that can change a voxel of the mask, and so belong in every record; the others are told elsewhere
# in it, or change nothing.
_RECORDED_IDS = ("allow_uneven", "allow_smaller_windows", *RECIPE_IDS)
# Of what its reader says of a CT.
_SOURCE_FACTS = ("format", "series_uid", "slices", "gantry_tilt_deg")
_LIBRARIES = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "pydicom")


def library_versions() -> dict[str, str]:
    """Of Python and the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def session_record(
    checkpoint: Path,
    device: torch.device,
    variant: Variant,
    presets: Sequence[str | Path],
    values: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """What holds for all cases of a session.

    Args:
        checkpoint: the weights' file.
        device: where the network runs.
        variant: of the network, that runs there.
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
        "config": {name: values[name] for name in _RECORDED_IDS},
        "versions": library_versions(),
        "warnings": list(warnings),
    }


def made_with(record: Mapping[str, Any], session: Mapping[str, Any]) -> bool:
    """Whether a record, as read from its file, is of the weights and values that a `session_record` names."""
    same = ("config", "precision")
    now = json.loads(json.dumps([session[key] for key in same]))
    return record["checkpoint"]["sha256"] == session["checkpoint"]["sha256"] and [record[key] for key in same] == now


def case_record(
    ct: str | os.PathLike[str],
    mask: np.ndarray,
    grid: Grid,
    facts: Mapping[str, Any],
    session: Mapping[str, Any],
    run: Mapping[str, Any],
    keep_uids: bool = True,
) -> dict[str, Any]:
    """The record of one case.

    Args:
        ct: its path; only the name is kept.
        mask: uint8 (X, Y, Z).
        grid: of the CT.
        facts: what its reader said, see `Volume.source`.
        session: from `session_record`.
        run: how it was run: model grid, windows, seconds, memory.
        keep_uids: without it the series' UID is left out, and UIDs are in neither the CT's name nor the warnings.
    """
    voxels = int(np.count_nonzero(mask))
    warnings = [*facts.get("warnings", []), *session.get("warnings", [])]
    if voxels == 0:
        warnings.append("the mask is empty: no pancreas was found")
    name = Path(os.path.abspath(ct)).name
    source = {key: facts[key] for key in _SOURCE_FACTS if key in facts}
    if not keep_uids:
        source.pop("series_uid", None)
        name, *warnings = map(without_uids, (name, *warnings))
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "input": name,
        "input_state": facts.get("state"),
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
        "intended_use": "research only, not a medical device",
    }


def megabytes(n: int | None) -> float | None:
    """Bytes in MB, to one decimal; None where it is not known."""
    return None if n is None else round(n / 1e6, 1)
