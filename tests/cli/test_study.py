"""From raw data to a table of results, with the commands of the README."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import PLAIN, TINY
from torch import Tensor

from attunet3d import workflow
from attunet3d.datasets.phantom import make_phantom
from attunet3d.errors import ConfigError
from attunet3d.inferers.windows import SlidingWindow

Run = Callable[..., list[str]]


@pytest.fixture
def products(run: Callable[..., tuple[int, str, str]]) -> Run:
    """What a command that has to succeed prints on stdout."""

    def call(*arguments: object) -> list[str]:
        code, stdout, stderr = run(*arguments)
        assert code == 0, (arguments, stderr)
        return stdout.split()

    return call


def _task07(folder: Path, cases: int = 4) -> Path:
    """The decathlon's layout; a corner of each pancreas is its tumour."""
    entries = []
    for number in range(1, cases + 1):
        phantom = make_phantom(number, spacing=(5.0, 5.0, 6.0), orientation="RAS")
        label = phantom.mask.copy()
        first = np.argwhere(label)[:, 0].mean()
        label[int(first) :][label[int(first) :] == 1] = 2
        for name, array in (("imagesTr", phantom.image), ("labelsTr", label)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, phantom.affine), folder / name / f"pancreas_{number:03d}.nii.gz")
        entries.append({k: f"./{k}sTr/pancreas_{number:03d}.nii.gz" for k in ("image", "label")})
    description = {"labels": {"0": "background", "1": "pancreas", "2": "cancer"}, "training": entries, "test": []}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.slow
def test_two_classes_from_raw_data_to_report(products: Run, tmp_path: Path) -> None:
    raw, datalist = _task07(tmp_path / "Task07_Pancreas"), tmp_path / "msd.json"
    products("prepare", "msd-pancreas", raw, "-o", datalist, "--folds", 2, "--tumour", "class")
    data = ["--dataset-dir", raw, "--datalist", datalist, "-c", "smoke", "--set", "num_classes=3", "--set", "fold=1"]
    (weights,) = products("train", *data, "-o", tmp_path / "run")
    written = products("evaluate", *data, "--checkpoint", weights, "-o", tmp_path / "eval", "--set", "precision=fp32")
    assert [Path(path).name for path in written] == ["metrics.csv", "summary.json", "report.html"]

    rows = list(csv.DictReader((tmp_path / "eval" / "metrics.csv").read_text().splitlines()))
    held_out = [case for case in json.loads(datalist.read_text())["training"] if case["fold"] == 1]
    assert [f"{row['case']}.nii.gz" for row in rows] == sorted(case["image"] for case in held_out)
    for row, case in zip(rows, sorted(held_out, key=lambda case: case["image"]), strict=True):
        label = nib.load(raw / case["label"])
        ml = np.count_nonzero(np.asarray(label.dataobj)) * 5 * 5 * 6 / 1000
        assert float(row["reference_ml"]) == pytest.approx(ml, rel=1e-4)
        tumour = np.count_nonzero(np.asarray(label.dataobj) == 2) * 5 * 5 * 6 / 1000
        assert float(row["class2_reference_ml"]) == pytest.approx(tumour, rel=1e-4)
        assert {"class1_dice", "class2_dice", "class2_hd95_mm"} <= set(row)

    # The same masks by `segment`, the same figures by `score`.
    cts = [raw / case["image"] for case in held_out]
    options = ["-c", "smoke", "--set", "num_classes=3", "--precision", "fp32", "--checkpoint", weights]
    products("segment", *cts, "-o", tmp_path / "masks", *options)
    for case in held_out:
        name = Path(case["image"]).name.replace(".nii.gz", "_seg.nii.gz")
        ours, evaluated = (nib.load(p / name) for p in (tmp_path / "masks", tmp_path / "eval" / "imagesTr"))
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(evaluated.dataobj))
    both = ["--prediction-label", "1,2", "--reference-label", "1,2"]
    products("score", tmp_path / "masks", raw / "labelsTr", "-o", tmp_path / "score.csv", *both)
    scored = list(csv.DictReader((tmp_path / "score.csv").read_text().splitlines()))
    for one, other in zip(scored, rows, strict=True):
        assert float(one["dice"]) == pytest.approx(float(other["dice"]), abs=1e-6)
        assert float(one["nsd"]) == pytest.approx(float(other["nsd"]), abs=1e-6)


