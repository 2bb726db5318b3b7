"""Segment CTs with the bundle's inference config: one session, many cases."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged, SaveImaged

from attunet3d import __version__
from attunet3d.io import CTReader, atomic_path, case_name
from attunet3d.io.writer import make_folder, save_mask
from attunet3d.runtime import choose_device, file_sha256, load_weights
from attunet3d.transforms.model_grid import source_grid
from attunet3d.workflow import make_workflow, parsed

# Values of the config that can change a voxel of the mask, and so belong in every record.
_RECORDED_IDS = ("spacing", "hu_window", "roi_size", "overlap", "skip_below", "num_classes", "channels", "network_def")


@dataclass(frozen=True)
class Segmentation:
    """A pancreas mask on the CT's own grid.

    Attributes:
        mask: uint8 (X, Y, Z), 1 is pancreas.
        affine: voxel -> RAS+ mm, the CT's own.
        path: the mask's file, if one was written.
        record: how the mask came about (see `Segmenter.segment`).
    """

    mask: np.ndarray
    affine: np.ndarray
    path: Path | None
    record: dict[str, Any]


class Segmenter:
    """The network loaded once, for many CTs.

    Args:
        checkpoint: weights; the bundle's own by default.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "auto", "fp32", "bf16" or "fp16".
        presets: preset names or files, merged in order over the bundle's inference config.
        overrides: ids of that config and their values, e.g. ``overlap=0.5``.

    Raises:
        CheckpointError: the weights cannot be read or do not fit the network.
        ConfigError: a preset, an id, the device or the precision does not exist.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        presets: Sequence[str | Path] = (),
        **overrides: Any,
    ) -> None:
        self.device = choose_device(device)
        changes = {"device": str(self.device), "precision": precision, **overrides}
        if checkpoint is not None:
            changes["checkpoint"] = str(checkpoint)
        workflow = make_workflow("inference", presets, changes)
        self.checkpoint = Path(parsed(workflow, "checkpoint"))
        # Device and precision are refused here, before the weights are read; both ids share their parameters.
        self._network = parsed(workflow, "network").eval()
        load_weights(parsed(workflow, "network_def"), self.checkpoint)
        self._inferer = parsed(workflow, "inferer")
        self._before = list(parsed(workflow, "preprocessing").transforms)
        # What SaveImaged would write, `segment` returns, and writes with its record.
        self._after = [t for t in parsed(workflow, "postprocessing").transforms if not isinstance(t, SaveImaged)]
        self._session = {
            "attunet3d": __version__,
            "bundle": workflow.parser["_meta_::version"],
            "checkpoint": {"file": self.checkpoint.name, "sha256": file_sha256(self.checkpoint)},
            "device": _device_name(self.device),
            "precision": str(self._network.dtype).removeprefix("torch."),
            "presets": [Path(preset).stem for preset in presets],
            "config": {name: workflow.parser[name] for name in _RECORDED_IDS},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "monai", "numpy", "nibabel", "SimpleITK", "pydicom")},
            },
        }

    def segment(
        self,
        ct: str | Path,
        output_dir: str | Path | None = None,
        *,
        name: str | None = None,
        series_uid: str | None = None,
        qc: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Segmentation:
        """Segment the pancreas in one CT.

        Args:
            ct: a NIfTI, NRRD or MetaImage file, or a folder with a DICOM series.
            output_dir: with it, ``<name>_seg.nii.gz`` (the CT's shape and affine) and ``<name>_seg.json`` (the record:
                versions, checkpoint hash, configuration, geometry, stage seconds, peak memory in MB, volume in mL,
                warnings) are written; it is made if it does not exist.
            name: what the files are called; by default as the CT.
            series_uid: which series of a DICOM folder.
            qc: also write ``<name>_seg.png``.
            progress: called as ``progress(stage, done, total)``.

        Raises:
            AttUNet3dError: the CT cannot be read, is no CT volume, or the output cannot be written; nothing is left
                half written.
        """
        seconds: dict[str, float] = {}
        notify = progress or (lambda stage, done, total: None)

        notify("read", 0, 1)
        with _timed(seconds, "read"):
            load, *rest = self._before
            if series_uid is not None:
                load = LoadImaged(keys="image", reader=CTReader(series_uid), dtype=None, ensure_channel_first=True)
            data = load({"image": str(ct)})
        hu = data["image"][0].numpy() if qc else None
        with _timed(seconds, "preprocess"):
            for transform in rest:
                data = transform(data)
            model_shape = tuple(data["image"].shape[1:])
        self._inferer.progress = lambda done, total: notify("network", done, total)
        with _timed(seconds, "network"), torch.inference_mode():
            image = data["image"].as_tensor()[None].to(self.device)
            logits = self._inferer(image, self._network)[0].cpu()
        data["pred"] = MetaTensor(logits, affine=data["image"].affine)
        notify("postprocess", 0, 1)
        with _timed(seconds, "postprocess"):
            for transform in self._after:
                data = transform(data)
            mask = data["pred"].as_tensor()[0].numpy()
        grid = source_grid(data["image"])
        source = _source_facts(data["image"])
        record = self._record(ct, mask, grid.affine, source, model_shape, seconds)
        if output_dir is None:
            return Segmentation(mask, grid.affine, None, record)

        notify("write", 0, 1)
        name = name or case_name(ct)
        folder = make_folder(output_dir)
        path = folder / f"{name}_seg.nii.gz"
        # All or nothing: each file is complete before the first one takes its place.
        with ExitStack() as files:
            new = {s: files.enter_context(atomic_path(folder / f"{name}_seg{s}")) for s in _suffixes(qc)}
            with _timed(seconds, "write"):
                save_mask(new[".nii.gz"], mask, grid.affine, like=source)
                if hu is not None:
                    from attunet3d.report.qc import qc_picture

                    title = f"{name}: {record['volume_ml']:.1f} mL (research use only)"
                    qc_picture(new[".png"], hu, mask, grid.affine, title)
            record["output"] = path.name
            new[".json"].write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return Segmentation(mask, grid.affine, path, record)

    def _record(
        self,
        ct: str | Path,
        mask: np.ndarray,
        affine: np.ndarray,
        source: dict[str, Any],
        model_shape: tuple[int, ...],
        seconds: dict[str, float],
    ) -> dict[str, Any]:
        voxels = int(np.count_nonzero(mask))
        warnings = list(source.get("warnings", []))
        if voxels == 0:
            warnings.append("the mask is empty: no pancreas was found")
        return {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "input": Path(os.path.abspath(ct)).name,
            "source": {key: value for key, value in source.items() if key in ("format", "series_uid")},
            **self._session,
            "geometry": {
                "shape": list(mask.shape),
                "spacing_mm": [float(s) for s in nib.affines.voxel_sizes(affine)],
                "orientation": "".join(nib.aff2axcodes(affine)),
                "affine_ras_mm": affine.tolist(),
                "model_grid_shape": list(model_shape),
            },
            "seconds": seconds,
            "peak_memory_mb": _peak_memory_mb(),
            "voxels": voxels,
            "volume_ml": voxels * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
            "warnings": warnings,
            "intended_use": "research only, not a medical device",
        }


def segment(ct: str | Path, output: str | Path | None = None, **kwargs: Any) -> Segmentation:
    """Segment one CT; keyword arguments are those of `Segmenter`. For more than one CT keep a `Segmenter`."""
    return Segmenter(**kwargs).segment(ct, output)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def _suffixes(qc: bool) -> tuple[str, ...]:
    """Of the files of one case, the mask last: where it is, the others are."""
    return (".nii.gz", ".json", ".png") if qc else (".nii.gz", ".json")


def _source_facts(image: MetaTensor) -> dict[str, Any]:
    facts = image.meta.get("source", "{}")
    return json.loads(facts) if isinstance(facts, str) else dict(facts)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_memory_mb() -> float | None:
    """Peak resident memory of this process so far, in MB; unknown on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10, 1)
