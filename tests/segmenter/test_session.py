"""Segmentation sessions: geometry of what comes out, the record, equality of the ways to run it."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import HANG, PLAIN, ROOT, SHARED_DATA, TINY, needs_data
from dicom_files import write_series

from attunet3d import AttentionUNet, Segmenter, score, segment
from attunet3d.errors import (
    AttUNet3dError,
    CancelledError,
    CheckpointError,
    ConfigError,
    CopyError,
    InputNotFoundError,
    MemoryLimitError,
    OutputError,
)
from attunet3d.io.cases import case_name
from attunet3d.io.slabs import StoredImage
from attunet3d.segmenter import reading
from attunet3d.segmenter.outputs import Segmentation
from attunet3d.transforms.placing import place_on
from attunet3d.workflow import make_workflow


@pytest.fixture(scope="module")
def session(tiny_checkpoint: Path) -> Segmenter:
    return Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **TINY, **PLAIN)


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique"])
def test_mask_has_the_ct_shape_and_affine(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, orientation: str
) -> None:
    ct = write_phantom(orientation)
    result = session.segment(ct, tmp_path)
    assert result.path == tmp_path / f"phantom_{orientation}_0_seg.nii.gz"
    source, mask = nib.load(ct), nib.load(result.path)
    assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, source.affine)
    np.testing.assert_array_equal(mask.get_sform(), source.get_sform())
    np.testing.assert_array_equal(np.asarray(mask.dataobj), result.mask)
    assert set(np.unique(result.mask)) == {0, 1}


def test_orientation_of_the_file_does_not_move_the_mask(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """The same voxels stored with flipped and permuted axes give the same mask in the patient."""
    ct = nib.load(write_phantom("LPS"))
    turned = nib.as_closest_canonical(ct).slicer[:, :, :]
    permuted = nib.Nifti1Image(
        np.ascontiguousarray(np.asarray(turned.dataobj).transpose(2, 0, 1)), turned.affine[:, [2, 0, 1, 3]]
    )
    nib.save(ct, tmp_path / "a.nii.gz")
    nib.save(permuted, tmp_path / "b.nii.gz")
    first = session.segment(tmp_path / "a.nii.gz", tmp_path)
    second = session.segment(tmp_path / "b.nii.gz", tmp_path)
    assert score(first.path, second.path)["dice"] > 0.999
    assert first.mask.shape != second.mask.shape


def test_dicom_folder_and_nifti_give_the_same_mask(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    nifti = nib.load(write_phantom("LPS"))
    hu = np.asarray(nifti.dataobj)
    affine = nifti.affine
    spacing = nib.affines.voxel_sizes(affine)
    write_series(
        tmp_path / "series",
        hu,
        origin=tuple(affine[:3, 3] * [-1, -1, 1]),
        step=(0.0, 0.0, float(spacing[2])),
        PixelSpacing=[float(spacing[1]), float(spacing[0])],
    )
    from_dicom = session.segment(tmp_path / "series", tmp_path)
    from_nifti = session.segment(write_phantom("LPS"), tmp_path)
    assert score(from_dicom.path, from_nifti.path)["dice"] > 0.999
    assert from_dicom.record["source"]["format"] == "dicom"
    assert from_dicom.record["source"]["series_uid"]


def test_record_says_how_the_mask_came_about(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    stages: list[tuple[str, int, int]] = []
    result = session.segment(write_phantom(), tmp_path, qc=True, progress=lambda *step: stages.append(step))
    record = json.loads((tmp_path / "phantom_RAS_0_seg.json").read_text())
    assert record == result.record
    voxel_ml = abs(np.linalg.det(result.affine[:3, :3])) / 1000
    assert record["volume_ml"] == pytest.approx(result.mask.sum() * voxel_ml)
    assert set(record["seconds"]) == {"read", "preprocess", "network", "postprocess", "write"}
    assert record["config"]["spacing"] == TINY["spacing"]
    assert record["config"]["channels"] == TINY["channels"]
    assert record["precision"] == "float32"
    assert len(record["checkpoint"]["sha256"]) == 64
    assert record["geometry"]["orientation"] == "RAS"
    assert (tmp_path / "phantom_RAS_0_seg.png").read_bytes().startswith(b"\x89PNG")
    assert [stage for stage, done, _ in stages if done == 0] == [
        "read",
        "preprocess",
        "network",
        "postprocess",
        "write",
    ]
    network = [(done, total) for stage, done, total in stages if stage == "network"]
    windows = record["windows"]
    passes = -(-windows["run"] // windows["batch"])
    assert network == [(0, 1)] + [(done, passes) for done in range(1, passes + 1)]
    assert str(tmp_path) not in json.dumps(record)


def test_without_an_output_folder_nothing_is_written(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = session.segment(write_phantom())
    assert result.path is None
    assert list(tmp_path.iterdir()) == []


def test_segment_in_one_call(tiny_checkpoint: Path, write_phantom: Callable[..., Path], session: Segmenter) -> None:
    result = segment(write_phantom(), checkpoint=tiny_checkpoint, device="cpu", precision="fp32", **TINY, **PLAIN)
    np.testing.assert_array_equal(result.mask, session.segment(write_phantom()).mask)


def test_only_one_component_is_left(session: Segmenter, write_phantom: Callable[..., Path]) -> None:
    import cc3d

    mask = session.segment(write_phantom()).mask
    assert cc3d.connected_components(mask, connectivity=26).max() == 1


def test_a_failed_case_leaves_nothing_and_the_session_goes_on(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(write_phantom().read_bytes()[:20000])
    with pytest.raises(AttUNet3dError, match=r"broken\.nii\.gz"):
        session.segment(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    session.segment(write_phantom(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "phantom_RAS_0_seg.json",
        "phantom_RAS_0_seg.nii.gz",
    ]


def test_a_write_that_fails_leaves_nothing(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        session.segment(write_phantom(), tmp_path / "out", qc=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_picture_that_fails_does_not_cost_the_mask(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("name of a patient")

    monkeypatch.setattr("attunet3d.pictures.qc.qc_picture", broken)
    result = session.segment(write_phantom(), tmp_path, name="caf\udce9", qc=True)
    assert {p.name for p in tmp_path.iterdir()} == {"caf\udce9_seg.json", "caf\udce9_seg.nii.gz"}
    record = json.loads((tmp_path / "caf\udce9_seg.json").read_text())
    assert record["warnings"] == ["the picture could not be drawn (RuntimeError); the mask is complete"]
    np.testing.assert_array_equal(np.asarray(nib.load(result.path).dataobj), result.mask)


def test_mistakes_name_the_cure(
    tiny_checkpoint: Path, bare_checkpoint: Path, tmp_path: Path, write_phantom: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Segmenter(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="preset it was trained with"):
        Segmenter(bare_checkpoint)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Segmenter(tmp_path / "text.pt")
    with pytest.raises(ConfigError, match="'overlapp'"):
        Segmenter(tiny_checkpoint, overlapp=0.5)
    with pytest.raises(ConfigError, match=r"'nih'.*phantom"):
        Segmenter(tiny_checkpoint, presets=["nih"])
    with pytest.raises(ConfigError, match="overlap must be"):
        Segmenter(tiny_checkpoint, **{**TINY, "overlap": 1.5})
    with pytest.raises(ConfigError, match="fp16"):
        Segmenter(tiny_checkpoint, device="cpu", precision="fp16")
    with pytest.raises(ConfigError, match="tpu9"):
        Segmenter(tiny_checkpoint, device="tpu9")
    with pytest.raises(InputNotFoundError, match="nowhere"):
        Segmenter(tiny_checkpoint, **TINY).segment(tmp_path / "nowhere.nii.gz")


# --- many CTs


def test_many_cts_give_what_each_gives_alone(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """Five, of which one is broken: four masks in order, and one error that names its file."""
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(write_phantom().read_bytes()[:20000])
    good = [write_phantom("RAS"), write_phantom("LPS"), write_phantom("RAS", 1), write_phantom("oblique", 2)]
    cts = [*good[:2], broken, *good[2:]]
    progress: list[tuple[int, str, int, int]] = []
    cases = list(session.segment_all(cts, tmp_path / "out", progress=lambda *step: progress.append(step)))
    assert [case.ct for case in cases] == cts
    assert [case.error is None for case in cases] == [True, True, False, True, True]
    assert isinstance(cases[2].error, AttUNet3dError)
    assert "broken.nii.gz" in str(cases[2].error)
    assert cases[2].segmentation is None
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == sorted(f"{case_name(ct)}_seg.{suffix}" for ct in good for suffix in ("json", "nii.gz"))
    masks = []
    for case in cases:
        if case.segmentation is None:
            continue
        alone = session.segment(case.ct)
        np.testing.assert_array_equal(case.segmentation.mask, alone.mask)
        np.testing.assert_array_equal(np.asarray(nib.load(case.segmentation.path).dataobj), alone.mask)
        np.testing.assert_array_equal(case.segmentation.affine, alone.affine)
        assert case.segmentation.record["input"] == Path(case.ct).name
        masks.append(alone.mask.sum())
    assert len(set(masks)) == 4  # so that a mask under another's name would show
    stages = ["read", "preprocess", "network", "postprocess", "write"]
    started = [(index, stage) for index, stage, done, _ in progress if done == 0]
    assert started == [(n, stage) for n in range(5) for stage in (stages[:1] if n == 2 else stages)]


def test_names_and_pictures_of_many(session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path) -> None:
    ct = write_phantom()
    names = ["a", "b"]
    for case in session.segment_all([ct, ct], tmp_path, names=names, qc=True):
        assert case.error is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}_seg.{suffix}" for name in names for suffix in ("json", "nii.gz", "png")
    ]
    with pytest.raises(ValueError, match="shorter"):
        list(session.segment_all([ct, ct], names=["a"]))
    assert list(session.segment_all([])) == []


def test_the_next_ct_is_read_while_the_network_works_on_one(
    session: Segmenter, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cts = [write_phantom("RAS"), write_phantom("LPS"), write_phantom("RAS", 1)]
    opened: list[tuple[Path, str]] = []
    second = threading.Event()
    original_open, original_run = reading.open_ct, session._window.run

    def watched_open(ct: Path, **kwargs: Any) -> StoredImage:
        opened.append((ct, threading.current_thread().name))
        if len(opened) == 2:
            second.set()
        return original_open(ct, **kwargs)

    def run_when_the_second_is_open(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert second.wait(timeout=HANG)
        return original_run(*args, **kwargs)

    monkeypatch.setattr(reading, "open_ct", watched_open)
    monkeypatch.setattr(session._window, "run", run_when_the_second_is_open)
    assert [case.error for case in session.segment_all(cts)] == [None] * 3
    assert [ct for ct, _ in opened] == cts
    here = threading.current_thread().name
    assert [thread == here for _, thread in opened] == [True, False, False]


# --- cancelling


def test_a_case_can_be_cancelled_before_each_stage_and_window(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """Wherever it ends nothing is left, not even half a file, and the session goes on."""
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    expected = session.segment(write_phantom(), tmp_path / "whole", cancel=count)
    assert asked >= 4 + expected.record["windows"]["run"]  # the stages after reading, and the windows
    for stop in range(asked):
        left = stop

        def cancel() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        with pytest.raises(CancelledError):
            session.segment(write_phantom(), tmp_path / "out", qc=True, cancel=cancel)
        assert left == -1  # not asked again
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    np.testing.assert_array_equal(session.segment(write_phantom()).mask, expected.mask)


def test_cancelling_many_keeps_those_that_are_done(
    session: Segmenter, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    cts = [write_phantom("RAS"), write_phantom("LPS"), write_phantom("RAS", 1)]
    stages: list[tuple[int, str]] = []
    cases = session.segment_all(
        cts,
        tmp_path,
        progress=lambda index, stage, done, total: stages.append((index, stage)),
        cancel=lambda: (1, "network") in stages,  # while the network works on the second
    )
    first = next(cases)
    assert first.error is None
    with pytest.raises(CancelledError):
        next(cases)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phantom_RAS_0_seg.json", "phantom_RAS_0_seg.nii.gz"]
    assert list(cases) == []
    assert (1, "postprocess") not in stages


# --- threads and processes


@pytest.fixture(scope="module")
def sessions(tiny_checkpoint: Path) -> list[Segmenter]:
    """Two that need several windows for a phantom."""
    values = {**TINY, **PLAIN, "spacing": [5.0] * 3, "max_window_voxels": 32**3}
    return [Segmenter(tiny_checkpoint, device="cpu", precision="fp32", **values) for _ in range(2)]


@pytest.mark.parametrize("used", [(0, 0), (0, 1)], ids=["one session", "two sessions"])
def test_threads_hear_of_their_own_case_and_cancel_it_alone(
    sessions: list[Segmenter], write_phantom: Callable[..., Path], used: tuple[int, int]
) -> None:
    """Both are in the network at once; one is cancelled there, and the other one goes on."""
    cts = [write_phantom("RAS"), write_phantom("LPS", 1)]
    alone = sessions[0].segment(cts[1])
    both = threading.Barrier(2, timeout=HANG)
    seen: list[list[tuple[int, str, int]]] = [[], []]
    results: list[object] = [None, None]

    def work(number: int) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            seen[number].append((threading.get_ident(), stage, done))
            if (stage, done) == ("network", 1):
                both.wait()

        def cancel() -> bool:
            return number == 0 and seen[0][-1][1:] == ("network", 1)

        try:
            results[number] = sessions[used[number]].segment(cts[number], progress=progress, cancel=cancel)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert [{ident for ident, _, _ in events} for events in seen] == [{thread.ident} for thread in threads]
    assert seen[0][-1][1:] == ("network", 1)
    assert isinstance(results[0], CancelledError)
    assert isinstance(results[1], Segmentation), results[1]
    windows = alone.record["windows"]["run"]
    assert windows > 1
    assert [done for _, stage, done in seen[1] if stage == "network"] == list(range(windows + 1))
    np.testing.assert_array_equal(results[1].mask, alone.mask)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_session_is_not_copied(session: Segmenter, copied: Callable[[Segmenter], object]) -> None:
    with pytest.raises(CopyError, match=r"make one in each process.*segment-many"):
        copied(session)
    with pytest.raises(TypeError):
        copied(session)


# --- where memory runs out all the same


class Narrow(torch.nn.Module):
    """A device with memory for so many voxels."""

    def __init__(self, network: torch.nn.Module, voxels: int, error: Exception) -> None:
        super().__init__()
        self.network = network
        self.voxels = voxels
        self.error = error
        self.run: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > self.voxels:
            raise self.error
        self.run.append(tuple(x.shape[2:]))
        result: torch.Tensor = self.network(x)
        return result

    def release_memory(self) -> None:
        pass


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    MemoryError("std::bad_alloc"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["GPU", "CPU", "libraries", "cuDNN"])
def test_where_memory_runs_out_all_the_same_the_case_is_refused(
    session: Segmenter, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The mask must not depend on what else a machine was doing: that of smaller windows would be another."""
    ct = write_phantom()
    size = session.segment(ct).record["windows"]["size"]
    monkeypatch.setattr(session, "_network", Narrow(session._network, math.prod(size) - 1, error))
    with pytest.raises(MemoryLimitError) as refused:
        session.segment(ct)
    shown = " x ".join(map(str, size))
    message = f"{ct}: out of memory on cpu with windows of {shown} voxels: close other programs, "
    assert str(refused.value).startswith(message)
    assert "allow_smaller_windows=True" in str(refused.value)


