"""A result is replaced as one: where a mask is, its record is the one of the same run, wherever the writing ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest

from attunet3d.errors import OutputError
from attunet3d.io import writer
from attunet3d.io.output_formats import FORMATS, OutputFormat
from attunet3d.many.manifest import ManyCase
from attunet3d.many.outcome import find_outcome
from attunet3d.segmenter import outputs
from attunet3d.segmenter.outputs import CaseWriter, Outputs
from attunet3d.segmenter.reading import PlannedCT
from attunet3d.transforms.grid import Grid

SHAPE = (6, 5, 4)
MASK, RECORD, PICTURE = "case_seg.nii.gz", "case_seg.json", "case_seg.png"


class Killed(BaseException):
    """Stands for the process's end: nothing but ``finally`` runs after it."""


def write_first_byte(path: Path, mask: np.ndarray) -> None:
    path.write_bytes(mask.tobytes()[:1])


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path | None]:
    """write(run, qc=False, maps=(), suffix=".nii.gz"): a result whose every file says which run made it."""
    first_byte = OutputFormat("first-byte", "_seg.dcm", lambda *_: write_first_byte)
    monkeypatch.setitem(FORMATS, first_byte.name, first_byte)
    monkeypatch.setattr(
        "attunet3d.pictures.qc.qc_picture", lambda file, hu, mask, *rest: file.write(b"%d" % hu[0, 0, 0])
    )

    def call(run: int, qc: bool = False, maps: tuple[str, ...] = (), suffix: str = ".nii.gz") -> Path | None:
        read = SimpleNamespace(grid=Grid(SHAPE, np.eye(4)), metadata={"warnings": []}, files=(), frames=())
        output_format = "first-byte" if suffix == ".dcm" else "nifti"
        outputs = Outputs(tmp_path, output_format, qc)
        case = CaseWriter(outputs, "case.nii.gz", None, cast(PlannedCT, read), "")
        array = np.full(SHAPE, run, np.uint8)
        record: dict[str, Any] = {"run": run, "volume_ml": 0.0, "memory_mb": {}, "warnings": []}
        hu = np.full(SHAPE, run, np.int16) if qc else None
        return case.write(array, record, dict.fromkeys(maps, array), hu, nullcontext())

    return call


def run_of(path: Path) -> int:
    """Which run made a file."""
    if path.suffix == ".json":
        return int(json.loads(path.read_text())["run"])
    if path.suffix == ".gz":
        image = nib.load(path)
        return int(np.asarray(image.dataobj.get_unscaled()).flat[0])
    return path.read_bytes()[0] if path.suffix == ".dcm" else int(path.read_text())


def files(folder: Path) -> dict[str, int]:
    """Each file, and which run made it."""
    return {path.name: run_of(path) for path in sorted(folder.iterdir())}


