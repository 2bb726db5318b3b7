"""Networks for other programs: the same logits at sizes that nobody named, and the recipe with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY

from attunet3d.checkpoint import load_weights
from attunet3d.config.changes import inference_values
from attunet3d.config.recipe import read_recipe
from attunet3d.runtime.loading import build_network

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


@pytest.mark.parametrize("format_", ["safetensor", "", "ONNX"])
def test_formats_that_are_not_there(run: Run, tiny_checkpoint: Path, tmp_path: Path, format_: str) -> None:
    code, _, stderr = run("export", tiny_checkpoint, "-o", tmp_path / "x", "--format", format_)
    assert code == 2
    assert "use onnx, torchscript" in stderr
    assert list(tmp_path.iterdir()) == []
