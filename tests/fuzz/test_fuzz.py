"""The fuzz test itself, and a short run of it: see fuzz.py."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parent))

from dicom_files import phantom
from fuzz import fuzz
from fuzz_images import Images, segmented
from fuzz_inputs import PATIENT, SHAPE, write_inputs
from fuzz_plan import MIX, Outcome, group_of, kind_of, numbers, rng_of, table
from fuzz_rest import CALLS, call_bytes
from fuzz_target import Fault, Target, judge
from fuzz_texts import Datalists, Manifests, Presets, SetValues
from fuzz_values import MARKER
from fuzz_weights import Forged

from attunet3d.errors import AttUNet3dError
from attunet3d.io import read_ct

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")


class Hushed:
    """An ``Audit`` of nothing: hooks stay for as long as the process, which the other tests share."""

    @contextmanager
    def watching(self, allowed: Sequence[Path]) -> Iterator[list[str]]:
        yield []


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_short_run(tmp_path: Path) -> None:
    """A sample of every kind but of calls of a server, in the process that works on them."""
    cases = numbers(sum(MIX.values()), left_out=["rest"])
    outcomes = fuzz(cases, seed=11, jobs=1, folder=tmp_path / "run")
    assert [o.case for o in outcomes] == cases
    assert not [o for o in outcomes if o.failure], [o for o in outcomes if o.failure]
    assert {o.kind.split()[0] for o in outcomes} == set(MIX) - {"rest"}
    assert {"good", "UnreadableInputError", "ConfigError", "CheckpointError"} <= {o.outcome for o in outcomes}


def test_undamaged_inputs_are_read(inputs: dict[str, Path]) -> None:
    """So the damage is what is refused later. The patient is in the DICOM files, so that the search can find them."""
    for kind, path in inputs.items():
        array, _ = read_ct(path)
        assert kind.startswith("real") or kind == "nifti scaled" or np.array_equal(array, phantom(SHAPE)), kind
    assert {"dicom big endian", "dicom deflated", "dicom RLE", "nifti gzip", "nrrd", "mhd"} <= set(inputs)
    for value in PATIENT.values():
        assert value.encode() in next(inputs["dicom explicit"].iterdir()).read_bytes()


def test_a_case_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    nothing = SimpleNamespace()
    contents = []
    for name in ("one", "other"):
        (tmp_path / name / "images").mkdir(parents=True)
        images: Target = Images(tmp_path / name / "images", (nothing, nothing))
        presets = Presets({"channels": [4, 4], "spacing": [6.0, 6.0, 6.0]}, tmp_path, tmp_path)
        for target in (images, Manifests(), Datalists(), presets, SetValues({}, presets)):
            for number, kind in enumerate([*target.kinds] * (1 if target is images else 8)):
                folder = tmp_path / name / f"{kind} {number}"
                folder.mkdir()
                target.damage(kind, rng_of(5, number), folder)
        contents.append(_content(tmp_path / name))
    assert contents[0] == contents[1]
    assert len(set(contents[0].values())) > 80


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_calls_are_the_same_every_time_and_some_are_sound_http() -> None:
    calls = [call_bytes(rng_of(1, n), CALLS[kind][n % len(CALLS[kind])]) for kind in CALLS for n in range(20)]
    again = [call_bytes(rng_of(1, n), CALLS[kind][n % len(CALLS[kind])]) for kind in CALLS for n in range(20)]
    assert calls == again
    assert sum(b" HTTP/1.1\r\nHost: " in call and b"\r\n\r\n" in call for call in calls) > 80


def test_numbers_of_cases() -> None:
    """Of every kind there are some, by turns; those left out or not asked for have no number in a run."""
    kinds = {group: [f"{group} {letter}" for letter in "abc"] for group in MIX}
    found = {kind_of(case, kinds)[1] for case in numbers(sum(MIX.values()))}
    assert found == {kind for group in kinds.values() for kind in group}
    assert {group_of(case) for case in numbers(50, ["set", "rest"], ["rest"])} == {"set"}
    assert numbers(50, ["rest"], ["rest"]) == []


def test_table() -> None:
    outcomes = [
        Outcome(0, "images nifti", "good", "", 0.5, 3.0),
        Outcome(1, "images mhd", "GeometryError", "", 0.5),
        Outcome(2, "set values", "crash", "exit status -11", 2.0, 1.0),
    ]
    text = table(outcomes)
    assert "3 cases, 1 faults" in text
    assert "| images | 2 | 1 | GeometryError 1 | 0 | 2 |" in text
    assert "| set | 1 | 0 |  | 1 | 0 |" in text
    assert "slowest: case 2, 2.00 s (set values, crash)" in text
    assert "most memory: case 0, 3 MB" in text


class Careless:
    """A target that does what the constructor is given."""

    kinds = ("careless",)

    def __init__(self, act: Callable[[], str]) -> None:
        self._act = act

    def run(self, kind: str, folder: Path) -> str:
        return self._act()


def _raise(error: Exception) -> str:
    raise error


def _warn() -> str:
    warnings.warn("careless", stacklevel=1)
    return ""


def test_what_must_not_happen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[Callable[[], str], str, str]] = [
        (lambda: _raise(ValueError("x")), "ValueError", "ValueError: x"),
        (lambda: _raise(Fault("two files")), "wrong", "two files"),
        (lambda: _raise(AttUNet3dError("")), "AttUNet3dError", "says nothing"),
        (lambda: _raise(AttUNet3dError("of FUZZED^PATIENT")), "AttUNet3dError", "quotes PatientName"),
        (_warn, "good", "careless"),
        (lambda: "\x1b[2J", "good", "not printable"),
        (lambda: (Path(MARKER).write_text("") and "") or "", "good", "a forged input was run"),
        (lambda: "all is well", "good", ""),
        (lambda: _raise(AttUNet3dError("nothing odd\n")), "AttUNet3dError", ""),
    ]
    for act, outcome, wrong in cases:
        found = judge(Careless(act), "careless", tmp_path, Hushed())  # type: ignore[arg-type]
        assert found[0] == outcome
        assert (wrong in found[1]) if wrong else not found[1], found
    assert not Path(MARKER).exists()


def test_a_result_that_is_not_as_it_should_be(tmp_path: Path) -> None:
    """A session that leaves a file."""

    class Session:
        def segment_all(self, cts: list[Path], output: Path, names: list[str]) -> list[SimpleNamespace]:
            output.mkdir()
            (output / ".tmp-1234-case_seg.nii.gz").write_bytes(b"")
            return [SimpleNamespace(segmentation=None, error=AttUNet3dError("refused"))]

    with pytest.raises(Fault, match=r"left behind: .*\.tmp-1234"):
        segmented(Session(), tmp_path, tmp_path / "a")


def test_what_the_audit_notes(tmp_path: Path) -> None:
    """In a process of its own: a hook stays."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").write_text("")
    (tmp_path / "forged").write_bytes(pickle.dumps(Forged(1)))
    program = f"""
import os, pickle, subprocess, sys
from pathlib import Path
from fuzz_audit import Audit
audit = Audit()
Path({str(outside)!r}, "before").write_text("")
with audit.watching([Path({str(inside)!r})]) as seen:
    os.chdir({str(inside)!r})
    Path("a").write_text(""); os.rename("a", "b"); os.remove("b"); open("/dev/null", "w").close()
    Path({str(outside)!r}, "there").read_text()
    quiet = len(seen)
    Path("../outside/new").write_text("")
    os.remove({str(outside / "there")!r})
    os.system("true")
    pickle.loads(Path({str(tmp_path / "forged")!r}).read_bytes())
print(quiet, *(line.split()[0] for line in seen))
"""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["0", "open", "os.remove", "os.system", "pickle.find_class"]