def steps(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """The steps that the writer takes on the folder, as they are taken; before one of them the process is killed."""
    taken: list[str] = []

    def step(name: str, of: Callable[..., None]) -> Callable[..., None]:
        def take(*paths: Any, **kwargs: Any) -> None:
            if Path(paths[-1]).name.startswith(".tmp-"):
                return of(*paths, **kwargs)
            if len(taken) == stop_at:
                raise Killed
            taken.append(f"{name} {Path(paths[-1]).name}")
            return of(*paths, **kwargs)

        return take

    monkeypatch.setattr(writer.os, "replace", step("place", os.replace))
    monkeypatch.setattr(writer.os, "unlink", step("remove", os.unlink))
    return taken


def test_the_mask_goes_first_and_comes_last(
    write: Callable[..., Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(1, qc=True, maps=("level2",))
    with monkeypatch.context() as watched:
        taken = steps(watched)
        assert write(2, qc=True) == tmp_path / MASK
    assert taken[0] == f"remove {MASK}"
    assert taken[-3:] == [f"place {RECORD}", f"place {PICTURE}", f"place {MASK}"]
    assert files(tmp_path) == {RECORD: 2, MASK: 2, PICTURE: 2}


@pytest.mark.parametrize(
    ("former", "new"),
    [
        pytest.param({}, {}, id="mask and record"),
        pytest.param({"qc": True, "maps": ("level2", "level3")}, {"qc": True, "maps": ("level2", "level3")}, id="all"),
        pytest.param({"qc": True, "maps": ("level2",)}, {}, id="a former picture and maps"),
        pytest.param({"maps": ("level2",)}, {"maps": ("level2_gate1", "level2_gate2")}, id="other maps"),
        pytest.param({"suffix": ".dcm", "qc": True}, {}, id="a former DICOM SEG"),
        pytest.param({"qc": True}, {"suffix": ".dcm"}, id="now a DICOM SEG"),
    ],
)
def test_wherever_writing_ends_no_mask_stands_beside_the_record_of_another_run(
    write: Callable[..., Path | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    former: dict[str, Any],
    new: dict[str, Any],
) -> None:
    """Killed before each step; what the next run then leaves is its own alone."""
    stop = 0
    while True:
        write(1, **former)
        before = set(files(tmp_path))
        with monkeypatch.context() as watched:
            taken = steps(watched, stop)
            try:
                write(2, **new)
                break
            except Killed:
                pass
        found = files(tmp_path)
        masks = [name for name in found if name in (MASK, "case_seg.dcm")]
        assert len(masks) <= 1
        record = json.loads((tmp_path / RECORD).read_text())
        if masks:
            assert len(set(found.values())) == 1, f"mixed after {taken}: {found}"
            assert record["output"] == masks[0]
            assert set(found) == before or record["run"] == 2
        assert record["output"] in (MASK, "case_seg.dcm")  # it says which mask it was of
        write(3, **new)
        assert set(files(tmp_path).values()) == {3}
        stop += 1
    assert stop >= 3
    assert set(files(tmp_path).values()) == {2}


def test_what_no_record_names_is_not_known_to_be_ours(write: Callable[..., Path | None], tmp_path: Path) -> None:
    """A reference beside its CT, pictures, and another case whose name begins alike stay."""
    others = [
        "case_seg.dcm",
        "case_seg.png",
        "case_attention_level2.nii.gz",
        "case_2_seg.png",
        "case_attention_level2_seg.json",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    write(1)
    write(2)
    assert sorted(set(others) - {path.name for path in tmp_path.iterdir()}) == ["case_seg.png"]
    # After the first result of that name, the picture of that name is taken for its.


@pytest.mark.parametrize(
    "record",
    [
        "no JSON",
        "[]",
        "{}",
        '{"output": 5}',
        '{"output": "../case_seg.nii.gz"}',
        '{"output": "case_seg.nii.gz", "attention": []}',
        '{"output": "case_seg.nii.gz", "attention": {"level2": "case_attention_/../../other.nii.gz"}}',
        '{"output": "case_seg.nii.gz", "attention": {"level2": "other.nii.gz"}}',
    ],
)
def test_a_record_that_is_none_names_nothing(write: Callable[..., Path | None], tmp_path: Path, record: str) -> None:
    (tmp_path / RECORD).write_text(record)
    (tmp_path / "other.nii.gz").write_text("mine")
    write(1)
    assert run_of(tmp_path / RECORD) == run_of(tmp_path / MASK) == 1
    assert (tmp_path / "other.nii.gz").read_text() == "mine"


def test_on_windows_a_backslash_leads_to_another_file(
    write: Callable[..., Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = "case_attention_\\..\\other.nii.gz"
    record = json.dumps({"output": MASK, "attention": {"level2": named}})
    (tmp_path / named).write_text("mine")
    (tmp_path / RECORD).write_text(record)
    monkeypatch.setattr(outputs, "PurePath", PureWindowsPath)
    write(1)
    assert (tmp_path / named).exists()
    monkeypatch.undo()
    (tmp_path / RECORD).write_text(record)
    write(2)
    assert not (tmp_path / named).exists(), "elsewhere it is a part of the name"


def test_a_step_that_fails_is_an_error_of_ours_and_leaves_no_temporary_file(
    write: Callable[..., Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(1)

    def refuse(old: Path, new: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(writer.os, "replace", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(Read-only file system\); choose another folder"):
        write(2)
    assert files(tmp_path) == {RECORD: 1}


def test_the_folder_is_on_the_disk_before_and_after_the_mask_takes_its_place(
    write: Callable[..., Path | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = steps(monkeypatch)
    sync = writer._sync_folder
    monkeypatch.setattr(writer, "_sync_folder", lambda folder: (taken.append("sync"), sync(folder)))
    write(1)
    assert taken[-3:] == ["sync", f"place {MASK}", "sync"]
    assert taken.index("sync") < taken.index(f"place {RECORD}")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"output": ' + "1" * 5000 + "}", '{"output": {}, "attention": []}', "[]"]
)
def test_a_record_that_is_none_says_nothing(write: Callable[..., Path | None], tmp_path: Path, text: str) -> None:
    """Neither of what is replaced, nor that a case of ``segment-many`` is done."""
    (tmp_path / RECORD).write_text(text)
    assert find_outcome(tmp_path, Outputs(tmp_path), lambda record: True, ManyCase("case", "ct"), "") is None
    assert write(1) == tmp_path / MASK


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_record_that_is_a_pipe_is_not_waited_for(write: Callable[..., Path | None], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD)
    assert find_outcome(tmp_path, Outputs(tmp_path), lambda record: True, ManyCase("case", "ct"), "") is None
    assert write(1) == tmp_path / MASK
    assert run_of(tmp_path / RECORD) == 1
