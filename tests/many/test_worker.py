"""A worker's cases: what counts as done, what a failed one leaves, and what ends a run."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY
from dicom_files import phantom, write_series

from attunet3d.errors import OutputError
from attunet3d.io.locking import LOCK
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import find_outcome, is_unchanged, state_of_input
from attunet3d.many.results import Row
from attunet3d.many.worker import Job, Worker
from attunet3d.segmenter import outputs
from attunet3d.segmenter.outputs import Outputs
from attunet3d.segmenter.session import Segmenter

SESSION = {"device": "cpu", "precision": "fp32", **TINY}


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A worker that has its network; its output folder is that of ``work``."""
    out = tmp_path_factory.mktemp("many") / "out"
    worker = Worker(Job(str(out), {"checkpoint": str(tiny_checkpoint), **SESSION}, memory_gb=8))
    worker.load()
    return worker


@pytest.fixture
def out(loaded: Worker) -> Path:
    """Its output folder, as of a run that has just begun."""
    folder = Path(loaded._job.output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / LOCK).touch()
    return folder


def write_ct(path: Path, hu: int = 40) -> Path:
    array = np.full((40, 40, 24), hu, np.int16)
    array[:4] = -1000
    nib.save(nib.Nifti1Image(array, np.diag([3.0, 3.0, 5.0, 1.0])), path)
    return path


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    return write_ct(tmp_path / "ct.nii.gz")


