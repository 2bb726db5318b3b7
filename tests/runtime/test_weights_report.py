"""What is said of weights and exported networks: each format, with a recipe and without, sound and damaged."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import PLAIN, TINY

from attunet3d import AttentionUNet
from attunet3d.checkpoint import file_sha256, read_weights, save_weights, saved
from attunet3d.config.recipe import read_recipe
from attunet3d.errors import CheckpointError
from attunet3d.networks.from_weights import UNSEEN, arguments_of
from attunet3d.runtime import export, inspect_weights
from attunet3d.runtime import weights_report as module

Run = Callable[..., tuple[int, str, str]]
NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"channels": [3, 5, 7], "out_channels": 4, "in_channels": 2, "spatial_dims": 2},
    {"channels": [4, 4, 8], "gate": "additive", "upsample": "conv"},
    {"channels": [4, 4, 8], "gates_per_skip": 3, "gate_first_skip": True, "deep_supervision": False},
    {"channels": [4, 4, 8], "gate": "additive", "gates_per_skip": 2, "gate_first_skip": True},
    {"channels": [4, 4, 8], "gate": None, "auxiliary_channels": 3},
)
NAMES = ("model.pt", "model.safetensors", "model.onnx", "model.ts")


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in every format."""
    folder = tmp_path_factory.mktemp("formats")
    (folder / "model.pt").write_bytes(tiny_checkpoint.read_bytes())
    for name in NAMES[1:]:
        export(folder / "model.pt", folder / name)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_format(run: Run, files: Path, name: str) -> None:
    path, network = files / name, AttentionUNet(channels=TINY["channels"])
    code, stdout, stderr = run("inspect", "--json", path)
    assert (code, stderr) == (0, "")
    found = json.loads(stdout)
    weights = found.pop("weights")
    assert found == {"path": str(path)}
    is_checkpoint = name in NAMES[:2]
    assert weights["format"] == dict(zip(NAMES, ("torch", "safetensors", "onnx", "torchscript"), strict=True))[name]
    assert (weights["size"], weights["sha256"]) == (path.stat().st_size, file_sha256(path))
    assert weights["network"] == network.arguments
    assert weights["parameters"] == sum(value.numel() for value in network.parameters())
    assert weights["dtypes"] == (["float32"] if is_checkpoint else [])
    assert weights["recipe"] == read_recipe(files / "model.pt")
    assert (weights["assumed"], weights["warnings"]) == (None, [])
    assert weights["loadable"] is is_checkpoint
    assert ("can be used" if is_checkpoint else "exported for other programs") in weights["verdict"]


def test_the_text_has_every_value(run: Run, files: Path) -> None:
    code, stdout, _ = run("inspect", files / "model.safetensors")
    lines = stdout.splitlines()
    assert code == 0
    assert lines[0].startswith("weights     safetensors, ")
    assert lines[1] == f"sha256      {file_sha256(files / 'model.safetensors')}"
    assert "channels [4, 4, 8, 8, 8], gate grid, gates_per_skip 1" in lines[2]
    assert "recipe      spacing: [6.0, 6.0, 6.0]" in lines
    for key in read_recipe(files / "model.pt") or {}:
        assert sum(line[12:].startswith(f"{key}: ") for line in lines) == 1
    assert lines[-1] == "loadable    yes: can be used as a checkpoint"


def test_names_do_not_matter(files: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / "weights").write_bytes((files / name).read_bytes())
        assert inspect_weights(tmp_path / "weights").recipe == read_recipe(files / "model.pt")


