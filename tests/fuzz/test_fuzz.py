"""The fuzz test itself, and a short run of it: see fuzz.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from dicom_files import phantom
from fuzz import Outcome, fuzz, make_case, run_case, table
from fuzz_inputs import PATIENT, SHAPE, write_inputs

from attunet3d.errors import AttUNet3dError
from attunet3d.io import read_ct

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_short_run(tmp_path: Path) -> None:
    outcomes = fuzz(range(110), seed=11, jobs=1, folder=tmp_path / "run")
    assert len(outcomes) == 110
    assert not [o for o in outcomes if o.failure], table(outcomes)
    assert {"mask", "UnreadableInputError"} <= {o.outcome for o in outcomes}


def test_undamaged_inputs_are_read(inputs: dict[str, Path]) -> None:
    """So the damage is what is refused later. The patient is in the DICOM files, so that the search can find them."""
    for kind, path in inputs.items():
        array, _ = read_ct(path)
        assert kind.startswith("real") or kind == "nifti scaled" or np.array_equal(array, phantom(SHAPE)), kind
    assert {"dicom big endian", "dicom deflated", "dicom RLE", "nifti gzip", "nrrd", "mhd"} <= set(inputs)
    for value in PATIENT.values():
        assert value.encode() in next(inputs["dicom explicit"].iterdir()).read_bytes()


def test_a_case_is_the_same_bytes_every_time(tmp_path: Path, inputs: dict[str, Path]) -> None:
    (tmp_path / "again").mkdir()
    other = write_inputs(tmp_path / "again")
    for case in range(40):
        kind, path = make_case(inputs, 5, case, tmp_path / "a" / str(case))
        kind_again, again = make_case(other, 5, case, tmp_path / "b" / str(case))
        assert kind == kind_again
        assert _content(path) == _content(again), f"case {case}, {kind}"


def _content(path: Path) -> dict[str, bytes]:
    folder = path if path.is_dir() else path.parent
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_table() -> None:
    outcomes = [Outcome(0, "nifti", "mask", "", 0.1, 3.0), Outcome(1, "mhd", "crash", "exit status -11", 2.0, 1.0)]
    text = table(outcomes)
    assert "2 cases, 1 failures" in text
    assert "slowest: case 1, 2.00 s (mhd, crash)" in text
    assert "most memory: case 0, 3 MB" in text


def test_what_must_not_happen_is_found(tmp_path: Path) -> None:
    """A session that warns, leaves a file, quotes the patient, and raises what is not ours."""

    class Session:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def segment_all(self, cts: list[Path], output: Path, names: list[str]) -> list[SimpleNamespace]:
            output.mkdir()
            (output / ".tmp-1234-case_seg.nii.gz").write_bytes(b"")
            warnings.warn("careless", stacklevel=1)
            return [SimpleNamespace(segmentation=None, error=self.error)]

    outcome, wrong = run_case(Session(ValueError("FUZZED^PATIENT \x1b[2J")), tmp_path, tmp_path / "a")
    assert outcome == "ValueError"
    assert all(part in wrong for part in ("ValueError: ", ".tmp-1234", "careless", "quotes PatientName"))
    outcome, wrong = run_case(Session(AttUNet3dError("nothing odd")), tmp_path, tmp_path / "b")
    assert outcome == "AttUNet3dError"
    assert "ValueError" not in wrong
    assert all(part in wrong for part in (".tmp-1234", "careless"))
