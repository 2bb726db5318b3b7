"""Damaged files of runs that are read back: the cache of training, records of masks, and the tables of segment-many."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
from dicom_files import phantom
from fuzz_mutations import Rng, any_of, damaged_bytes
from fuzz_target import Fault
from fuzz_values import UID, damaged_lines, damaged_text, damaged_value, json_text
from fuzz_weights import Forged

SHAPE = (14, 12, 10)


class Caches:
    """A case on the model grid, kept on disk, that a run of training takes again."""

    kinds = ("caches damaged", "caches forged", "caches unchecked")

    def __init__(self, scratch: Path) -> None:
        logging.getLogger("attunet3d").setLevel(logging.ERROR)
        scratch.mkdir(parents=True)
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        mask = np.zeros(SHAPE, np.uint8)
        mask[4:9, 3:8, 2:7] = 1
        nib.save(nib.Nifti1Image(phantom(SHAPE), affine), scratch / "ct.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), scratch / "label.nii.gz")
        self._case = {"image": str(scratch / "ct.nii.gz"), "label": str(scratch / "label.nii.gz")}
        self._whole = scratch / "cache"
        sound = self._cases(self._whole)
        sound.prepare(0)
        self._sound = {key: value.clone() for key, value in sound.load(0).items()}

    def _cases(self, folder: Path) -> Any:
        from monai.transforms import Compose, LoadImaged

        from attunet3d.io import CTReader, LabelReader
        from attunet3d.training import CachedCases
        from attunet3d.transforms import SelectLabelsd, ToModelGridd

        steps = Compose(
            [
                LoadImaged("image", reader=CTReader, dtype=None, ensure_channel_first=True),
                LoadImaged("label", reader=LabelReader, dtype=None, ensure_channel_first=True),
                SelectLabelsd("label", [1]),
                ToModelGridd(["image", "label"], (6.0, 6.0, 6.0), mode=["linear", "label"]),
            ]
        )
        return CachedCases([self._case], steps, folder)

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        shutil.copytree(self._whole, folder / "cache")
        files = sorted((folder / "cache").iterdir(), key=lambda path: path.name[32:])
        victim = any_of(rng, files if kind != "caches forged" else [f for f in files if f.suffix == ".npy"])
        data = victim.read_bytes()
        how = int(rng.integers(4))
        if how == 0 and victim.suffix == ".npy":
            data = _odd_array(rng, np.load(victim))
        elif how == 1 and kind != "caches forged":
            victim.unlink()
            data = any_of(rng, [b"", b"\xff\xfe", b"\n\n", data * 2])
        else:
            data = damaged_bytes(rng, bytearray(data))
        victim.write_bytes(data)
        if kind == "caches forged":  # by whoever makes the checksums too
            (sums,) = (f for f in files if f.suffix == ".sha256")
            arrays = [f for f in files if f.suffix == ".npy"]
            sums.write_text("".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in arrays))

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.training import fill_cache

        cases = self._cases(folder / "cache")
        if kind != "caches unchecked":
            fill_cache([cases])
        item = cases[0]
        cases.state(0)
        for key, value in item.items():
            if value.ndim != 4 or value.dtype != self._sound[key].dtype:
                raise Fault(f"{key} is {value.dtype} {tuple(value.shape)}")
            if kind == "caches damaged" and not bool((value == self._sound[key]).all()):
                raise Fault(f"{key} is another one")
        return ""


class Records:
    """The record of a mask that is there already: what segment-many goes on with, and what segment replaces."""

    kinds = ("records found", "records found without UIDs", "records replaced")

    def __init__(self, session: Any, ct: Path, scratch: Path) -> None:
        scratch.mkdir(parents=True)
        self._session = session
        self._ct = scratch / "ct.nii.gz"
        nib.save(nib.load(ct), self._ct)
        session.segment(self._ct, scratch / "whole", name="case")
        self._whole = scratch / "whole"

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        shutil.copytree(self._whole, folder / "masks")
        (folder / "masks" / "case_segments.txt").write_text("of somebody else")
        record = folder / "masks" / "case_seg.json"
        content = json.loads(record.read_text())
        content["attention"] = {"level2": "case_attention_level2.nii.gz"}
        content["created"] = ""
        content["warnings"] = [f"series {UID}: slices 3 mm apart"]
        # What this very record is known by must stay, or nothing is looked at behind it.
        if rng.random() < 0.7:
            victims = ["seconds", "volume_ml", "warnings", "source", "attention", "output", "voxels", "input"]
            chosen = {key: content[key] for key in victims}
            for key in victims:
                del content[key]
            content |= damaged_value(rng, chosen)
        else:
            content = damaged_value(rng, content)
        record.write_bytes(damaged_text(rng, [lambda: json_text(rng, content)]))

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.many.manifest import ManyCase
        from attunet3d.many.outcome import find_outcome, state_of_input
        from attunet3d.many.results import COLUMNS, ResultsTable
        from attunet3d.many.status import Status
        from attunet3d.segmenter.outputs import Outputs

        masks = folder / "masks"
        if kind == "records replaced":
            self._session.segment(self._ct, masks, name="case")
            left = sorted(path.name for path in masks.iterdir())
            if left != ["case_seg.json", "case_seg.nii.gz", "case_segments.txt"]:
                raise Fault(f"files {left}")
            return ""
        keep_uids = kind == "records found"
        case = ManyCase("case", str(self._ct))
        state = state_of_input(masks, case)
        ended = find_outcome(masks, Outputs(masks, keep_uids=keep_uids), self._session.made_with, case, state)
        if ended is None:
            return ""
        table = ResultsTable(masks)
        table.add(ended.row)
        table.close()
        status = Status(1, 0)
        status.add(ended)
        summary = status.summary(SimpleNamespace(workers=1, cpus=1, gpus=0))  # type: ignore[arg-type]
        json.loads(json.dumps(summary), parse_constant=_no_number)
        line = (masks / "results.csv").read_text().split("\n")[1]
        if len(COLUMNS) > line.count(",") + 1 or not line.isprintable():
            raise Fault(f"line {line!r}")
        fields = dict(zip(COLUMNS, next(csv.reader([line])), strict=True))
        numbers = [float(fields[name]) for name in ("volume_ml", "seconds")]
        if not all(map(math.isfinite, numbers)) or (not keep_uids and UID in line):
            raise Fault(f"line {line!r}")
        return line


class Tables:
    """results.csv and run.json of segment-many, and the lock of a folder."""

    kinds = ("tables results", "tables settings", "tables lock")
    _STATES = "0123456789abcdef" * 4

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        from attunet3d.many.results import COLUMNS

        if kind == "tables results":
            rows = [
                list(COLUMNS),
                ["a", "done", "", "71.2", "3.1", "", "a_seg.nii.gz", "", "a_seg.json", self._STATES],
                ["b", "failed", "UnreadableInputError", "", "", "", "", '"a, b"', "b_failed.json", self._STATES],
                ["c", "set aside", "CaseTimeout", "", "", "", "", "killed", "c_failed.json", self._STATES],
            ]
            whole = "\n".join(",".join(row) for row in rows) + "\n"
            data = damaged_text(rng, [lambda: damaged_lines(rng, damaged_lines(rng, whole, ","), ",")])
            (folder / "results.csv").write_bytes(data)
        elif kind == "tables settings":
            (folder / "a_seg.json").write_text("{}")
            settings = damaged_value(rng, {"scales": [1.0], "checkpoint": self._STATES, "format": "nifti"})
            (folder / "run.json").write_bytes(damaged_text(rng, [lambda: json_text(rng, settings)]))
        else:
            (folder / ".run.lock").write_bytes(damaged_bytes(rng, bytearray(b"process 4711 on a machine")))
            names = ["", "0" * 8, "g" * 8, f"{'0' * 8}-{'0' * 8}-{'9' * 30}-", "0\n", f"{'0' * 8}-x\x1b[2J"]
            (folder / f".tmp-{any_of(rng, names)}").touch()

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.io.locking import locked
        from attunet3d.io.writer import remove_left_behind
        from attunet3d.many.results import ResultsTable, Row, check_settings

        if kind == "tables settings":
            check_settings(folder, {"scales": [1.0], "checkpoint": self._STATES, "format": "nifti"})
        elif kind == "tables lock":
            remove_left_behind(folder)
            _held(folder)
            with locked(folder):
                remove_left_behind(folder, exclusive=True)
        else:
            return self._go_on(folder, Row, ResultsTable)
        return ""

    def _go_on(self, folder: Path, row: Any, table_of: Any) -> str:
        from attunet3d.many.manifest import ManyCase
        from attunet3d.many.run import finished_before

        table = table_of(folder)
        try:
            cases = [ManyCase(name, str(folder / "results.csv")) for name in ("a", "b", "c", "d")]
            job: Any = SimpleNamespace(output=str(folder), output_format="nifti")
            before = finished_before(cases, job, table, {"done", "failed", "set aside"})
            if before:
                raise Fault(f"ended before: {before}")
            table.add(row("d", "done", state="d" * 64))
        finally:
            table.close()
        again = table_of(folder)
        again.close()
        if again.rows != table.rows:
            raise Fault(f"rows {again.rows}, not {table.rows}")
        return ""


def _held(folder: Path) -> None:
    """What is said to another run while one holds the folder."""
    import fcntl

    from attunet3d.errors import OutputError
    from attunet3d.io.locking import locked

    with (folder / ".run.lock").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            with locked(folder):
                raise Fault("two runs in one folder")
        except OutputError:
            pass


def _odd_array(rng: Rng, array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    wide: Sequence[Any] = (
        *(array[0], array[..., None], array[:0], array.astype("f8"), np.array([Forged(0)], object), array.astype("c8")),
        *(
            array.astype(">i4"),
            np.asfortranarray(array),
            np.array(1),
            np.array(["text"]),
            array.view([("a", array.dtype)]),
        ),
    )
    odd = wide[int(rng.integers(len(wide)))]
    np.save(buffer, odd, allow_pickle=True)
    data = buffer.getvalue()
    if rng.random() < 0.3:
        shape = str(array.shape).encode()
        huge = any_of(rng, [b"(1, 99999, 9999, 9999)", b"(1, -1, 2, 2)", b"(9" + b"9" * 30 + b",)", b"(((((((((((1"])
        np.save(buffer := io.BytesIO(), array)
        data = buffer.getvalue().replace(shape, huge)
    return data


def _no_number(name: str) -> Any:
    raise Fault(f"the summary holds {name}")