def test_classes_that_the_network_does_not_have(
    tmp_path: Path, products: Run, run: Callable[..., tuple[int, str, str]]
) -> None:
    raw = _task07(tmp_path / "raw", 2)
    products("prepare", "msd-pancreas", raw, "-o", tmp_path / "msd.json", "--folds", 2, "--tumour", "class")
    data = ["--dataset-dir", raw, "--datalist", tmp_path / "msd.json", "-c", "smoke"]
    code, _, stderr = run("train", *data, "-o", tmp_path / "run")
    assert code == 2
    assert "num_classes=3" in stderr
    assert not (tmp_path / "run").exists()


def test_a_label_whose_axes_run_another_way_counts_the_same(
    products: Run, tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """As NIH's do: the same mask in the patient, stored with y and z reversed."""
    ct = write_phantom("LPS")
    label = nib.load(ct.with_name("phantom_LPS_0_label.nii.gz"))
    values, affine = np.asarray(label.dataobj), label.affine.copy()
    for axis in (1, 2):
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
    nib.save(nib.Nifti1Image(values[:, ::-1, ::-1], affine), tmp_path / "turned.nii.gz")
    tables = []
    for name, path in (
        ("as_it_is", ct.with_name("phantom_LPS_0_label.nii.gz")),
        ("turned", tmp_path / "turned.nii.gz"),
    ):
        datalist = tmp_path / f"{name}.json"
        datalist.write_text(json.dumps({"validation": [{"image": str(ct), "label": str(path)}]}))
        options = ["--set", "precision=fp32", *(f"--set={key}={value}" for key, value in (TINY | PLAIN).items())]
        data = ["--dataset-dir", ct.parent, "--datalist", datalist, "--checkpoint", tiny_checkpoint]
        table, *_ = products("evaluate", *data, "-o", tmp_path / name, *options)
        tables.append(Path(table).read_text())
    assert tables[0] == tables[1]
    assert ",0.000000,0.000000,0.000000," not in tables[0]


def test_maps_of_the_report_are_made_without_gradients(
    products: Run,
    tiny_checkpoint: Path,
    write_phantom: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With them the activations of all windows would stay in memory."""
    found: list[bool] = []
    average = SlidingWindow.average

    def watched(self: SlidingWindow, image: Tensor, *rest: Any) -> Tensor:
        found.append(torch.is_grad_enabled())
        return average(self, image, *rest)

    monkeypatch.setattr(SlidingWindow, "average", watched)
    ct = write_phantom("RAS")
    case = {"image": ct.name, "label": ct.name.replace(".nii.gz", "_label.nii.gz")}
    (tmp_path / "d.json").write_text(json.dumps({"validation": [case]}))
    options = ["--checkpoint", tiny_checkpoint, *(f"--set={key}={value}" for key, value in (TINY | PLAIN).items())]
    products("evaluate", "--dataset-dir", ct.parent, "--datalist", tmp_path / "d.json", "-o", tmp_path / "e", *options)
    assert found == [False]
    assert "level 4" in (tmp_path / "e" / "report.html").read_text()


def test_masks_of_one_name_are_refused_before_anything_is_read(
    tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    ct = write_phantom("RAS")
    label = str(ct).replace(".nii.gz", "_label.nii.gz")
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
    (tmp_path / "p1" / "ct.nii.gz").symlink_to(ct)
    cases = [{"image": str(tmp_path / patient / "ct.nii.gz"), "label": label} for patient in ("p1", "p2")]
    for other, masks in (("ct", '"ct_seg"; rename'), ("CT", '"ct_seg" and "CT_seg", which differ only in capitals')):
        (tmp_path / "p2" / f"{other}.nii.gz").symlink_to(ct)
        cases[1]["image"] = str(tmp_path / "p2" / f"{other}.nii.gz")
        (tmp_path / "d.json").write_text(json.dumps({"validation": cases}))
        with pytest.raises(ConfigError, match=f"2 masks would be {masks}"):
            workflow.evaluate(tmp_path / "p1" / "none", tmp_path / "d.json", tiny_checkpoint, tmp_path / "e", **TINY)
    cases[1]["image"] = str(tmp_path / "p2" / "ct.nii.gz")
    (tmp_path / "d.json").write_text(json.dumps({"validation": cases}))
    workflow.evaluate(tmp_path, tmp_path / "d.json", tiny_checkpoint, tmp_path / "e", **TINY, **PLAIN, precision="fp32")
    assert (tmp_path / "e" / "p1" / "ct_seg.nii.gz").is_file()
    assert (tmp_path / "e" / "p2" / "ct_seg.nii.gz").is_file()
