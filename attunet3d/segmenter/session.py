"""Segment CTs with the values of the bundle's inference config: one session, many cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch

from attunet3d.checkpoint import load_weights
from attunet3d.config.changes import inference_values
from attunet3d.errors import CancelledError, ConfigError, CopyError, MemoryLimitError
from attunet3d.inferers.stitching import Cancel, embed
from attunet3d.inferers.windows import SlidingWindow
from attunet3d.io.cases import case_name
from attunet3d.io.paths import PathLike
from attunet3d.io.slabs import StoredImage
from attunet3d.networks.memory import network_bytes_per_voxel
from attunet3d.runtime.device import choose_device, choose_precision
from attunet3d.runtime.fast_network import FastNetwork
from attunet3d.runtime.loading import build_network
from attunet3d.runtime.process_memory import keep_freed_memory, peak_bytes, resident_bytes
from attunet3d.runtime.scales import memory_factor
from attunet3d.segmenter.attention import MapsOnCT, load_attention_maps
from attunet3d.segmenter.memory_plan import FIRST_CASE_BYTES, MemoryPlan, plan_memory
from attunet3d.segmenter.outputs import CaseWriter, Outputs, Segmentation
from attunet3d.segmenter.reading import CaseReader, PlannedCT
from attunet3d.segmenter.record import RunRecord, Seconds, case_record, made_with, megabytes, session_record
from attunet3d.segmenter.smaller_windows import WindowRun
from attunet3d.segmenter.stages import Progress, Stages, ignore_progress
from attunet3d.transforms.components import keep_largest_component
from attunet3d.transforms.grid import Grid, crop, is_oblique
from attunet3d.transforms.intensity import scale_hu_
from attunet3d.transforms.resample import AIR_HU, mask_from_logits, resample_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One of many CTs, as it was given, with either its segmentation or the error."""

    ct: PathLike
    segmentation: Segmentation | None
    error: Exception | None


