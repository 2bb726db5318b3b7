"""Export networks with their recipes to ONNX and TorchScript, for images of any size, and to safetensors."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attunet3d.checkpoint import fit_weights, read_weights, saved_as_safetensors
from attunet3d.config.changes import inference_values
from attunet3d.config.recipe import MEMBER, METADATA, make_recipe, read_recipe, recipe_text
from attunet3d.errors import ConfigError
from attunet3d.io.writer import atomic_path
from attunet3d.networks.folding import fold
from attunet3d.runtime.loading import build_network

FORMATS = {"onnx": (".onnx",), "torchscript": (".ts", ".pt"), "safetensors": (".safetensors",)}
_OPSET = 17


def export(
    checkpoint: str | Path,
    output: str | Path,
    output_format: str | None = None,
    presets: Sequence[str | Path] = (),
    allow_code: bool = False,
    warn: Callable[[str], object] = lambda line: None,
    **overrides: Any,
) -> Path:
    """Export the network of a checkpoint for use without this package.

    ONNX and TorchScript files contain the network in float32. It takes images (B, 1, X, Y, Z) on the model grid, with
    the HU window scaled to [0, 1], of at least 2 ** (levels - 1) voxels per axis, and returns logits (B, classes, X, Y,
    Z). A safetensors file contains the weights unchanged, and can be used like the checkpoint.

    The recipe is JSON, in the metadata "recipe" of ONNX and safetensors, or the extra file "recipe.json" of
    TorchScript. A safetensors file has none if the checkpoint has none and no preset is given.

    Args:
        checkpoint: file of the weights.
        output: the file to write; an existing one is replaced.
        output_format: one of ``FORMATS``; by default that of the suffix of ``output``.
        presets: merged in order over the recipe.
        allow_code: whether presets and overrides may hold code.
        warn: called with warnings about the recipe.
        overrides: ids of the inference config and their values.

    Raises:
        ConfigError: the format is unknown, missing or not that of the suffix; onnx is not installed; ``output`` is the
            checkpoint; a preset or an id does not exist or fit.
        CheckpointError: the weights cannot be read or do not fit.
        OutputError: the file cannot be written.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    output_format = export_format(output, output_format)
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise ConfigError(f"{output}: is the checkpoint itself, which would be replaced; give another file")
    values = inference_values(presets, {**overrides, "checkpoint": checkpoint}, allow_code, warn)
    network, weights = build_network(values["network_def"], allow_code), read_weights(checkpoint)
    fit_weights(network, weights, checkpoint)
    recipe = make_recipe(values | {"network_def": network})
    if output_format == "safetensors":
        known = bool(presets) or read_recipe(checkpoint) is not None
        content = saved_as_safetensors(weights, recipe if known else None)
    else:
        content = _traced(network, recipe_text(recipe), _onnx if output_format == "onnx" else _torchscript)
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    return output


def export_format(output: Path, output_format: str | None) -> str:
    """Return the format to export to, by its name or the suffix of the file.

    Raises:
        ConfigError: the format is unknown, missing or not that of the suffix; or onnx is not installed.
    """
    by_suffix = [name for name, suffixes in FORMATS.items() if output.suffix.lower() in suffixes]
    if output_format is None:
        # Files of weights have the suffix .pt too, so that TorchScript must be asked for.
        if not by_suffix or output.suffix.lower() == ".pt":
            raise ConfigError(f"{output}: its suffix is that of no format; name the format: {', '.join(FORMATS)}")
        output_format = by_suffix[0]
    if output_format not in FORMATS:
        raise ConfigError(f"format {output_format!r} is not known: use {', '.join(FORMATS)}")
    if by_suffix and output_format not in by_suffix:
        suffixes = " or ".join(FORMATS[output_format])
        raise ConfigError(f"{output}: its suffix is that of {by_suffix[0]}, not of {output_format}; use {suffixes}")
    if output_format == "onnx" and importlib.util.find_spec("onnx") is None:
        raise ConfigError("onnx is not installed: pip install 'attunet3d[onnx]', or choose torchscript or safetensors")
    return output_format


def _traced(network: nn.Module, recipe: str, write: Callable[[nn.Module, torch.Tensor, str], bytes]) -> bytes:
    smallest = int(getattr(network, "min_size", 16))
    # Axes of different sizes, so that tracing cannot confuse them.
    example = torch.zeros((1, 1, 2 * smallest, 3 * smallest, 4 * smallest))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # branches on sizes are the same for all sizes
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's newer exporters fix sizes, or take minutes
        return write(fold(network), example, recipe)


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
    onnx.helper.set_model_props(model, {METADATA: recipe})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
