"""Presets for few cases: other organs are learned and then left out; the bundle's weights are a head start."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import pytest
import torch

from attunet3d import Segmenter, workflow
from attunet3d.checkpoint import read_weights, save_weights, without_auxiliary
from attunet3d.datasets.phantom import write_phantoms


def _rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


@pytest.mark.slow
def test_organs_are_learned_and_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    datalist = write_phantoms(data, 3, seed=3, spacing=(5.0, 5.0, 5.0), validation_fraction=0.34, organs=True)
    presets = ["few_cases", "smoke"]
    weights = read_weights(workflow.train(data, datalist, tmp_path / "run", presets))
    # Background and pancreas, and each of the preset's twelve other organs, from four decoder levels.
    assert [len(weights[f"auxiliary.{level}.weight"]) for level in range(4)] == [14] * 4
    row = _rows(tmp_path / "run" / "history.csv")[-1]
    assert 0 <= float(row["train_dice"]) <= 1
    assert 0 <= float(row["val_dice"]) <= 1

    found = workflow.evaluate(data, datalist, tmp_path / "run" / "model.pt", tmp_path / "eval", presets)
    assert 0 <= found["val_dice"] <= 1
    reference = float(_rows(tmp_path / "eval" / "metrics.csv")[0]["reference_ml"])
    image = json.loads(datalist.read_text())["validation"][0]["image"]
    session = Segmenter(tmp_path / "run" / "model.pt", presets=presets, device="cpu")
    assert session.segment(data / image).mask.shape == nib.load(data / image).shape
    assert 20 < reference < 200, "mL of pancreas, not of all organs"

    without = save_weights(without_auxiliary(weights), tmp_path / "without.pt", torch.float32)
    assert not [key for key in read_weights(without) if "auxiliary" in key]
    assert workflow.evaluate(data, datalist, without, tmp_path / "eval_without", presets) == found
    tables = [(tmp_path / folder / "metrics.csv").read_text() for folder in ("eval", "eval_without")]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_the_bundles_weights_are_a_head_start(tmp_path: Path) -> None:
    """Two phantoms, 6 steps: what fine-tuning reaches, and training from scratch does not with as many."""
    data = tmp_path / "data"
    datalist = write_phantoms(data, 3, seed=1234, spacing=(3.0, 3.0, 3.0), validation_fraction=0.34)
    values = {"patch_size": [32, 32, 32], "max_epochs": 6, "val_interval": 6, "state_interval": 0}
    values |= {"cache_dir": str(tmp_path / "cache"), "learning_rate": 0.0005}
    workflow.train(data, datalist, tmp_path / "tuned", ["fine_tune"], **values)
    workflow.train(data, datalist, tmp_path / "scratch", ["fine_tune"], **values, initial_checkpoint="")
    assert float(_rows(tmp_path / "tuned" / "history.csv")[-1]["val_dice"]) > 0.6
    assert float(_rows(tmp_path / "scratch" / "history.csv")[-1]["val_dice"]) < 0.3