class Segmenter:
    """Segments CTs with a network that is loaded and prepared once.

    Threads can share it: each case has its own progress, cancel and memory plan, which does not include other cases.

    Args:
        checkpoint: weights; the bundle's own by default.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        presets: preset names or files, merged in order over the weights' recipe, or else the bundle's config.
        memory_limit: memory that this process may take, GB; by default what is free on the machine or in its cgroup.
        allow_code: presets and overrides may name any class; they can then run any program.
        overrides: ids of that config and their values, e.g. ``overlap=0.5``, or ``allow_smaller_windows=True`` for
            CTs whose windows do not fit into memory, which changes the mask; the record then has a warning.

    Attributes:
        warnings: contradictions between the values in use and the recipe of the weights, or that there is no recipe;
            each record has them too.

    Raises:
        CheckpointError: the weights, or their recipe, cannot be read or do not fit the network.
        ConfigError: a preset, an id, the device or the precision does not exist, or a value is out of range.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        presets: Sequence[str | Path] = (),
        memory_limit: float | None = None,
        allow_code: bool = False,
        **overrides: Any,
    ) -> None:
        changes = {"device": str(device), "precision": precision, **overrides}
        if checkpoint is not None:
            changes["checkpoint"] = Path(checkpoint)
        warnings: list[str] = []
        values = inference_values(presets, changes, allow_code, warnings.append)
        self.warnings = tuple(warnings)
        self.device = choose_device(values["device"])
        self.checkpoint = Path(values["checkpoint"])
        self._allow_code = allow_code
        self._allow_uneven = _switch(values, "allow_uneven")
        self._allow_smaller_windows = _switch(values, "allow_smaller_windows")
        self._antialias = _switch(values, "antialias")
        self._keep_components = values["keep_components"]
        try:
            self._spacing = _three(values["spacing"])
            self._hu_window = _hu_window(values["hu_window"])
            self._window = _sliding_window(values, self.device)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a value of the inference config does not fit: {error}") from error
        # Device and precision are refused here, before the weights are read.
        network = build_network(values["network_def"], allow_code)
        precision_used = choose_precision(values["precision"], self.device)
        self._network = FastNetwork(
            network,
            self.device,
            precision_used,
            values["backend"],
            single_logit=True,
            scales=values["scales"],
            threshold=values["threshold"],
        ).eval()
        self._attention: FastNetwork | None = None
        load_weights(network, self.checkpoint)
        self._window.make_at_least(int(getattr(network, "min_size", 1)))
        self._limit_bytes = None if memory_limit is None else int(memory_limit * 1e9)
        self._precision = precision_used
        with torch.inference_mode(), keep_freed_memory():  # the variant is built and tested now, not in the first case
            self._network(torch.zeros((1, 1, *[2 * int(getattr(network, "min_size", 16))] * 3), device=self.device))
        self._network.keep_variant_only()
        variant = self._network.variant
        self._several_scales = len(self._network.scales) > 1
        self._bytes_per_voxel = int(
            memory_factor(values["scales"]) * network_bytes_per_voxel(network, variant.dtype, variant.split)
        )
        self._session = session_record(self.checkpoint, self.device, variant, presets, values, warnings)
        self._base_bytes = (resident_bytes() or 0) + FIRST_CASE_BYTES
        for line in warnings:
            logger.warning(line)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: a compiled network, or one on a GPU, cannot be. Raises CopyError."""
        raise CopyError(
            "a Segmenter cannot be pickled or copied: make one in each process, with the same arguments (`attunet3d "
            "segment-many` does so); threads can share one"
        )

    def segment(
        self,
        ct: PathLike,
        output_dir: PathLike | None = None,
        *,
        name: str | None = None,
        series_uid: str | None = None,
        qc: bool = False,
        attention: bool = False,
        output_format: str = "nifti",
        keep_uids: bool = True,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Segmentation:
        """Segment the pancreas in one CT.

        Args:
            ct: a NIfTI, NRRD or MetaImage file, a folder with a DICOM series, or a series of ``segmentable_series``.
            output_dir: folder for ``<name>_seg.nii.gz`` (the CT's shape and affine) and ``<name>_seg.json`` (the
                ``CaseRecord``), made if it does not exist; by default nothing is written.
            name: of the case, with which the names of its files begin; by default that of the CT.
            series_uid: which series of a DICOM folder.
            qc: also write ``<name>_seg.png``.
            attention: also run the windows for the attention gates' weights, averaged over overlapping windows, and
                write ``<name>_attention_level2.nii.gz``, ... on the CT's grid: uint8 with a slope of 1/255, so that
                viewers show [0, 1]; 0 where no window was run.
            output_format: name of an ``attunet3d.io.output_formats.FORMATS``: "nifti"; "dicom-seg", a binary DICOM SEG
                ``<name>_seg.dcm`` that refers to the images of the series, so that the CT must be a DICOM folder; or
                "dicom-seg-labelmap", a label map SEG, which is newer and supported by fewer programs.
            keep_uids: if false, the record contains no DICOM UID; a DICOM SEG contains them anyway.
            progress: called as ``progress(stage, done, total)``.
            cancel: asked between windows and stages whether to stop.

        Raises:
            AttUNet3dError: the CT cannot be read, is no CT volume, does not fit into memory, or the output cannot be
                written; ``CancelledError`` if ``cancel`` returned true. No incomplete file is left.
            ConfigError, CheckpointError: the output format does not exist or its library is not installed; for
                ``attention`` the network has no gates, or the file of the weights has changed since the session began.
                Nothing has been read.
        """
        outputs = Outputs(output_dir, output_format, qc, attention, keep_uids)
        reader = self.reader(outputs)
        notify = progress or ignore_progress
        notify("read", 0, 1)
        return self.segment_read(reader.read(ct, series_uid), ct, name, outputs, notify, cancel)

    def segment_all(
        self,
        cts: Sequence[PathLike],
        output_dir: PathLike | None = None,
        *,
        names: Sequence[str] | None = None,
        series_uid: str | None = None,
        qc: bool = False,
        attention: bool = False,
        output_format: str = "nifti",
        keep_uids: bool = True,
        progress: Callable[[int, str, int, int], None] | None = None,
        cancel: Cancel | None = None,
    ) -> Iterator[Case]:
        """Segment many CTs, in order; a case that fails does not stop the others.

        While the network works on one CT the next one is read, if both fit into memory.
        Arguments as for ``segment``; ``names`` has one name for each CT, and the first argument of ``progress`` is the
        index of the case.

        Raises:
            CancelledError: ``cancel`` returned true.
            ConfigError, CheckpointError: as ``segment``.
        """
        outputs = Outputs(output_dir, output_format, qc, attention, keep_uids)
        reader = self.reader(outputs)
        names = names or [case_name(ct) for ct in cts]
        reading = reader.read_all(cts, series_uid)
        for index, (ct, name) in enumerate(zip(cts, names, strict=True)):
            notify = ignore_progress if progress is None else partial(progress, index)
            notify("read", 0, 1)
            try:
                read = next(reading)
                if isinstance(read, Exception):
                    raise read
                case = Case(ct, self.segment_read(read, ct, name, outputs, notify, cancel), None)
            except CancelledError:
                raise
            except Exception as error:
                case = Case(ct, None, error)
            yield case

    def reader(self, outputs: Outputs) -> CaseReader:
        """Make a reader of CTs for ``segment_read`` with the same outputs; it refuses CTs that cannot be segmented.

        Removes unfinished files that killed processes left in the output folder. Errors as ``segment``.
        """
        maps = len(self._attention_maps().network.names) if outputs.attention else 0
        outputs.remove_left_behind()
        return CaseReader(self._spacing, partial(self._plan, outputs, maps), self._allow_uneven, outputs.folder)

    def _attention_maps(self) -> FastNetwork:
        """Load ``AttentionMaps`` when first needed, from the file: the weights in the session are folded."""
        if self._attention is None:
            network = self._session["config"]["network_def"]
            sha256 = self._session["checkpoint"]["sha256"]
            self._attention = load_attention_maps(
                network, self.checkpoint, sha256, self.device, self._precision, self._allow_code
            )
            self._base_bytes = max(self._base_bytes, (resident_bytes() or 0) + FIRST_CASE_BYTES)
        return self._attention

    def _plan(self, outputs: Outputs, maps: int, image: StoredImage, model: Grid) -> MemoryPlan:
        outputs.check_header(image)
        try:
            return plan_memory(
                image.shape,
                model.shape,
                self._window.most_voxels(model.shape, self.device),
                self._bytes_per_voxel,
                self.device,
                base_bytes=self._base_bytes,
                smallest_voxels=self._window.least_voxels(model.shape, self._allow_smaller_windows),
                oblique=is_oblique(Grid(image.shape, image.affine), model),
                keeps_ct=outputs.qc,
                writing_bytes=outputs.writing_bytes(math.prod(image.shape)),
                maps=maps,
                limit_bytes=self._limit_bytes,
            )
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{image.path}: {error}") from None

    def segment_read(
        self,
        read: PlannedCT,
        ct: PathLike,
        name: str | None,
        outputs: Outputs,
        notify: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Segmentation:
        """Segment a CT that ``reader`` has read, in any thread. Arguments and errors as ``segment``."""
        stages = Stages(ct, self.device, notify, cancel)
        stages.seconds["read"] = read.seconds
        writer = CaseWriter(outputs, ct, name, read, self._session["checkpoint"]["sha256"])
        maps: Mapping[str, np.ndarray] = {}
        with torch.inference_mode():
            with stages.run("preprocess"):
                image, hu = self._preprocess(read, keep_hu=outputs.qc)
            with stages.run("network") as progress:
                windows = WindowRun(self._window, image, read.memory, self._allow_smaller_windows, self._several_scales)
                logits = windows.logits(image, self._network, progress, cancel)
                self._network.release_memory()
                region = windows.plan.region(read.model.shape)
                logits = embed(logits, windows.plan.box, region)
            if outputs.attention:
                with stages.run("attention") as progress:
                    gates = self._attention_maps()
                    alphas = windows.maps(image, gates, progress, cancel)
                    maps = MapsOnCT(gates.network.names, alphas[0].cpu(), crop(read.model, windows.plan.box), read.grid)
                    del alphas
            del image
            with stages.run("postprocess"):
                found = mask_from_logits(logits[0], crop(read.model, region), read.grid).cpu()
                del logits
                keep_largest_component(found, self._keep_components)
                mask = found.numpy()
        metadata = {**read.metadata, "warnings": [*read.metadata["warnings"], *windows.warnings]}
        run = _run_record(read, windows, stages)
        record = case_record(ct, mask, read.grid, metadata, self._session, run, outputs.keep_uids)
        path = writer.write(mask, record, maps, hu, stages.run("write"))
        return Segmentation(mask, read.grid.affine, path, record, maps or None)

    def _preprocess(self, read: PlannedCT, keep_hu: bool) -> tuple[torch.Tensor, np.ndarray | None]:
        """Make the network's input, (1, 1, X, Y, Z) on the model grid; return the CT too if it is kept."""
        hu: np.ndarray | None = read.take()
        volume = torch.from_numpy(hu).to(self.device)
        if not keep_hu:
            hu = None
        image = resample_image(volume, read.grid, read.model, fill=AIR_HU, antialias=self._antialias)
        del volume
        return scale_hu_(image, self._hu_window)[None, None], hu

    def made_with(self, record: Mapping[str, Any]) -> bool:
        """Whether a record, read from its file, is of this session's weights and values. Raises KeyError, TypeError."""
        return made_with(record, self._session)


def segment(ct: PathLike, output: PathLike | None = None, **kwargs: Any) -> Segmentation:
    """Segment one CT; keyword arguments are those of ``Segmenter``. For more than one CT keep a ``Segmenter``."""
    return Segmenter(**kwargs).segment(ct, output)


def _three(values: Any) -> tuple[float, float, float]:
    x, y, z = (values,) * 3 if isinstance(values, int | float) else values
    return float(x), float(y), float(z)


def _hu_window(values: Any) -> tuple[float, float]:
    window = tuple(float(hu) for hu in values)
    if len(window) != 2 or not window[0] < window[1]:
        raise ConfigError(f"hu_window must be two HU values, the lower first, got {values}")
    return window


def _sliding_window(values: Mapping[str, Any], device: torch.device) -> SlidingWindow:
    window = SlidingWindow(
        values["roi_size"],
        values["sw_batch_size"],
        values["overlap"],
        skip_below=values["skip_below"],
        body_threshold=values["body_threshold"],
        max_window_voxels=values["max_window_voxels"],
    )
    window.most_voxels((1, 1, 1), device)  # refuses a roi_size without three axes
    return window


def _run_record(read: PlannedCT, windows: WindowRun, stages: Stages) -> RunRecord:
    plan = windows.plan
    return {
        "model_grid_shape": list(read.model.shape),
        "windows": {"size": list(plan.roi), "run": len(plan.jobs), "skipped": plan.skipped, "batch": plan.batch},
        "seconds": cast(Seconds, stages.seconds),
        "memory_mb": {"predicted": megabytes(windows.predicted_bytes), "peak": megabytes(peak_bytes())},
    }


def _switch(values: Mapping[str, Any], name: str) -> bool:
    if not isinstance(values[name], bool):
        raise ConfigError(f"{name} must be true or false, got {values[name]!r}")
    return bool(values[name])