def test_where_memory_runs_out_fewer_windows_are_run_at_once(
    tiny_checkpoint: Path, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same windows, and the same mask but for rounding, which is said."""
    values = {**TINY, **PLAIN, "max_window_voxels": 40_000, "sw_batch_size": 5}
    session = Segmenter(tiny_checkpoint, "cpu", "fp32", **values)
    whole = session.segment(write_phantom())
    window = math.prod(whole.record["windows"]["size"])
    narrow = Narrow(session._network, 3 * window - 1, OUT_OF_MEMORY[0])
    monkeypatch.setattr(session, "_network", narrow)
    found = session.segment(write_phantom())
    assert (whole.record["windows"]["batch"], found.record["windows"]["batch"]) == (5, 2)
    assert found.record["windows"] == {**whole.record["windows"], "batch": 2}
    assert found.record["warnings"][0].startswith("memory was short: 2 windows were run at once instead of 5;")
    assert (found.mask != whole.mask).mean() < 1e-4


def test_smaller_windows_are_tried_where_they_are_allowed(
    tiny_checkpoint: Path,
    write_phantom: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = Segmenter(tiny_checkpoint, "cpu", "fp32", **TINY, **PLAIN, allow_smaller_windows=True)
    whole = session.segment(write_phantom()).record["windows"]
    assert whole["run"] == 1
    narrow = Narrow(session._network, math.prod(whole["size"]) - 1, OUT_OF_MEMORY[0])
    monkeypatch.setattr(session, "_network", narrow)
    found = session.segment(write_phantom())
    windows = found.record["windows"]
    assert windows["run"] == len(narrow.run) > 1
    assert set(narrow.run) == {tuple(windows["size"])}
    full, ran = (" x ".join(map(str, size)) for size in (whole["size"], windows["size"]))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"out of memory on cpu with windows of {full} voxels: smaller ones are tried"
    ]
    (warning,) = found.record["warnings"]
    assert warning.startswith(f"memory was short: windows of {ran} voxels were run instead of {full};")
    # As with windows that were set to be no larger than half of what failed.
    limited = Segmenter(
        tiny_checkpoint, "cpu", "fp32", **TINY, **PLAIN, max_window_voxels=math.prod(whole["size"]) // 2
    ).segment(write_phantom())
    assert limited.record["windows"] == windows
    np.testing.assert_array_equal(found.mask, limited.mask)


def test_memory_for_no_window_at_all_is_said_and_other_errors_are_not_hidden(
    tiny_checkpoint: Path, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = Segmenter(tiny_checkpoint, "cpu", "fp32", **TINY, allow_smaller_windows=True)
    network = session._network
    monkeypatch.setattr(session, "_network", Narrow(network, 0, OUT_OF_MEMORY[0]))
    with pytest.raises(
        MemoryLimitError, match=r"out of memory on cpu with windows of .*, and there are no smaller ones"
    ):
        session.segment(write_phantom(), tmp_path / "out")
    monkeypatch.setattr(session, "_network", Narrow(network, 0, RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        session.segment(write_phantom(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("stage", "broken"), [("preprocess", "resample_image"), ("postprocess", "mask_from_logits")])
def test_memory_that_runs_out_in_another_stage_is_said_on_a_line(
    session: Segmenter, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stage: str, broken: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(f"attunet3d.segmenter.session.{broken}", fail)
    with pytest.raises(MemoryLimitError, match=f"RAS_0.nii.gz: out of memory in stage {stage}: close other programs"):
        session.segment(write_phantom())


# --- the same voxels as MONAI's bundle


def bundle_masks(cts: list[Path], folder: Path, **ids: Any) -> list[np.ndarray]:
    """The masks of ``python -m monai.bundle run`` with the bundle's inference config, in this process."""
    images = folder / "images"
    images.mkdir(parents=True)
    for ct in cts:
        (images / ct.name).symlink_to(ct)
    run = make_workflow("inference", [], {"dataset_dir": str(images), "output_dir": str(folder / "masks"), **ids})
    run.initialize()
    run.run()
    run.finalize()
    return [np.asarray(nib.load(folder / "masks" / f"{case_name(ct)}_seg.nii.gz").dataobj) for ct in cts]


@pytest.mark.parametrize(
    ("settings", "several"),
    [
        pytest.param({}, False, id="one window"),
        pytest.param({"max_window_voxels": 40_000}, True, id="several windows"),
        pytest.param({"max_window_voxels": None, "overlap": 0.5}, True, id="MONAI's windows"),
        pytest.param({"max_window_voxels": 40_000, "sw_batch_size": 3, "skip_below": None}, True, id="nothing skipped"),
        pytest.param({"num_classes": 3, "spacing": [7.0, 8.0, 9.0], **PLAIN}, False, id="three classes"),
        pytest.param({**PLAIN, "max_window_voxels": 40_000}, True, id="one size"),
        pytest.param({"scales": [0.7, 1.3], "threshold": 0.4, "keep_components": 0.05}, False, id="two sizes"),
        pytest.param({"hu_window": [0.0, 80.0], "max_window_voxels": 40_000}, True, id="little above the window"),
    ],
)
def test_voxels_are_those_of_the_bundle(
    write_phantom: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], several: bool
) -> None:
    """``segment`` goes its own way to be fast; what comes out is what the bundle's wiring says, voxel for voxel."""
    torch.manual_seed(5)
    network = AttentionUNet(out_channels=settings.get("num_classes", 2), channels=TINY["channels"])
    torch.save(network.state_dict(), tmp_path / "random.pt")
    ids = {**TINY, "spacing": [8.0] * 3, "device": "cpu", "precision": "fp32", **settings}
    ids["checkpoint"] = str(tmp_path / "random.pt")
    cts = [write_phantom("LPS"), write_phantom("oblique", 2)]
    expected = bundle_masks(cts, tmp_path / "bundle", **ids)
    session = Segmenter(**ids)
    for ct, mask in zip(cts, expected, strict=True):
        found = session.segment(ct)
        assert (found.record["windows"]["run"] > 1) == several
        assert 0 < np.count_nonzero(mask) < mask.size
        np.testing.assert_array_equal(found.mask, mask)


