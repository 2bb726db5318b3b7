"""Reading for a session: one CT ahead where there is room for it, and what goes wrong in its place."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import HANG
from dicom_files import phantom, write_series

from attunet3d.errors import AttUNet3dError, MemoryLimitError, UnreadableInputError
from attunet3d.io.slabs import StoredImage, to_hu
from attunet3d.segmenter import reading
from attunet3d.segmenter.memory_plan import MemoryPlan
from attunet3d.segmenter.reading import CaseReader, PlannedCT
from attunet3d.transforms.grid import Grid

SHAPE = (6, 5, 4)
VOXELS = 2 * 6 * 5 * 4  # int16
AMPLE = MemoryPlan(peak_bytes=0, allowed_bytes=None, limit_voxels=None)


@pytest.fixture
def cts(tmp_path: Path) -> list[Path]:
    """Four CTs, each of its own HU."""
    paths = []
    for index in range(4):
        hu = np.full(SHAPE, 10 + index, np.int16)
        hu[0] = -1000
        paths.append(tmp_path / f"ct{index}.nii.gz")
        nib.save(nib.Nifti1Image(hu, np.diag([1.0, 1.0, 2.0, 1.0])), paths[-1])
    return paths


class Watch:
    """What was read, by which thread, and what was handed to the background."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []
        self.submitted = 0
        self.changed = threading.Condition()

    def to_hu(self, image: StoredImage) -> np.ndarray:
        hu = to_hu(image)
        with self.changed:
            self.read.append((image.path.name, threading.current_thread().name))
            self.changed.notify_all()
        return hu

    def wait_for(self, count: int) -> None:
        """Until so many have been read: a CT that is never read must fail, not hang."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.read) >= count, timeout=HANG)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()

    class Executor(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            watch.submitted += 1
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(reading, "to_hu", watch.to_hu)
    monkeypatch.setattr(reading, "ThreadPoolExecutor", Executor)
    return watch


def reader(plan: Callable[..., MemoryPlan] | None = None) -> CaseReader:
    return CaseReader((2.0, 2.0, 2.0), plan or (lambda image, model: AMPLE))


def hu_of(read: PlannedCT | Exception) -> int:
    assert isinstance(read, PlannedCT)
    return int(read.take()[-1, 0, 0])


def background() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_ct_comes_with_its_grids_and_its_voxels_once(cts: list[Path]) -> None:
    asked: list[tuple[Any, ...]] = []

    def plan(image: StoredImage, model: Grid) -> MemoryPlan:
        asked.append((image.shape, model.shape))
        return AMPLE

    read = reader(plan).read(cts[2])
    assert asked == [(SHAPE, (3, 3, 4))]  # 6 x 5 x 8 mm in steps of 2
    assert (read.grid.shape, read.model.shape, read.memory) == (SHAPE, (3, 3, 4), AMPLE)
    np.testing.assert_array_equal(read.grid.affine, np.diag([1.0, 1.0, 2.0, 1.0]))
    assert read.metadata["format"] == "nifti"
    assert read.seconds >= 0
    hu = read.take()
    assert (hu.shape, hu.dtype) == (SHAPE, np.int16)
    assert set(np.unique(hu)) == {-1000, 12}
    with pytest.raises(RuntimeError, match="taken already"):
        read.take()


def test_what_does_not_fit_is_refused_from_its_header(cts: list[Path], watch: Watch) -> None:
    def refuse(*_: Any) -> MemoryPlan:
        raise MemoryLimitError("too large")

    with pytest.raises(MemoryLimitError, match="too large"):
        reader(refuse).read(cts[0])
    assert [type(read) for read in reader(refuse).read_all(cts)] == [MemoryLimitError] * 4
    assert watch.read == []


def test_the_next_ct_is_read_while_the_caller_works_on_one_and_no_more_than_that(cts: list[Path], watch: Watch) -> None:
    found = []
    reading = reader().read_all(cts)
    for index, read in enumerate(reading):
        ahead = min(index + 2, len(cts))
        watch.wait_for(ahead)  # without asking for the next one
        assert len(watch.read) == ahead
        assert watch.submitted == ahead - 1
        found.append(hu_of(read))
    assert found == [10, 11, 12, 13]
    names, threads = zip(*watch.read, strict=True)
    assert names == tuple(path.name for path in cts)
    here = threading.current_thread().name
    assert threads[0] == here
    assert all(name.startswith("read") for name in threads[1:])
    assert background() == []


@pytest.mark.parametrize("room", [True, False])
def test_nothing_is_read_ahead_where_there_is_no_room(cts: list[Path], watch: Watch, room: bool) -> None:
    """The voxels of the next CT beside the case: to the byte."""
    memory = MemoryPlan(peak_bytes=1000, allowed_bytes=1000 + VOXELS - (not room), limit_voxels=None)
    found = [hu_of(read) for read in reader(lambda *_: memory).read_all(cts)]
    assert found == [10, 11, 12, 13]
    here = threading.current_thread().name
    assert [thread == here for _, thread in watch.read] == [True, *[not room] * 3]


def test_what_goes_wrong_comes_in_its_place(cts: list[Path], watch: Watch) -> None:
    cts[1].write_bytes(cts[1].read_bytes()[:-20])
    cts[3].unlink()
    given = list(reader().read_all(cts))
    assert isinstance(given[1], AttUNet3dError)
    assert "ct1.nii.gz" in str(given[1])
    assert isinstance(given[3], AttUNet3dError)
    assert "ct3.nii.gz: does not exist" in str(given[3])
    assert [hu_of(given[0]), hu_of(given[2])] == [10, 12]


def test_the_series_uid_reaches_each_ct(cts: list[Path], watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    original = reading.open_ct

    def opened(path: Path, *, series_uid: str | None, allow_uneven: bool) -> StoredImage:
        asked.append(series_uid)
        return original(path, allow_uneven=allow_uneven)

    monkeypatch.setattr(reading, "open_ct", opened)
    assert len(list(reader().read_all(cts, "1.2.3"))) == 4
    assert asked == ["1.2.3"] * 4


def test_a_caller_that_stops_leaves_no_thread_behind(cts: list[Path], watch: Watch) -> None:
    reading: Iterator[PlannedCT | Exception] = reader().read_all(cts)
    next(reading)
    watch.wait_for(2)
    assert background() != []
    reading.close()  # type: ignore[attr-defined]
    assert background() == []
    assert len(watch.read) == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_a_ct_that_is_written_to_while_it_is_read(
    cts: list[Path], monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Noticed where all could be read, and told as the reason where it could not."""

    def overwritten(image: StoredImage) -> np.ndarray:
        content = image.path.read_bytes()
        image.path.write_bytes(content[:-20] if damaged else content)
        os.utime(image.path, ns=(0, 1))
        return to_hu(image)

    monkeypatch.setattr(reading, "to_hu", overwritten)
    with pytest.raises(UnreadableInputError, match=r"ct0\.nii\.gz was written to while the CT was read"):
        reader().read(cts[0])


def test_only_what_is_read_must_stay_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A series beside it may still be on its way, or a mask be written there; a slice of it may not."""
    write_series(tmp_path / "x", phantom(), uid="1.2.3.1")
    write_series(tmp_path / "y", phantom(), uid="1.2.3.2")
    touched = tmp_path / "y"

    def touch_one(image: StoredImage) -> np.ndarray:
        os.utime(sorted(touched.iterdir())[0], ns=(0, 1))
        (tmp_path / "new.dcm").touch()
        return to_hu(image)

    monkeypatch.setattr(reading, "to_hu", touch_one)
    assert len(reader().read(tmp_path, "1.2.3.1").metadata["state"]) == 64
    touched = tmp_path / "x"
    with pytest.raises(UnreadableInputError, match="written to while the CT was read"):
        reader().read(tmp_path, "1.2.3.1")
