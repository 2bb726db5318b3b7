"""``attunet3d score``: products on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attunet3d.metrics.masks import METRICS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run) -> Run:
    """run(...) -> exit code, stdout, stderr of ``attunet3d score ...``."""
    return lambda *arguments: run("score", *arguments)


def write(path: Path, size: int, value: int = 1) -> Path:
    """A label map with a cube of ``size`` voxels per side, each 10 mm wide: 1 mL."""
    label = np.zeros((6, 6, 6), np.uint8)
    label[:size, :size, :size] = value
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(label, np.diag([10.0, 10.0, 10.0, 1.0])), path)
    return path


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases: one found, one half missed, one missed altogether."""
    for name, predicted in {"a": 2, "b": 1, "c": 0}.items():
        write(tmp_path / "p" / f"{name}_seg.nii.gz", predicted)
        write(tmp_path / "r" / f"{name}.nii.gz", 2)
    return tmp_path / "p", tmp_path / "r"


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python's own reader would accept."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_two_files(run: Run, study: tuple[Path, Path], tmp_path: Path) -> None:
    files = study[0] / "b_seg.nii.gz", study[1] / "b.nii.gz"
    code, stdout, stderr = run(*files)
    assert (code, stdout.count("\n"), stderr) == (0, 1, "")
    values = strict(stdout)
    assert tuple(values) == METRICS
    assert (values["prediction_ml"], values["reference_ml"], values["difference_ml"]) == (1.0, 8.0, -7.0)
    assert values["dice"] == pytest.approx(2 / 9, abs=1e-6)

    code, stdout, _ = run(*files, "-o", tmp_path / "new" / "one.csv")
    assert (code, stdout) == (0, f"{tmp_path}/new/one.csv\n")
    with Path(stdout.strip()).open(newline="") as f:
        (line,) = csv.DictReader(f)
    assert (line["case"], line["recall"]) == ("b_seg", "0.125000")


def test_an_infinite_distance_is_null(run: Run, study: tuple[Path, Path]) -> None:
    values = strict(run(study[0] / "c_seg.nii.gz", study[1] / "c.nii.gz")[1])
    assert (values["dice"], values["hd95_mm"], values["assd_mm"]) == (0.0, None, None)


def test_two_folders(run: Run, study: tuple[Path, Path]) -> None:
    code, stdout, stderr = run(*study)
    assert (code, stdout.count("\n"), stderr) == (0, 1, "")
    summary = strict(stdout)
    assert summary["dice"]["n"] == 3
    assert summary["dice"]["mean"] == pytest.approx((1 + 2 / 9 + 0) / 3, abs=1e-6)
    assert summary["hd95_mm"]["infinite"] == 1
    assert summary["worst"] == ["c", "b", "a"]


