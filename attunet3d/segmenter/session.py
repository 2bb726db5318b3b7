"""Segment CTs with the values of the bundle's inference config: one session, many cases."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

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
from attunet3d.runtime.process_memory import is_out_of_memory, keep_freed_memory, peak_bytes, resident_bytes
from attunet3d.runtime.scales import memory_factor
from attunet3d.segmenter.attention import MapsOnCT, load_attention_maps
from attunet3d.segmenter.memory_plan import FIRST_CASE_BYTES, MemoryPlan, plan_memory
from attunet3d.segmenter.outputs import SEG_TYPES, CaseWriter, Outputs, Segmentation
from attunet3d.segmenter.reading import CaseReader, PlannedCT
from attunet3d.segmenter.record import case_record, made_with, megabytes, session_record
from attunet3d.segmenter.smaller_windows import run_in_memory, said_of_windows, windows_in_memory
from attunet3d.transforms.components import keep_largest_component
from attunet3d.transforms.grid import Grid, crop, is_oblique
from attunet3d.transforms.intensity import scale_hu_
from attunet3d.transforms.resample import AIR_HU, mask_from_logits, resample_image

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Case:
    """One CT of many, as it was given, and either its segmentation or what went wrong."""

    ct: PathLike
    segmentation: Segmentation | None
    error: Exception | None


class Segmenter:
    """The network loaded and prepared once, for many CTs.

    Threads can share it: each case has a progress and a cancel of its own, and a memory plan that knows of no other.

    Args:
        checkpoint: weights; the bundle's own by default.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "auto", "fp32", "bf16" or "fp16".
        presets: preset names or files, merged in order over the weights' recipe, or else the bundle's config.
        memory_limit: most that this process may take, GB; by default what the machine, or its cgroups, have left.
        allow_code: presets and overrides may name any class; they can then run any program.
        overrides: ids of that config and their values, e.g. ``overlap=0.5``, or ``allow_smaller_windows=True`` for
            CTs whose windows do not fit into memory: the record's warnings say where the mask is not that of full ones.

    Attributes:
        warnings: where presets and overrides contradict the recipe of the weights, or these have none; each record has
            them too.

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
            self._hu_window = tuple(float(hu) for hu in values["hu_window"])
            self._window = SlidingWindow(
                values["roi_size"],
                values["sw_batch_size"],
                values["overlap"],
                skip_below=values["skip_below"],
                body_threshold=values["body_threshold"],
                max_window_voxels=values["max_window_voxels"],
            )
            self._window.most_voxels((1, 1, 1), self.device)  # refuses a roi_size of other than three axes
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a value of the inference config does not fit: {error}") from error
        if len(self._hu_window) != 2 or not self._hu_window[0] < self._hu_window[1]:
            raise ConfigError(f"hu_window must be two HU values, the lower first, got {values['hu_window']}")
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
        self._several_sizes = len(self._network.scales) > 1
        self._bytes_per_voxel = int(
            memory_factor(values["scales"]) * network_bytes_per_voxel(network, variant.dtype, variant.split)
        )
        self._session = session_record(self.checkpoint, self.device, variant, presets, values, warnings)
        self._base_bytes = (resident_bytes() or 0) + FIRST_CASE_BYTES
        for line in warnings:
            logger.warning(line)

    def __reduce__(self) -> NoReturn:
        """Pickle and `copy` ask here. Raises CopyError: what is compiled, or on a GPU, cannot go along."""
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
            ct: a NIfTI, NRRD or MetaImage file, a folder with a DICOM series, or a series of `segmentable_series`.
            output_dir: with it, ``<name>_seg.nii.gz`` (the CT's shape and affine) and ``<name>_seg.json`` (the record:
                versions, checkpoint hash, configuration, geometry, windows, stage seconds, memory, volume in mL,
                warnings) are written; it is made if it does not exist.
            name: what the files are called; by default as the CT.
            series_uid: which series of a DICOM folder.
            qc: also write ``<name>_seg.png``.
            attention: also run the windows for the attention gates' weights, averaged over overlapping windows, and
                write ``<name>_attention_level2.nii.gz``, ... on the CT's grid: uint8 with a slope of 1/255, so that
                viewers show [0, 1]; 0 where no window was run.
            output_format: "nifti", or "dicom-seg" for ``<name>_seg.dcm`` in place of ``<name>_seg.nii.gz``: a binary
                DICOM SEG that refers to the images of the series, so that the CT must be a DICOM folder; or
                "dicom-seg-labelmap", a label map SEG, which is newer and which fewer programs read.
            keep_uids: without it the record holds no DICOM UID; a DICOM SEG holds them all the same.
            progress: called as ``progress(stage, done, total)``.
            cancel: asked between windows and stages whether to stop.

        Raises:
            AttUNet3dError: the CT cannot be read, is no CT volume, does not fit into memory, or the output cannot be
                written; `CancelledError` if ``cancel`` said so. Nothing is left half written.
            ConfigError, CheckpointError: the output format does not exist or its library is not installed; for
                ``attention`` the network has no gates, or the weights' file is no longer what it was when the session
                began. Nothing has been read.
        """
        outputs = Outputs(output_dir, output_format, qc, attention, keep_uids)
        reader = self.reader(outputs)
        notify = progress or _silent
        notify("read", 0, 1)
        return self.segment_read(reader.read(ct, series_uid, qc), ct, name, outputs, notify, cancel)

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

        While one CT is in the network the next one is read, if there is memory for both; never more than one.
        Arguments as for `segment`; ``names`` has one for each CT, and ``progress`` the case's index before the stage.

        Raises:
            CancelledError: ``cancel`` said so.
            ConfigError, CheckpointError: as `segment`.
        """
        outputs = Outputs(output_dir, output_format, qc, attention, keep_uids)
        reader = self.reader(outputs)
        names = names or [case_name(ct) for ct in cts]
        reading = reader.read_all(cts, series_uid, qc)
        for index, (ct, name) in enumerate(zip(cts, names, strict=True)):
            notify = _silent if progress is None else partial(progress, index)
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
        """What reads CTs that fit, with their maps if those are wanted, and whose masks can be written.

        What killed processes left in the output folder is removed. What it reads is for `segment_read` with the same
        outputs. Errors as `segment`.
        """
        maps = len(self._attention_maps().network.names) if outputs.attention else 0
        outputs.remove_left_behind()
        return CaseReader(self._spacing, partial(self._plan, outputs, maps), self._allow_uneven, outputs.folder)

    def _attention_maps(self) -> FastNetwork:
        """`AttentionMaps` of the session's network, whose own weights are folded away: loaded when first needed."""
        if self._attention is None:
            network = self._session["config"]["network_def"]
            sha256 = self._session["checkpoint"]["sha256"]
            self._attention = load_attention_maps(
                network, self.checkpoint, sha256, self.device, self._precision, self._allow_code
            )
            self._base_bytes = max(self._base_bytes, (resident_bytes() or 0) + FIRST_CASE_BYTES)
        return self._attention

    def _plan(self, outputs: Outputs, maps: int, image: StoredImage, model: Grid, qc: bool) -> MemoryPlan:
        outputs.check_source(image)
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
                keeps_ct=qc,
                dicom_seg=outputs.output_format in SEG_TYPES,
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
        """Segment a CT that `reader` has read; in any thread. Arguments and errors as `segment`."""
        notify = notify or _silent
        seconds = {"read": read.seconds}
        stage = partial(self._stage, ct, seconds, notify, cancel)
        memory, smaller = read.memory, self._allow_smaller_windows
        window = copy(self._window)  # another thread's case has its own progress
        writer = CaseWriter(outputs, ct, name, read, self._session["checkpoint"]["sha256"])
        hu: np.ndarray | None = read.take()
        maps: Mapping[str, np.ndarray] = {}
        with torch.inference_mode():
            with stage("preprocess"):
                volume = torch.from_numpy(hu).to(self.device)
                if not outputs.qc:
                    hu = None
                image = resample_image(volume, read.grid, read.model, fill=AIR_HU, antialias=self._antialias)
                del volume
                image = scale_hu_(image, self._hu_window)[None, None]
            with stage("network"):
                window.progress, window.cancel = partial(notify, "network"), cancel
                full = window.plan(image)
                plan = windows_in_memory(window, image, full, memory, smaller)
                holes = memory.holes(plan.voxels, self._several_sizes)
                predicted = memory.peak_with(plan.voxels, holes or 0)
                run = partial(run_in_memory, window, image=image, smaller=smaller, keep=holes is not None)
                logits, plan = run(window.run, network=self._network, plan=plan)
                self._network.release_memory()
                warnings = [*read.facts["warnings"], *said_of_windows(full, plan)]
                region = plan.region(read.model.shape)
                logits = embed(logits, plan.box, region)
            if outputs.attention:
                with stage("attention"):
                    window.progress = partial(notify, "attention")
                    gates = self._attention_maps()
                    alphas, seen = run(window.average, network=gates, plan=plan)
                    warnings += [f"attention maps: {said}" for said in said_of_windows(plan, seen)]
                    maps = MapsOnCT(gates.network.names, alphas[0].cpu(), crop(read.model, plan.box), read.grid)
                    del alphas
            del image, run
            with stage("postprocess"):
                found = mask_from_logits(logits[0], crop(read.model, region), read.grid).cpu()
                del logits
                keep_largest_component(found, self._keep_components)
                mask = found.numpy()
        how = {
            "model_grid_shape": list(read.model.shape),
            "windows": {"size": list(plan.roi), "run": len(plan.jobs), "skipped": plan.skipped, "batch": plan.batch},
            "seconds": seconds,
            "memory_mb": {"predicted": megabytes(predicted), "peak": megabytes(peak_bytes())},
        }
        facts = {**read.facts, "warnings": warnings}
        record = case_record(ct, mask, read.grid, facts, self._session, how, outputs.keep_uids)
        path = writer.write(mask, record, maps, hu, stage("write"))
        return Segmentation(mask, read.grid.affine, path, record, maps or None)

    def made_with(self, record: Mapping[str, Any]) -> bool:
        """Whether a record, read from its file, is of this session's weights and values. Raises KeyError, TypeError."""
        return made_with(record, self._session)

    @contextmanager
    def _stage(
        self, ct: PathLike, seconds: dict[str, float], notify: Progress, cancel: Cancel | None, name: str
    ) -> Iterator[None]:
        """Time a stage, unless it is to be cancelled; memory errors name the CT."""
        if cancel is not None and cancel():
            raise CancelledError("cancelled")
        notify(name, 0, 1)
        start = time.perf_counter()
        try:
            yield
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{ct}: {error}") from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryLimitError(
                f"{ct}: out of memory in stage {name}: close other programs, or use a machine with more"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds[name] = round(time.perf_counter() - start, 3)


def segment(ct: PathLike, output: PathLike | None = None, **kwargs: Any) -> Segmentation:
    """Segment one CT; keyword arguments are those of `Segmenter`. For more than one CT keep a `Segmenter`."""
    return Segmenter(**kwargs).segment(ct, output)


def _three(values: Any) -> tuple[float, float, float]:
    x, y, z = (values,) * 3 if isinstance(values, int | float) else values
    return float(x), float(y), float(z)


def _switch(values: Mapping[str, Any], name: str) -> bool:
    if not isinstance(values[name], bool):
        raise ConfigError(f"{name} must be true or false, got {values[name]!r}")
    return bool(values[name])


def _silent(*args: Any) -> None:
    pass
