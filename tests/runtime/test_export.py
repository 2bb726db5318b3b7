"""Networks for other programs: the same logits at sizes that nobody named, and the recipe with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY
from safetensors import safe_open

from attunet3d import AttentionUNet
from attunet3d.checkpoint import load_weights, read_weights, save_weights, saved
from attunet3d.config.changes import inference_values
from attunet3d.config.recipe import make_recipe, read_recipe
from attunet3d.runtime.loading import build_network, load_network
from attunet3d.runtime.weights_report import inspect_weights

Run = Callable[..., tuple[int, str, str]]
SIZES = [(1, 48, 64, 80), (2, 33, 16, 50)]


def expected(checkpoint: Path, image: torch.Tensor) -> np.ndarray:
    network = build_network(inference_values((), {"checkpoint": checkpoint})["network_def"]).eval()
    load_weights(network, checkpoint)
    with torch.inference_mode():
        return network(image).numpy()  # type: ignore[no-any-return]


def test_onnx_of_any_size(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    assert run("export", tiny_checkpoint, "-o", path) == (0, f"{path}\n", "")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, *size in SIZES:
        image = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(found, expected(tiny_checkpoint, image), atol=1e-4, rtol=0)
    recipe = json.loads({prop.key: prop.value for prop in onnx.load(path).metadata_props}["recipe"])
    assert recipe == {"format": 1, **(read_recipe(tiny_checkpoint) or {})}


def test_torchscript_of_any_size(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, extra = tmp_path / "tiny.ts", {"recipe.json": ""}
    assert run("export", tiny_checkpoint, "-o", path, "--format", "torchscript") == (0, f"{path}\n", "")
    loaded = torch.jit.load(path, _extra_files=extra)
    for batch, *size in SIZES:
        image = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            found = loaded(image).numpy()
        np.testing.assert_allclose(found, expected(tiny_checkpoint, image), atol=1e-4, rtol=0)
    assert json.loads(extra["recipe.json"])["spacing"] == TINY["spacing"]


def test_what_is_said_of_other_weights(run: Run, bare_checkpoint: Path, tmp_path: Path) -> None:
    code, stdout, stderr = run("export", bare_checkpoint, "-o", tmp_path / "x.onnx")
    assert (code, stdout) == (2, "")
    assert "give the preset it was trained with" in stderr
    code, _, stderr = run("export", bare_checkpoint, "-o", tmp_path / "x", "--format", "torchscript", *SET_CHANNELS)
    assert code == 0
    assert "warning: bare.pt: no recipe with these weights" in stderr


SET_CHANNELS = ("--set", f"channels={TINY['channels']}")


def read_by_others(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def test_safetensors_hold_the_same_weights(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    half = save_weights(read_weights(tiny_checkpoint), tmp_path / "half.pt", recipe=read_recipe(tiny_checkpoint))
    path, again = tmp_path / "half.safetensors", tmp_path / "again"
    assert run("export", half, "-o", path) == (0, f"{path}\n", "")
    weights, metadata = read_by_others(path)
    assert weights.keys() == read_weights(half).keys()
    for key, value in read_weights(half).items():
        assert weights[key].dtype == value.dtype
        assert torch.equal(weights[key], value)
    assert json.loads(metadata["recipe"]) == {"format": 1, **(read_recipe(half) or {})}
    assert run("export", path, "-o", again, "--format", "safetensors") == (0, f"{again}\n", "")
    assert again.read_bytes() == path.read_bytes()
    assert run("export", path, "-o", tmp_path / "half.onnx")[0] == 0


def test_assumed_values_are_no_recipe(run: Run, bare_checkpoint: Path, tmp_path: Path) -> None:
    """In a file that is used as weights again; with a preset they are those of the training."""
    path = tmp_path / "bare.safetensors"
    code, _, stderr = run("export", bare_checkpoint, "-o", path, *SET_CHANNELS)
    assert (code, read_recipe(path)) == (0, None)
    assert "warning: bare.pt: no recipe with these weights" in stderr
    (tmp_path / "p.yaml").write_text(json.dumps(TINY))
    assert run("export", bare_checkpoint, "-o", path, "--preset", tmp_path / "p.yaml") == (0, f"{path}\n", "")
    assert (read_recipe(path) or {})["spacing"] == TINY["spacing"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"gates_per_skip": 2, "gate_first_skip": True, "out_channels": 3},
        {"gate": "additive", "upsample": "conv", "input_mean": 0.25, "input_std": 0.5},
        {"gate": None, "deep_supervision": False},
    ],
    ids=str,
)
def test_every_network_is_exported(run: Run, tmp_path: Path, arguments: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network = AttentionUNet(channels=(4, 4, 8), **arguments).eval()
    values = inference_values((), TINY | {"channels": [4, 4, 8], "num_classes": arguments.get("out_channels", 2)})
    weights = tmp_path / "w.pt"
    weights.write_bytes(saved(network.state_dict(), make_recipe(values | {"network_def": network})))
    for name in ("w.onnx", "w.ts", "w.safetensors"):
        assert run("export", weights, "-o", tmp_path / name) == (0, f"{tmp_path / name}\n", "")
        report = inspect_weights(tmp_path / name)
        assert report.network == network.arguments
        assert report.parameters == sum(value.numel() for value in network.parameters())
    session = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"), providers=["CPUExecutionProvider"])
    loaded, again = torch.jit.load(tmp_path / "w.ts"), load_network(tmp_path / "w.safetensors", "cpu", "fp32")
    for size in ((33, 16, 50), (24, 40, 28)):
        image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            wanted = network(image)
            torch.testing.assert_close(loaded(image), wanted, atol=1e-4, rtol=0)
            torch.testing.assert_close(again(image), wanted, atol=1e-4, rtol=0)
        (found,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("x", ["--format", "safetensor"], "use onnx, torchscript, safetensors"),
        ("x", ["--format", ""], "use onnx, torchscript, safetensors"),
        ("x.onnx", ["--format", "ONNX"], "use onnx, torchscript, safetensors"),
        ("x", [], "x: its suffix is that of no format; name the format: onnx, torchscript, safetensors"),
        ("x.pth", [], "x.pth: its suffix is that of no format"),
        ("x.pt", [], "x.pt: its suffix is that of no format"),
        ("x.onnx", ["--format", "safetensors"], "x.onnx: its suffix is that of onnx, not of safetensors"),
        ("x.safetensors", ["--format", "onnx"], "x.safetensors: its suffix is that of safetensors, not of onnx"),
        ("x.pt", ["--format", "safetensors"], "x.pt: its suffix is that of torchscript, not of safetensors"),
        ("x.TS", ["--format", "onnx"], "x.TS: its suffix is that of torchscript, not of onnx; use .onnx"),
    ],
)
def test_formats_that_are_not_there(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, name: str, arguments: list[str], words: str
) -> None:
    code, _, stderr = run("export", tiny_checkpoint, "-o", tmp_path / name, *arguments)
    assert code == 2
    assert words in stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_are_not_replaced_by_their_own_export(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(tiny_checkpoint.read_bytes())
    code, _, stderr = run("export", weights, "-o", tmp_path / "." / "w.pt", "--format", "torchscript")
    assert code == 2
    assert "w.pt: is the checkpoint itself" in stderr
    assert weights.read_bytes() == tiny_checkpoint.read_bytes()