def test_two_folders_to_a_table(run: Run, study: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "metrics.csv"
    code, stdout, stderr = run(*study, "-o", output)
    assert (code, stdout) == (0, f"{output}\n")
    lines = output.read_text().splitlines()
    assert lines[0] == ",".join(["case", *METRICS])
    assert [line.split(",")[0] for line in lines[1:]] == ["a", "b", "c"]
    assert lines[3] == "c,0.000000,0.000000,0.000000,inf,inf,0.000000,0.000000,8.000000,-8.000000"
    shown = stderr.splitlines()
    assert shown[0].split() == ["mean", "sd", "median", "min", "max"]
    assert [line.split()[0] for line in shown[1:-1]] == list(METRICS)
    assert shown[1].split()[1:] == ["0.407", "0.525", "0.222", "0.000", "1.000"]
    assert shown[5].endswith("-  (1 infinite)")
    assert shown[-1] == "cases: 3, worst by Dice: c, b, a"


def test_failures_are_told_and_exit_with_1(
    run: Run, study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(study[0] / "extra_seg.nii.gz", 1)
    write(study[1] / "later.nii.gz", 1)
    (study[0] / "b_seg.nii.gz").write_bytes(b"noise")
    code, stdout, stderr = run(*study)
    assert code == 1
    assert strict(stdout)["dice"]["n"] == 2
    first, second, third = stderr.splitlines()
    assert first.startswith(f"error: {study[0]}/b_seg.nii.gz: ")
    assert second.startswith(f"error: {study[0]}/extra_seg.nii.gz: has no reference")
    assert third == "warning: references without a prediction (1): later"

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("of an unforeseen\nkind")

    monkeypatch.setattr("attunet3d.metrics.folders.score", broken)
    code, stdout, stderr = run(*study, "-o", tmp_path / "none.csv")
    assert (code, stdout) == (1, "")
    assert "error: a: unexpected RuntimeError: of an unforeseen kind (--verbose shows the traceback)" in stderr
    assert not (tmp_path / "none.csv").exists(), "a table without a case"


def test_references_without_predictions_are_a_warning(run: Run, study: tuple[Path, Path]) -> None:
    write(study[1] / "later.nii.gz", 1)
    code, _, stderr = run(*study)
    assert (code, stderr) == (0, "warning: references without a prediction (1): later\n")


def test_labels_and_tolerance(run: Run, study: tuple[Path, Path], tmp_path: Path) -> None:
    prediction, reference = study[0] / "b_seg.nii.gz", study[1] / "b.nii.gz"
    assert strict(run(prediction, reference, "--tolerance-mm", 100)[1])["nsd"] == 1.0
    assert strict(run(prediction, reference, "--tolerance-mm", 1)[1])["nsd"] < 1.0
    other = write(tmp_path / "other.nii.gz", 2, value=7)
    assert strict(run(other, reference, "--prediction-label", "7", "--reference-label", "2, 1")[1])["dice"] == 1.0
    code, stdout, stderr = run(other, reference, "--prediction-label", "1,2")
    assert (code, strict(stdout)["prediction_ml"]) == (0, 0.0)
    assert stderr == f"warning: {other}: an empty mask: no voxel has the value 1 or 2; it holds 0, 7\n"
    code, stdout, stderr = run(other, reference)
    assert (code, stdout) == (2, "")
    assert "other.nii.gz: holds the values 0, 7, not 0, 1; say which count with prediction_label=[7]" in stderr
    assert stderr.endswith(" (--prediction-label)\n")


def test_two_empty_masks_have_no_dice(run: Run, study: tuple[Path, Path], tmp_path: Path) -> None:
    write(study[1] / "c.nii.gz", 0)
    code, stdout, stderr = run(study[0] / "c_seg.nii.gz", study[1] / "c.nii.gz")
    assert (code, strict(stdout)["dice"], strict(stdout)["reference_ml"]) == (0, None, 0.0)
    assert stderr == "warning: c_seg: both masks are empty, so the Dice is undefined\n"
    code, stdout, stderr = run(*study, "-o", tmp_path / "m.csv")
    assert (code, (tmp_path / "m.csv").read_text().splitlines()[3]) == (0, "c" + ",nan" * 6 + ",0.000000" * 3)
    shown = stderr.splitlines()
    assert shown[0].startswith("warning: c: both masks are empty")
    assert shown[2].split()[1] == "0.611", "the mean of the other two"
    assert shown[2].endswith("  (1 undefined)")


def test_usage_errors_exit_with_2(run: Run, study: tuple[Path, Path], tmp_path: Path) -> None:
    file = study[0] / "a_seg.nii.gz"
    cases = [
        (run(study[0], file), "one is a folder"),
        (run(file, tmp_path / "none.nii.gz"), "does not exist"),
        (run(file, file, "--reference-label", "one"), "'one'"),
        (run(file, file, "--prediction-label", "1,"), "'1,'"),
        (run(file, file, "--tolerance-mm", "-1"), "tolerance"),
        (run(file, file, "--tolerance-mm", "nan"), "tolerance"),
        (run(*study, "--tolerance-mm", "nan"), "tolerance"),
        (run(*study, "-o", tmp_path), "metrics.csv"),
        (run(*study, "-o", file / "metrics.csv"), "not a folder"),
    ]
    for (code, stdout, stderr), found in cases:
        assert (code, stdout) == (2, ""), stderr
        assert found in stderr
        assert "Traceback" not in stderr