def test_segmenting_a_nifti_imports_no_monai(
    tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """Its import takes longer than many a CT: the session, and the command line, do without."""
    ids = {**TINY, "scales": [1.0]}
    values = repr({"checkpoint": str(tiny_checkpoint), "device": "cpu", "precision": "fp32", **ids})
    arguments = [str(write_phantom()), "-o", str(tmp_path / "out"), "--checkpoint", str(tiny_checkpoint), "--qc"]
    for name, value in ids.items():
        arguments += ["--set", f"{name}={value}"]
    program = f"""
import sys
from attunet3d import Segmenter
assert Segmenter(**{values}).segment({str(write_phantom())!r}).mask.any()
sys.argv = ["attunet3d", "segment", *{arguments!r}]
from attunet3d import cli
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
heavy = {{"monai", "ignite", "SimpleITK"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "phantom_RAS_0_seg.png").is_file()


@needs_data
def test_real_ct_keeps_its_grid(session: Segmenter, tmp_path: Path) -> None:
    result = session.segment(SHARED_DATA / "lidc0001" / "dicom", tmp_path)
    labels = nib.load(SHARED_DATA / "lidc0001" / "totalsegmentator_organs.nii.gz")
    assert result.mask.shape == labels.shape
    affine = nib.load(result.path).affine
    assert place_on(np.asarray(labels.dataobj), labels.affine, result.mask.shape, affine, "mask and labels").any()
