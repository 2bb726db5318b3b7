"""Networks for other programs: TorchScript and ONNX, for images of any size, with their recipe."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attunet3d.checkpoint import load_weights
from attunet3d.config.changes import inference_values
from attunet3d.config.recipe import MEMBER, make_recipe, recipe_text
from attunet3d.errors import ConfigError
from attunet3d.io.writer import atomic_path
from attunet3d.networks.folding import fold
from attunet3d.runtime.loading import build_network

FORMATS = ("onnx", "torchscript")
_OPSET = 17


def export(
    checkpoint: str | Path,
    output: str | Path,
    output_format: str,
    presets: Sequence[str | Path] = (),
    allow_code: bool = False,
    say: Callable[[str], object] = lambda line: None,
    **overrides: Any,
) -> Path:
    """Write the network of a checkpoint, in float32, for programs without this package.

    It takes images (B, 1, X, Y, Z) on the model grid, the HU window scaled to [0, 1], of at least 2 ** (levels - 1)
    voxels an axis, and gives logits (B, classes, X, Y, Z). The recipe is JSON: of TorchScript the extra file
    "recipe.json", of ONNX the metadata "recipe".

    Args:
        checkpoint: weights.
        output: the file, which is replaced.
        output_format: one of `FORMATS`.
        presets, allow_code, overrides: as `attunet3d.Segmenter`.
        say: gets warnings of the recipe.

    Raises:
        ConfigError: there is no such format, or onnx is not installed; a preset or an id does not exist or fit.
        CheckpointError: the weights cannot be read or do not fit.
        OutputError: the file cannot be written.
    """
    if output_format not in FORMATS:
        raise ConfigError(f"format {output_format!r} is not known: use {', '.join(FORMATS)}")
    if output_format == "onnx" and importlib.util.find_spec("onnx") is None:
        raise ConfigError("onnx is not installed: pip install 'attunet3d[onnx]', or choose torchscript")
    values = inference_values(presets, {**overrides, "checkpoint": Path(checkpoint)}, allow_code, say)
    network = build_network(values["network_def"], allow_code)
    load_weights(network, checkpoint)
    recipe = make_recipe(values | {"network_def": network})
    write = _onnx if output_format == "onnx" else _torchscript
    smallest = int(getattr(network, "min_size", 16))
    # Axes of three sizes: none is taken for another, and none for a fixed one.
    example = torch.zeros((1, 1, 2 * smallest, 3 * smallest, 4 * smallest))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # branches on sizes are the same for all of them
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's newer exporters fix sizes, or take minutes
        content = write(fold(network), example, recipe_text(recipe))
    with atomic_path(Path(output)) as temporary:
        temporary.write_bytes(content)
    return Path(output)


def _torchscript(network: nn.Module, example: torch.Tensor, recipe: str) -> bytes:
    buffer = io.BytesIO()
    traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))
    torch.jit.save(traced, buffer, _extra_files={MEMBER: recipe})
    return buffer.getvalue()


def _onnx(network: nn.Module, example: torch.Tensor, recipe: str) -> bytes:
    import onnx

    axes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    buffer = io.BytesIO()
    torch.onnx.export(
        network,
        (example,),
        buffer,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": axes, "logits": axes},
        opset_version=_OPSET,
        dynamo=False,
    )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, {"recipe": recipe})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