def test_weights_without_a_recipe(run: Run, bare_checkpoint: Path, tmp_path: Path) -> None:
    """Their network is that of their tensors; what would be assumed is listed, and may not fit."""
    code, stdout, _ = run("inspect", bare_checkpoint)
    lines = stdout.splitlines()
    assert code == 0
    assert "channels [4, 4, 8, 8, 8]" in lines[2]
    assert "recipe      none" in lines
    assert "assumed     spacing: [3.0, 3.0, 3.0]" in lines
    assert any(line.startswith("loadable    no: does not fit this network") for line in lines)
    assert lines[-1].startswith("warning     bare.pt: no recipe with these weights: the bundle's values are assumed")

    torch.save(AttentionUNet().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    report = inspect_weights(tmp_path / "old.pt")
    assert (report.loadable, report.recipe) == (True, None)
    assert report.verdict == "can be used as a checkpoint, with the assumed values"
    assert (report.assumed or {})["threshold"] == 0.2
    assert len(report.warnings) == 1


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3), "steps": torch.tensor(1)}, tmp_path / "other.pt")
    report = inspect_weights(tmp_path / "other.pt")
    assert (report.network, report.parameters, report.loadable) == (None, 3, False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, 5, 5000, -1])
def test_files_that_are_cut_short(run: Run, files: Path, tmp_path: Path, name: str, length: int) -> None:
    (tmp_path / name).write_bytes((files / name).read_bytes()[:length])
    code, stdout, stderr = run("inspect", tmp_path / name)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {tmp_path / name}: ")
    assert len(stderr.splitlines()) == 1


def test_exports_with_a_hostile_recipe(files: Path, tmp_path: Path) -> None:
    model = onnx.load(files / "model.onnx")
    for texts in (["[]"], ["{}", "{}"], ['{"format": 1, "checkpoint": "/etc/passwd"}']):
        del model.metadata_props[:]
        model.metadata_props.extend(onnx.StringStringEntryProto(key="recipe", value=text) for text in texts)
        onnx.save(model, tmp_path / "x.onnx")
        with pytest.raises(CheckpointError, match=r"x\.onnx: "):
            inspect_weights(tmp_path / "x.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "x.onnx")
    report = inspect_weights(tmp_path / "x.onnx")
    assert (report.recipe, report.network, report.parameters) == (None, None, None)
    assert report.warnings == ("no recipe: another program wrote it, or it is of another network",)

    with zipfile.ZipFile(files / "model.ts") as source, zipfile.ZipFile(tmp_path / "x.ts", "w") as target:
        for record in source.infolist():
            content = b'{"format": 2}' if record.filename.endswith("recipe.json") else source.read(record)
            target.writestr(record.filename, content)
    with pytest.raises(CheckpointError, match=r"x\.ts: the recipe in it is of format '2'"):
        inspect_weights(tmp_path / "x.ts")


def test_without_onnx(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = module.inspect_weights(files / "model.onnx")
    assert (report.format, report.recipe, report.network, report.loadable) == ("onnx", None, None, False)
    assert "onnx is not installed" in report.warnings[0]


def test_images_are_inspected_as_before(run: Run, write_phantom: Callable[..., Path]) -> None:
    code, stdout, _ = run("inspect", "--json", write_phantom())
    assert (code, list(json.loads(stdout))) == (0, ["path", "series"])


def test_the_network_is_told_by_its_weights() -> None:
    for arguments in NETWORKS:
        with torch.device("meta"):
            network = AttentionUNet(**arguments)
        wanted = {key: value for key, value in network.arguments.items() if key not in UNSEEN}
        assert arguments_of(network.state_dict()) == wanted
    state = AttentionUNet(channels=[4, 8]).state_dict()
    assert arguments_of({**state, "more": torch.zeros(1)}) is None
    assert arguments_of({**state, "final.bias": torch.zeros(3)}) is None


def test_the_recipe_of_weights_counts_and_not_only_their_shapes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The same tensors, of which a recipe says that they are of another network."""
    recipe: dict[str, Any] = read_recipe(tiny_checkpoint) or {}
    recipe |= {"network_def": recipe["network_def"] | {"gate": None}}
    (tmp_path / "w.pt").write_bytes(saved(read_weights(tiny_checkpoint), recipe))
    report = inspect_weights(tmp_path / "w.pt")
    assert not report.loadable
    assert "does not fit this network" in report.verdict
    assert (report.network or {})["gate"] == "grid"
    half = save_weights(read_weights(tiny_checkpoint), tmp_path / "half.pt", recipe=recipe)
    assert inspect_weights(half).dtypes == ("float16",)
    assert PLAIN.items() <= (inspect_weights(half).recipe or {}).items()