def later(path: Path) -> None:
    """Give a file another time, as any later writing does."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def kept(out: Path, row: Row, case: ManyCase) -> bool:
    return is_unchanged(out, "nifti", case, row.status, row.state)


def test_what_is_done_is_not_done_again(loaded: Worker, out: Path, ct: Path, tmp_path: Path) -> None:
    case = ManyCase("a", str(ct))
    row = loaded.segment(case).row
    assert (row.status, row.output, row.record) == ("done", "a_seg.nii.gz", "a_seg.json")
    assert kept(out, row, case)
    stamp = (out / "a_seg.nii.gz").stat().st_mtime_ns
    assert loaded.segment(case).row == row
    assert (out / "a_seg.nii.gz").stat().st_mtime_ns == stamp
    # The mask was copied with another time, its content is the same: nothing has to be segmented.
    later(out / "a_seg.nii.gz")
    assert not kept(out, row, case)
    again = loaded.segment(case).row
    assert (out / "a_seg.nii.gz").stat().st_mtime_ns == stamp + 10**9
    assert kept(out, again, case)


def remove_mask(out: Path, ct: Path) -> None:
    (out / "a_seg.nii.gz").unlink()


def alter_mask(out: Path, ct: Path) -> None:
    mask = out / "a_seg.nii.gz"
    mask.write_bytes(gzip.compress(gzip.decompress(mask.read_bytes())[:-1] + b"\1"))
    later(mask)


def swap_content(out: Path, ct: Path) -> None:
    write_ct(ct, 80)
    later(ct)


def remove_record(out: Path, ct: Path) -> None:
    (out / "a_seg.json").unlink()
    later(out / "a_seg.nii.gz")


@pytest.mark.parametrize("change", [remove_mask, alter_mask, swap_content, remove_record])
def test_what_has_changed_is_segmented_anew(
    loaded: Worker, out: Path, ct: Path, change: Callable[[Path, Path], None]
) -> None:
    case = ManyCase("a", str(ct))
    row = loaded.segment(case).row
    content = (out / "a_seg.nii.gz").read_bytes()
    change(out, ct)
    assert not kept(out, row, case)
    again = loaded.segment(case)
    assert (again.row.status, kept(out, again.row, case)) == ("done", True)
    record = json.loads((out / "a_seg.json").read_text())
    assert record["mask_sha256"] == outputs.file_sha256(out / "a_seg.nii.gz")
    if change is not swap_content:
        assert gzip.decompress((out / "a_seg.nii.gz").read_bytes()) == gzip.decompress(content)


def test_an_id_that_names_another_ct_or_series(loaded: Worker, out: Path, ct: Path, tmp_path: Path) -> None:
    """Also one of the same name, size and time elsewhere."""
    (tmp_path / "b").mkdir()
    twin = Path(shutil.copy2(ct, tmp_path / "b" / "ct.nii.gz"))
    row = loaded.segment(ManyCase("a", str(ct))).row
    assert not kept(out, row, ManyCase("a", str(twin)))
    assert loaded.segment(ManyCase("a", str(twin))).row.state != row.state
    write_series(tmp_path / "study" / "x", phantom(), uid="1.2.3.1")
    write_series(tmp_path / "study" / "y", phantom(), uid="1.2.3.2")
    one, other = (ManyCase("s", str(tmp_path / "study"), uid) for uid in ("1.2.3.1", "1.2.3.2"))
    row = loaded.segment(one).row
    assert kept(out, row, one)
    assert not kept(out, row, other)
    loaded.segment(other)
    assert json.loads((out / "s_seg.json").read_text())["source"]["series_uid"] == "1.2.3.2"


@pytest.mark.parametrize("other", ["overlap", "weights"])
def test_a_mask_of_other_values_or_weights_is_not_done(
    loaded: Worker, out: Path, ct: Path, tiny_checkpoint: Path, tmp_path: Path, other: str
) -> None:
    """As ``attunet3d segment`` puts it there."""
    session: dict[str, Any] = dict(SESSION)
    checkpoint = tiny_checkpoint
    if other == "weights":
        checkpoint = tmp_path / "model.pt"
        weights = torch.load(tiny_checkpoint, weights_only=True)
        torch.save({name: value * 1.5 for name, value in weights.items()}, checkpoint)
    else:
        session["overlap"] = 0.0
    Segmenter(checkpoint, **session).segment(ct, out, name="a")
    foreign = json.loads((out / "a_seg.json").read_text())
    loaded.segment(ManyCase("a", str(ct)))
    mine = json.loads((out / "a_seg.json").read_text())
    assert (foreign["checkpoint"], foreign["config"]) != (mine["checkpoint"], mine["config"])
    # One that `segment` makes as this run would counts.
    (out / "a_seg.nii.gz").unlink()
    Segmenter(tiny_checkpoint, **SESSION).segment(ct, out, name="a")
    stamp = (out / "a_seg.nii.gz").stat().st_mtime_ns
    assert loaded.segment(ManyCase("a", str(ct))).row.status == "done"
    assert (out / "a_seg.nii.gz").stat().st_mtime_ns == stamp


def test_a_failed_case_has_a_record_and_no_mask(loaded: Worker, out: Path, ct: Path) -> None:
    """Not even that of what its input was before; and when it is done, the record goes."""
    case, whole = ManyCase("a", str(ct)), ct.read_bytes()
    loaded.segment(case)
    ct.write_bytes(whole[:-20])
    row = loaded.segment(case).row
    assert (row.status, row.error_type, row.record, row.output) == (
        "failed",
        "UnreadableInputError",
        "a_failed.json",
        "",
    )
    assert kept(out, row, case)
    record = json.loads((out / "a_failed.json").read_text())
    assert (record["input"], record["status"], record["message"]) == ("ct.nii.gz", "failed", row.message)
    assert {path.name for path in out.iterdir()} == {LOCK, "a_failed.json"}
    ct.write_bytes(whole)
    later(ct)
    assert not kept(out, row, case)
    assert loaded.segment(case).row.status == "done"
    assert {path.name for path in out.iterdir()} == {LOCK, "a_seg.json", "a_seg.nii.gz"}


def test_a_ct_that_is_away_leaves_its_mask(loaded: Worker, out: Path, ct: Path) -> None:
    """It may be back tomorrow, with all others of an archive that was not mounted."""
    case = ManyCase("a", str(ct))
    row = loaded.segment(case).row
    away = ct.rename(ct.with_name("away"))
    missing = loaded.segment(case).row
    assert (missing.status, missing.error_type) == ("failed", "InputNotFoundError")
    assert kept(out, missing, case)
    away.rename(ct)
    assert not kept(out, missing, case)
    stamp = (out / "a_seg.nii.gz").stat().st_mtime_ns
    assert loaded.segment(case).row == row
    assert (out / "a_seg.nii.gz").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_full_storage_is_no_case_s_fault(
    loaded: Worker, out: Path, ct: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("nibabel.save", full)
    with pytest.raises(OutputError, match=rf"{os.strerror(number)}\); free space.*repeat the command"):
        loaded.segment(ManyCase("a", str(ct)))
    assert {path.name for path in out.iterdir()} == {LOCK}


def test_a_folder_that_has_gone_is_not_made_anew(loaded: Worker, out: Path, ct: Path) -> None:
    shutil.rmtree(out)
    with pytest.raises(OutputError, match="no longer exists"):
        loaded.segment(ManyCase("a", str(ct)))
    assert not out.exists()


def test_a_name_that_is_too_long_is_the_case_s_own_fault(
    loaded: Worker, out: Path, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    monkeypatch.setattr("nibabel.save", refused)
    assert loaded.segment(ManyCase("a", str(ct))).row.error_type == "OutputError"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("volume_ml", float("nan")),
        ("volume_ml", 10**400),
        ("volume_ml", "7"),
        ("seconds", [["read", 1.0]]),
        ("seconds", {"read": float("inf")}),
        ("warnings", 7),
    ],
)
def test_a_record_that_no_run_writes_is_not_gone_by(loaded: Worker, out: Path, ct: Path, part: str, value: Any) -> None:
    case = ManyCase("a", str(ct))
    row = loaded.segment(case).row
    record = out / "a_seg.json"
    sound = record.read_text()
    state = state_of_input(out, case)
    found = partial(find_outcome, out, Outputs(out), loaded._session.made_with, case, state)
    ended = found()
    assert ended is not None
    assert ended.row == row
    record.write_text(json.dumps({**json.loads(sound), part: value}))
    assert found() is None


def test_a_record_with_uids_is_not_gone_by_where_none_are_wanted(loaded: Worker, out: Path, ct: Path) -> None:
    case = ManyCase("a", str(ct))
    loaded.segment(case)
    record = out / "a_seg.json"
    sound = json.loads(record.read_text())
    state = state_of_input(out, case)
    made_with = loaded._session.made_with
    assert find_outcome(out, Outputs(out, keep_uids=False), made_with, case, state) is not None
    for change in (
        {"warnings": ["series 1.2.840.113619.2.55.3: slices are missing"]},
        {"input": "1.2.840.113619.2.55.3"},
        {"source": {**sound["source"], "series_uid": "1.2.840.113619.2.55.3"}},
    ):
        record.write_text(json.dumps({**sound, **change}))
        assert find_outcome(out, Outputs(out, keep_uids=False), made_with, case, state) is None
        assert find_outcome(out, Outputs(out), made_with, case, state) is not None
